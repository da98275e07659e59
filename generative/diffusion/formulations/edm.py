"""EDM's preconditioned denoisers (Karras et al., arXiv 2206.00364, table 1), with EDM2's learned uncertainty (2312.02696)."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import Formulation, mean_over_image, over_image


class EDM(Formulation):
    """x = x_0 + sigma noise, with scalings around the network so that its input, its target and its error keep unit size.

    Times are noise levels sigma. The network F gets c_in x and c_noise = ln(sigma) / 4, and its output means
    D(x; sigma) = c_skip x + c_out F (eq. 7).

    Args:
        sigma_data: Standard deviation of the data: 0.5 in the paper, for pixels in [-1, 1] and for EDM2's latents.
        log_sigma_mean: ln(sigma) of training is normal with this mean (``P_mean``): -1.2 in EDM; in EDM2 -0.4 at 512, -0.8 at 64.
        log_sigma_std: Its standard deviation (``P_std``): 1.2 in EDM, 1.0 and 1.6 in EDM2.
        sigma_min: Least noise level of sampling.
        sigma_max: Noise level that sampling starts from.
        rho: Exponent of the sampling grid (eq. 5).

    Raises:
        UserError: If a number is out of range.
    """

    prediction_type = "sample"  # of the denoiser D; the raw output F is neither

    @register_to_config
    def __init__(
        self,
        sigma_data: float = 0.5,
        log_sigma_mean: float = -1.2,
        log_sigma_std: float = 1.2,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> None:
        for name, value in (("sigma_data", sigma_data), ("log_sigma_std", log_sigma_std), ("rho", rho)):
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"{name} must be a positive number, got {value}")
        if not 0 < sigma_min < sigma_max < math.inf:
            raise UserError(f"noise levels must satisfy 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")

    def identity(self) -> dict[str, Any]:
        """All options but those of how times are drawn and errors weighted, which may change in mid-run."""
        free = ("log_sigma_mean", "log_sigma_std", "sigma_min", "sigma_max", "rho")
        return {key: value for key, value in super().identity().items() if key not in free}

    def draw_times(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Log-normal noise levels (B,) float32."""
        normal = torch.randn(batch_size, generator=generator, device=generator.device)
        return (self.config.log_sigma_mean + self.config.log_sigma_std * normal).exp()

    def alpha_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """1 and sigma."""
        return torch.ones_like(times), times

    def rates(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros_like(times), torch.ones_like(times)

    def noise_level(self, times: Tensor) -> Tensor:
        """sigma / (1 + sigma): the time of the linear path with the same noise-to-signal ratio."""
        return times / (1 + times)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """The ratio is the noise level."""
        return ratio

    def sampling_times(self, num_steps: int) -> Tensor:
        """The paper's grid (eq. 5), and 0 behind it: (num_steps + 1,) float64."""
        grid = self.grid_level(torch.linspace(0, 1, num_steps, dtype=torch.float64))
        return torch.cat([grid, grid.new_zeros(1)])

    def grid_level(self, place: Tensor) -> Tensor:
        """Noise levels at places of the paper's grid (eq. 5), 0 being ``sigma_max`` and 1 ``sigma_min``; shaped as they are."""
        inverse = 1 / self.config.rho
        largest, smallest = self.config.sigma_max**inverse, self.config.sigma_min**inverse
        return (largest + place * (smallest - largest)) ** self.config.rho

    def network_time(self, times: Tensor) -> Tensor:
        """c_noise = ln(sigma) / 4."""
        return times.log() / 4

    def network_input(self, sample: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """c_in x and c_noise."""
        scale = (self.config.sigma_data**2 + times.square()).rsqrt()
        return over_image(scale, sample).to(sample.dtype) * sample, self.network_time(times)

    def predict_start(self, output: DenoiserOutput, sample: Tensor, times: Tensor) -> Tensor:
        """D = c_skip x + c_out F."""
        skip, out = (over_image(factor, sample) for factor in self._skip_out(times))
        return skip * sample + out * output.prediction

    def _skip_out(self, times: Tensor) -> tuple[Tensor, Tensor]:
        total = self.config.sigma_data**2 + times.square()
        return self.config.sigma_data**2 / total, times * self.config.sigma_data * total.rsqrt()

    def target(self, x_start: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What F should be: (x_0 - c_skip x) / c_out."""
        skip, out = (over_image(factor, x_start) for factor in self._skip_out(times))
        return (x_start - skip * self.add_noise(x_start, noise, times)) / out

    def loss_weight(self, times: Tensor) -> Tensor:
        """Weight lambda of the squared error of D (table 1), shaped as the times."""
        return (times.square() + self.config.sigma_data**2) / (times * self.config.sigma_data).square()

    def losses(self, output: DenoiserOutput, x_start: Tensor, noise: Tensor, sample: Tensor, times: Tensor) -> dict[str, Tensor]:
        """Weighted squared error of D (eq. 2 with table 1's weight), each image's mean over its elements.

        With a learned uncertainty u it is weighted by exp(-u), and ``uncertainty`` is u itself (EDM2, eq. 22): where u is right,
        the weighted error is 1 at every noise level.
        """
        weight = self.loss_weight(times)
        error = mean_over_image((self.predict_start(output, sample, times) - x_start).square())
        losses = {"mse": weight * error}
        if output.log_variance is not None:
            uncertainty = output.log_variance.reshape(-1)
            losses = {"mse": losses["mse"] * (-uncertainty).exp(), "uncertainty": uncertainty}
        return losses
