"""Flow matching on straight paths (rectified flow): x = (1 - sigma) x_0 + sigma noise, velocity noise - x_0.

Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003. Time runs as in diffusers: sigma 0 is data, sigma 1 is noise, and a
network sees the timestep sigma * T.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from generative.core.errors import UserError

TimestepDensity = Literal["uniform", "logit_normal"]


class FlowProcess:
    """Straight-path noising of a flow-matching scheduler.

    Args:
        num_train_timesteps: T, the timestep of pure noise.
        density: How training timesteps are drawn: ``uniform``, or ``logit_normal`` with more in the middle
            (arXiv 2403.03206, eq. 19, location 0 and scale 1).

    Raises:
        UserError: If the density is unknown.
    """

    prediction_type = "flow_prediction"

    def __init__(self, num_train_timesteps: int, density: TimestepDensity = "uniform") -> None:
        if density not in ("uniform", "logit_normal"):
            raise UserError(f"timestep_density must be uniform or logit_normal, got {density!r}")
        self.num_train_timesteps = num_train_timesteps
        self.density = density

    @classmethod
    def from_scheduler(cls, scheduler: Any, density: TimestepDensity = "uniform") -> FlowProcess:
        """Take the time scale from a diffusers scheduler; a sampling ``shift`` does not change training."""
        return cls(scheduler.config.num_train_timesteps, density)

    def draw_timesteps(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw timesteps (B,) float32 in [0, T]."""
        if self.density == "uniform":
            sigma = torch.rand(batch_size, generator=generator, device=generator.device)
        else:
            sigma = torch.randn(batch_size, generator=generator, device=generator.device).sigmoid()
        return sigma * self.num_train_timesteps

    def add_noise(self, x_start: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Point of the straight path from x_0 to the noise, (B, ...)."""
        sigma = (timesteps / self.num_train_timesteps).reshape(-1, *[1] * (x_start.dim() - 1))
        return (1 - sigma) * x_start + sigma * noise

    def target(self, x_start: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Velocity along the path, (B, ...), the same at all its points."""
        return noise - x_start
