"""How the outputs of projected-gan_256 parity files follow from their inputs."""

from __future__ import annotations

from projected_gan_outputs import outputs

__all__ = ["SOURCE", "outputs"]

SOURCE = "projected-gan_256"
