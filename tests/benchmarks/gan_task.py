"""What the contenders of ``gan_training.py`` are to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contest import Contender


@dataclass(frozen=True)
class GANTask:
    """What all of them are to do.

    Attributes:
        model: ``sagan`` or ``biggan``.
        resolution: Side of the images, in pixels.
        channels: Channel multiplier.
        batch_size: Images of a step.
        threads: Of each process.
        checkout: Of the rival.
        folder: Holds ``state.pt``, the weights that all start from.
    """

    model: str
    resolution: int
    channels: int
    batch_size: int
    threads: int
    checkout: Path
    folder: Path

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Real images (B, 3, H, W) in [-1, 1] and labels (B,): noise, as nothing here depends on what they show."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch_size, 3, self.resolution, self.resolution, generator=generator).tanh()
        return images, torch.randint(10, (self.batch_size,), generator=generator)

    def build(self, contender: Contender) -> Any:
        """Make a ``RivalGAN`` or ``OurGAN``."""
        state = torch.load(self.folder / "state.pt", weights_only=True)
        images, labels = self.batch()
        if contender.is_ours:
            from our_gan import OurGAN

            options = (contender.precision, contender.channels_last, contender.compile, self.folder / "run")
            return OurGAN(self.model, self.resolution, self.channels, images, labels, state, *options)
        from rival_gan import RivalGAN

        gan = RivalGAN(self.checkout, self.model, self.resolution, self.channels, images, labels, contender.channels_last)
        gan.load(state)
        return gan
