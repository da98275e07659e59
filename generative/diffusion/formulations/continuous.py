"""Variance-preserving diffusion in continuous time: VP-SDE (arXiv 2011.13456) and the gamma schedules of RIN (2212.11972)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import Formulation, mean_over_image, over_image

Schedule = Literal["vp_sde", "simple_linear", "offset_cosine", "cosine", "sigmoid", "log"]
CompareWith = Literal["prediction", "epsilon", "sample"]
NetworkTime = Literal["time", "gamma", "log_snr"]

# gamma = alpha^2 is kept off 0 and 1, where a logarithm of the ratio ends (RIN's and simple diffusion's official clipping).
GAMMA_CLIP = 1e-9
# cos^2(pi / 2 (t + a) / (1 + b)), the schedule that RIN's ImageNet models were trained with (official code).
COSINE_START, COSINE_LENGTH = 2e-4, 2.5e-4
BISECTIONS = 60


class ContinuousDiffusion(Formulation):
    """alpha^2 = gamma(t) and sigma^2 = 1 - gamma(t), with t from 0 (data) to 1 (noise).

    Args:
        schedule: ``vp_sde`` gamma = exp(-t beta_min - t^2 (beta_max - beta_min) / 2); ``simple_linear`` gamma = 1 - t;
            ``offset_cosine`` RIN's cos^2, which keeps off pure noise and clean data; ``cosine`` and ``sigmoid`` (arXiv
            2301.10972, eqs. 3 and 4) between ``start`` and ``end`` at temperature ``tau``; ``log`` a logarithm from ``start`` to
            ``end``, both positive, which bends the other way where they change places.
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``.
        beta_min: Of ``vp_sde``.
        beta_max: Of ``vp_sde``.
        start: Of ``cosine``, ``sigmoid`` and ``log``.
        end: Of ``cosine``, ``sigmoid`` and ``log``.
        tau: Of ``cosine`` and ``sigmoid``.
        network_time: What the network is told: the ``time``, ``gamma`` (RIN) or the ``log_snr`` log(alpha^2 / sigma^2).
        time_scale: Factor on it: 999 in U-ViT's pixel models, 1000 in RIN.
        min_time: Sampling ends here, since near the data the noise is too little to be predicted.
        data_scale: Factor on the data before they are noised, for more noise at high resolution (arXiv 2301.10972, section 2.3).
            Here the noise is divided by it, and the network sees all of it scaled; one that predicts x_0 or v predicts them of
            scaled data.
        normalize_input: Divide each noised sample by its standard deviation before the network sees it (the same section).
        loss: What is compared: the ``prediction`` with its target, or the ``epsilon`` or ``sample`` that it implies.

    Raises:
        UserError: If a value is not known or out of range.
    """

    @register_to_config
    def __init__(
        self,
        schedule: Schedule = "cosine",
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        start: float = 0.0,
        end: float = 1.0,
        tau: float = 1.0,
        network_time: NetworkTime = "time",
        time_scale: float = 1.0,
        min_time: float = 0.0,
        data_scale: float = 1.0,
        normalize_input: bool = False,
        loss: CompareWith = "prediction",
    ) -> None:
        for name, value, known in (
            ("schedule", schedule, get_args(Schedule)),
            ("prediction_type", prediction_type, ("epsilon", "sample", "v_prediction")),
            ("network_time", network_time, get_args(NetworkTime)),
            ("loss", loss, get_args(CompareWith)),
        ):
            if value not in known:
                raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not 0 < beta_min < beta_max:
            raise UserError(f"rates must satisfy 0 < beta_min < beta_max, got {beta_min} and {beta_max}")
        if schedule == "log" and not (min(start, end) > 0 and start != end):
            raise UserError(f"start and end of the schedule log must be positive and differ, got {start} and {end}")
        if not ((start < end or schedule == "log") and tau > 0 and time_scale > 0):
            raise UserError(f"start must be below end, tau and time_scale positive, got {start}, {end}, {tau} and {time_scale}")
        if not 0 < data_scale < math.inf:
            raise UserError(f"data_scale must be a positive number, got {data_scale}")
        if not 0 <= min_time < 1:
            raise UserError(f"min_time must be in [0, 1), got {min_time}")
        self.prediction_type = prediction_type

    @property
    def ends_in_data(self) -> bool:
        """If it ends before the data."""
        return self.config.min_time > 0

    def gamma(self, times: Tensor) -> Tensor:
        """alpha^2 at times."""
        config = self.config
        if config.schedule == "vp_sde":
            return (-times * config.beta_min - times.square() * (config.beta_max - config.beta_min) / 2).exp()
        if config.schedule == "simple_linear":
            values = 1 - times
        elif config.schedule == "offset_cosine":
            values = ((times + COSINE_START) / (1 + COSINE_LENGTH) * (math.pi / 2)).cos().square()
        else:
            first, last = self._shape(torch.as_tensor(config.start)), self._shape(torch.as_tensor(config.end))
            now = self._shape(config.start + times * (config.end - config.start))
            values = (last - now) / (last - first) if config.schedule == "sigmoid" else (now - last) / (first - last)
        return values.clamp(GAMMA_CLIP, 1.0)

    def _shape(self, position: Tensor) -> Tensor:
        """The curve that a schedule cuts a piece of."""
        if self.config.schedule == "sigmoid":
            return (position / self.config.tau).sigmoid()
        if self.config.schedule == "log":
            return position.log()
        return (position * (math.pi / 2)).cos() ** (2 * self.config.tau)

    def identity(self) -> dict[str, Any]:
        """All options but those of how times are drawn and errors weighted, which may change in mid-run.

        Data and samples that are not scaled go unsaid, as in runs from before there was a way to.
        """
        free = ["min_time", "loss"]
        free += [] if self.config.normalize_input else ["normalize_input"]
        free += [] if self.config.data_scale != 1 else ["data_scale"]
        return {key: value for key, value in super().identity().items() if key not in free}

    def draw_times(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Uniform times (B,) float32 in [0, 1)."""
        return torch.rand(batch_size, generator=generator, device=generator.device)

    def alpha_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Square roots of gamma and of 1 - gamma, the latter over ``data_scale``: the data stay as they are."""
        gamma = self.gamma(times)
        sigma = (1 - gamma).clamp(min=0).sqrt()
        return gamma.sqrt(), sigma if self.config.data_scale == 1 else sigma / self.config.data_scale

    def noise_level(self, times: Tensor) -> Tensor:
        """The time."""
        return times

    def network_time(self, times: Tensor) -> Tensor:
        """See the constructor."""
        if self.config.network_time == "time":
            return times * self.config.time_scale
        gamma = self.gamma(times)
        return (gamma if self.config.network_time == "gamma" else gamma.logit()) * self.config.time_scale

    def network_input(self, sample: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Sample, scaled or normalised where that is asked for, and what the network is told of times."""
        if self.config.data_scale != 1:
            sample = self.config.data_scale * sample
        if self.config.normalize_input:
            sample = sample / sample.flatten(1).std(1, correction=0).reshape(-1, *[1] * (sample.dim() - 1))
        return sample, self.network_time(times)

    def sampling_times(self, num_steps: int) -> Tensor:
        """Even times from 1 to ``min_time``, (num_steps + 1,) float64."""
        return torch.linspace(1, self.config.min_time, num_steps + 1, dtype=torch.float64)

    def whole_way(self) -> Tensor:
        """1 and 0, which ``min_time`` may keep out of ``sampling_times``."""
        return torch.tensor([1.0, 0.0], dtype=torch.float64)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """Times at which sigma / alpha has these values, by bisection: the ratio rises with time in every schedule."""
        wanted = 1 / (1 + (ratio.double() * self.config.data_scale).square())  # gamma
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            is_before = self.gamma(middle) > wanted
            low, high = torch.where(is_before, middle, low), torch.where(is_before, high, middle)
        return ((low + high) / 2).to(ratio.dtype)

    # ------------------------------------------------------------------ of scaled data

    def target(self, x_start: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network should predict, of scaled data; see ``Formulation.target``."""
        scale = self.config.data_scale
        if scale == 1 or self.prediction_type == "epsilon":
            return super().target(x_start, noise, times)
        if self.prediction_type == "sample":
            return scale * x_start
        alpha, sigma = (over_image(factor, x_start) for factor in self.alpha_sigma(times))
        return alpha * noise - scale**2 * sigma * x_start

    def predict_start(self, output: DenoiserOutput, sample: Tensor, times: Tensor) -> Tensor:
        """x_0, not scaled; see ``Formulation.predict_start``."""
        scale = self.config.data_scale
        if scale == 1 or self.prediction_type == "epsilon":
            return super().predict_start(output, sample, times)
        if self.prediction_type == "sample":
            return output.prediction / scale
        alpha, sigma = (over_image(factor, sample) for factor in self.alpha_sigma(times))
        return alpha * sample - sigma * output.prediction

    def predict_noise(self, output: DenoiserOutput, sample: Tensor, times: Tensor) -> Tensor:
        """The noise; see ``Formulation.predict_noise``."""
        scale = self.config.data_scale
        if scale == 1 or self.prediction_type != "v_prediction":
            return super().predict_noise(output, sample, times)
        alpha, sigma = (over_image(factor, sample) for factor in self.alpha_sigma(times))
        return scale**2 * sigma * sample + alpha * output.prediction

    def losses(self, output: DenoiserOutput, x_start: Tensor, noise: Tensor, sample: Tensor, times: Tensor) -> dict[str, Tensor]:
        """``mse`` of what ``loss`` compares; see ``Formulation.losses``."""
        if self.config.loss == "epsilon":
            return {"mse": mean_over_image((self.predict_noise(output, sample, times) - noise).square())}
        if self.config.loss == "sample":
            return {"mse": mean_over_image((self.predict_start(output, sample, times) - x_start).square())}
        return super().losses(output, x_start, noise, sample, times)
