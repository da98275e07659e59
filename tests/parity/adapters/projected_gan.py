"""How the outputs of projected-gan parity files follow from their inputs."""

from __future__ import annotations

from projected_gan_outputs import compute_projected_gan as compute

__all__ = ["SOURCE", "compute"]

SOURCE = "projected-gan"
