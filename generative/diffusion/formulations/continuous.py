"""Variance-preserving diffusion in continuous time: VP-SDE (arXiv 2011.13456) and the gamma schedules of RIN (2212.11972)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.formulations.base import Formulation

Schedule = Literal["vp_sde", "simple_linear", "offset_cosine", "cosine", "sigmoid"]
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
            2301.10972, eqs. 3 and 4) between ``start`` and ``end`` at temperature ``tau``.
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``.
        beta_min: Of ``vp_sde``.
        beta_max: Of ``vp_sde``.
        start: Of ``cosine`` and ``sigmoid``.
        end: Of ``cosine`` and ``sigmoid``.
        tau: Of ``cosine`` and ``sigmoid``.
        network_time: What the network is told: the ``time``, ``gamma`` (RIN) or the ``log_snr`` log(alpha^2 / sigma^2).
        time_scale: Factor on it: 999 in U-ViT's pixel models, 1000 in RIN.
        min_time: Sampling ends here, since near the data the noise is too little to be predicted.

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
    ) -> None:
        for name, value, known in (
            ("schedule", schedule, get_args(Schedule)),
            ("prediction_type", prediction_type, ("epsilon", "sample", "v_prediction")),
            ("network_time", network_time, get_args(NetworkTime)),
        ):
            if value not in known:
                raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not 0 < beta_min < beta_max:
            raise UserError(f"rates must satisfy 0 < beta_min < beta_max, got {beta_min} and {beta_max}")
        if not (start < end and tau > 0 and time_scale > 0):
            raise UserError(f"start must be below end, tau and time_scale positive, got {start}, {end}, {tau} and {time_scale}")
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
        return (position * (math.pi / 2)).cos() ** (2 * self.config.tau)

    def identity(self) -> dict[str, Any]:
        """All options but those of how times are drawn and errors weighted, which may change in mid-run."""
        free = ("min_time",)
        return {key: value for key, value in super().identity().items() if key not in free}

    def draw_times(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Uniform times (B,) float32 in [0, 1)."""
        return torch.rand(batch_size, generator=generator, device=generator.device)

    def alpha_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Square roots of gamma and 1 - gamma."""
        gamma = self.gamma(times)
        return gamma.sqrt(), (1 - gamma).clamp(min=0).sqrt()

    def noise_level(self, times: Tensor) -> Tensor:
        """The time."""
        return times

    def network_time(self, times: Tensor) -> Tensor:
        """See the constructor."""
        if self.config.network_time == "time":
            return times * self.config.time_scale
        gamma = self.gamma(times)
        return (gamma if self.config.network_time == "gamma" else gamma.logit()) * self.config.time_scale

    def sampling_times(self, num_steps: int) -> Tensor:
        """Even times from 1 to ``min_time``, (num_steps + 1,) float64."""
        return torch.linspace(1, self.config.min_time, num_steps + 1, dtype=torch.float64)

    def whole_way(self) -> Tensor:
        """1 and 0, which ``min_time`` may keep out of ``sampling_times``."""
        return torch.tensor([1.0, 0.0], dtype=torch.float64)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """Times at which sigma / alpha has these values, by bisection: the ratio rises with time in every schedule."""
        wanted = 1 / (1 + ratio.double().square())  # gamma
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            is_before = self.gamma(middle) > wanted
            low, high = torch.where(is_before, middle, low), torch.where(is_before, high, middle)
        return ((low + high) / 2).to(ratio.dtype)
