"""Stochastic interpolants: flow matching and the paths of SiT (arXiv 2401.08740), either direction of time."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import Formulation, mean_over_image, over_image

PathName = Literal["linear", "gvp", "vp"]
Density = Literal["uniform", "logit_normal"]
Weighting = Literal["uniform", "velocity", "likelihood"]

# Noise rates of the VP path at the data's and the noise's end (Song et al., arXiv 2011.13456, appendix C).
VP_BETA_MIN, VP_BETA_MAX = 0.1, 20.0


class Interpolant(Formulation):
    """Data and noise mixed along a path of time.

    With s the share of the way from data to noise: ``linear`` alpha = 1 - s, sigma = s (rectified flow, arXiv 2209.03003);
    ``gvp`` alpha = cos(pi s / 2), sigma = sin(pi s / 2); ``vp`` the variance-preserving SDE's (SiT, table 1).

    Args:
        path: The path.
        prediction_type: ``velocity`` along the path, ``epsilon`` (noise), ``score`` or ``sample``.
        data_time: 0 where time runs from data to noise (diffusers, REPA, RAE), 1 from noise to data (SiT, JiT). The predicted
            velocity changes its sign with it.
        time_scale: Time of the far end: the network is told times in [0, time_scale]. 1 in SiT, 1000 in diffusers.
        shift: Times are shifted by s -> shift s / (1 + (shift - 1) s), in training and in sampling (arXiv 2403.03206, eq. 23);
            above 1 more of them are noisy.
        density: How training times are drawn, before the shift: ``uniform`` or ``logit_normal`` (arXiv 2403.03206, eq. 19).
        density_mean: Location of the logit of s.
        density_std: Scale of the logit of s.
        weighting: Of the squared error where noise or score is predicted: ``uniform``, or that which makes it the error of the
            ``velocity``, or the bound on the ``likelihood`` (SiT, section 3.2).
        min_level: Least share s of training and sampling, before the shift: a prediction may have no limit at the data's end (SiT
            takes 0.001 for other predictions than the velocity).
        max_level: Largest share s: 1 unless the prediction has no limit at the noise's end (0.999 in RAE).

    Raises:
        UserError: If a value is not known or out of range.
    """

    @register_to_config
    def __init__(
        self,
        path: PathName = "linear",
        prediction_type: Literal["velocity", "epsilon", "score", "sample"] = "velocity",
        data_time: Literal[0, 1] = 0,
        time_scale: float = 1.0,
        shift: float = 1.0,
        density: Density = "uniform",
        density_mean: float = 0.0,
        density_std: float = 1.0,
        weighting: Weighting = "uniform",
        min_level: float = 0.0,
        max_level: float = 1.0,
    ) -> None:
        for name, value, known in (
            ("path", path, ("linear", "gvp", "vp")),
            ("prediction_type", prediction_type, ("velocity", "epsilon", "score", "sample")),
            ("data_time", data_time, (0, 1)),
            ("density", density, ("uniform", "logit_normal")),
            ("weighting", weighting, ("uniform", "velocity", "likelihood")),
        ):
            if value not in known:
                raise UserError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
        for name, number in (("time_scale", time_scale), ("shift", shift), ("density_std", density_std)):
            if not (number > 0 and math.isfinite(number)):
                raise UserError(f"{name} must be a positive number, got {number}")
        if weighting != "uniform" and prediction_type not in ("epsilon", "score"):
            raise UserError(f"weighting {weighting!r} is of predicted noise or score, not of {prediction_type}; use uniform")
        if not 0 <= min_level < max_level <= 1:
            raise UserError(f"levels must satisfy 0 <= min_level < max_level <= 1, got {min_level} and {max_level}")
        self.prediction_type = prediction_type

    # ------------------------------------------------------------------ time

    @property
    def time_unit(self) -> float:
        """``time_scale``: a velocity is that of a path of length 1, whatever the network is told of time."""
        return self.config.time_scale

    @property
    def ends_in_data(self) -> bool:
        """A velocity has a limit on every path but ``vp``, whose noise starts infinitely fast."""
        return self.config.min_level > 0 or (self.prediction_type == "velocity" and self.config.path != "vp")

    def noise_level(self, times: Tensor) -> Tensor:
        """s, the share of the way from data to noise."""
        share = times / self.config.time_scale
        return 1 - share if self.config.data_time else share

    def time_of_level(self, level: Tensor) -> Tensor:
        """Times at shares s of the way from data to noise."""
        return (1 - level if self.config.data_time else level) * self.config.time_scale

    def shifted(self, level: Tensor) -> Tensor:
        """Shift shares s, see ``shift``."""
        shift = self.config.shift
        return level if shift == 1 else shift * level / (1 + (shift - 1) * level)

    def identity(self) -> dict[str, Any]:
        """All options but those of how times are drawn and errors weighted, which may change in mid-run."""
        free = ("density", "density_mean", "density_std", "weighting", "min_level", "max_level")
        return {key: value for key, value in super().identity().items() if key not in free}

    def meaning(self, predicts: bool = True) -> dict[str, Any]:
        """As of every formulation; the shift chooses times and changes neither the path nor what a network is told."""
        return {name: value for name, value in super().meaning(predicts).items() if name != "shift"}

    def draw_times(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw times (B,) float32 in [0, time_scale]."""
        draw = torch.rand if self.config.density == "uniform" else torch.randn
        return self.times_of_draws(draw(batch_size, generator=generator, device=generator.device))

    def times_of_draws(self, draws: Tensor) -> Tensor:
        """Times (B,) of uniform draws in [0, 1), or of standard normal ones where the density is of the logit."""
        if self.config.density == "uniform":
            level = draws
        else:
            level = (self.config.density_mean + self.config.density_std * draws).sigmoid()
        if (self.config.min_level, self.config.max_level) != (0.0, 1.0):
            level = self.config.min_level + (self.config.max_level - self.config.min_level) * level
        return self.time_of_level(self.shifted(level))

    def sampling_times(self, num_steps: int) -> Tensor:
        """Even shares from ``max_level`` to ``min_level``, shifted, as times (num_steps + 1,) float64."""
        levels = torch.linspace(self.config.max_level, self.config.min_level, num_steps + 1, dtype=torch.float64)
        return self.time_of_level(self.shifted(levels))

    def whole_way(self) -> Tensor:
        """Times of the shares 1 and 0, which ``min_level`` and ``max_level`` may keep out of ``sampling_times``."""
        return self.time_of_level(torch.tensor([1.0, 0.0], dtype=torch.float64))

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """Times at which sigma / alpha has these values."""
        if self.config.path == "linear":
            level = ratio / (1 + ratio)
        elif self.config.path == "gvp":
            level = ratio.atan() * (2 / math.pi)
        else:
            # alpha^-2 = 1 + ratio^2, and -2 log alpha is a square polynomial of s.
            exponent = ratio.square().log1p()
            slope = VP_BETA_MAX - VP_BETA_MIN
            level = ((VP_BETA_MIN**2 + 2 * slope * exponent).sqrt() - VP_BETA_MIN) / slope
        return self.time_of_level(level)

    # ------------------------------------------------------------------ path

    def alpha_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of data and noise."""
        level = self.noise_level(times)
        if self.config.path == "linear":
            return 1 - level, level
        if self.config.path == "gvp":
            return (level * (math.pi / 2)).cos(), (level * (math.pi / 2)).sin()
        log_alpha = self._vp_log_alpha(level)
        # sigma^2 = 1 - alpha^2, without the cancellation near the data.
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def _vp_log_alpha(self, level: Tensor) -> Tensor:
        return -0.25 * level.square() * (VP_BETA_MAX - VP_BETA_MIN) - 0.5 * level * VP_BETA_MIN

    def rates(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of alpha and sigma by the share s, with the sign of the direction of time."""
        level = self.noise_level(times)
        if self.config.path == "linear":
            rates = -torch.ones_like(level), torch.ones_like(level)
        elif self.config.path == "gvp":
            half = math.pi / 2
            rates = -half * (level * half).sin(), half * (level * half).cos()
        else:
            alpha, sigma = self.alpha_sigma(times)
            slope = -0.5 * level * (VP_BETA_MAX - VP_BETA_MIN) - 0.5 * VP_BETA_MIN
            rates = alpha * slope, -(alpha**2) * slope / sigma
        return (-rates[0], -rates[1]) if self.config.data_time else rates

    def target(self, x_start: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network should predict; on a linear path the velocity is the same everywhere."""
        if self.prediction_type == "velocity" and self.config.path == "linear":
            return x_start - noise if self.config.data_time else noise - x_start
        return super().target(x_start, noise, times)

    def losses(self, output: DenoiserOutput, x_start: Tensor, noise: Tensor, sample: Tensor, times: Tensor) -> dict[str, Tensor]:
        """``mse`` of the prediction; of a score its error times sigma (SiT, section 3.2); see ``Formulation.losses``."""
        if self.prediction_type != "score":
            losses = super().losses(output, x_start, noise, sample, times)
        else:
            _, sigma = self.alpha_sigma(times)
            losses = {"mse": mean_over_image((output.prediction * over_image(sigma, sample) + noise).square())}
        if self.config.weighting != "uniform":
            losses["mse"] = losses["mse"] * self.loss_weight(times)
        return losses

    def loss_weight(self, times: Tensor) -> Tensor:
        """Weight (B,) of the squared error of the noise."""
        _, sigma = self.alpha_sigma(times)
        diffusion = self.diffusion(times)
        return (diffusion / sigma).square() if self.config.weighting == "velocity" else diffusion / sigma.square()
