"""Learning-rate schedules: the factor on the base rate as a function of images seen, whatever the batch size."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

from generative.core.errors import UserError


class LRSchedule(abc.ABC):
    """Factor on every learning rate.

    Args:
        warmup_images: Linear warm-up from 0 over so many images.
    """

    def __init__(self, warmup_images: int = 0) -> None:
        if warmup_images < 0:
            raise UserError(f"warmup_images must not be negative, got {warmup_images}")
        self.warmup_images = warmup_images

    @abc.abstractmethod
    def decay(self, images_seen: int, total_images: int) -> float:
        """Factor after warm-up, in [0, 1]."""

    def factor(self, images_seen: int, batch_size: int, total_images: int) -> float:
        """Factor for the step that trains on images ``images_seen`` to ``images_seen + batch_size``.

        Args:
            images_seen: Images seen before the step.
            batch_size: Images of the step; counted in during warm-up, so that the first step already moves.
            total_images: Images of the whole run.
        """
        warmup = min(1.0, (images_seen + batch_size) / self.warmup_images) if self.warmup_images else 1.0
        return warmup * self.decay(images_seen, total_images)


class Constant(LRSchedule):
    """Constant after warm-up."""

    def decay(self, images_seen: int, total_images: int) -> float:
        """Always 1."""
        return 1.0


class Cosine(LRSchedule):
    """Half a cosine from 1 to ``final`` over the run (arXiv 1608.03983).

    Args:
        warmup_images: Linear warm-up from 0 over so many images.
        final: Factor at the end of the half.
        share: How much of the half the run gets through, 1 all of it (RIN: 0.7).

    Raises:
        UserError: If the share is not in (0, 1].
    """

    def __init__(self, warmup_images: int = 0, final: float = 0.0, share: float = 1.0) -> None:
        super().__init__(warmup_images)
        if not 0 < share <= 1:
            raise UserError(f"share must be in (0, 1], got {share}")
        self.final, self.share = final, share

    def decay(self, images_seen: int, total_images: int) -> float:
        """Cosine from the end of warm-up to the end of the run."""
        progress = self.share * progress_after(self.warmup_images, images_seen, total_images)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class Linear(LRSchedule):
    """Straight line from 1 to ``final``, after a flat part.

    Args:
        warmup_images: Linear warm-up from 0 over so many images.
        final: Factor at the end.
        flat: Share of the run after warm-up during which the factor stays 1 (VAR and Open-MAGVIT2: 0.05).
    """

    def __init__(self, warmup_images: int = 0, final: float = 0.0, flat: float = 0.0) -> None:
        super().__init__(warmup_images)
        if not 0 <= flat < 1:
            raise UserError(f"flat must be in [0, 1), got {flat}")
        self.final = final
        self.flat = flat

    def decay(self, images_seen: int, total_images: int) -> float:
        """1 during the flat part, then a line down to ``final``."""
        progress = progress_after(self.warmup_images, images_seen, total_images)
        return 1 - (1 - self.final) * max(0.0, progress - self.flat) / (1 - self.flat)


class Step(LRSchedule):
    """Constant, and multiplied by ``rate`` at each of some counts of images (Open-MAGVIT2's tokenizer: 0.1, twice).

    Args:
        drop_images: Images seen at which the factor drops.
        rate: What it is multiplied by.
        warmup_images: Linear warm-up from 0 over so many images.
    """

    def __init__(self, drop_images: Sequence[int], rate: float = 0.1, warmup_images: int = 0) -> None:
        super().__init__(warmup_images)
        if not 0 < rate <= 1:
            raise UserError(f"rate must be in (0, 1], got {rate}")
        self.drop_images, self.rate = tuple(drop_images), rate

    def decay(self, images_seen: int, total_images: int) -> float:
        """``rate`` to the power of the drops passed."""
        return float(self.rate ** sum(images_seen >= drop for drop in self.drop_images))


class InverseSqrt(LRSchedule):
    """Constant, then falling with the square root of images seen (EDM2, arXiv 2312.02696, eq. 67).

    Args:
        reference_images: Images after which the decay starts (EDM2: 70,000 steps of 2,048 images for ImageNet-512).
        warmup_images: Linear warm-up from 0 over so many images.
    """

    def __init__(self, reference_images: int, warmup_images: int = 0) -> None:
        super().__init__(warmup_images)
        if reference_images <= 0:
            raise UserError(f"reference_images must be positive, got {reference_images}")
        self.reference_images = reference_images

    def decay(self, images_seen: int, total_images: int) -> float:
        """1 / sqrt(max(images / reference, 1))."""
        return 1 / math.sqrt(max(images_seen / self.reference_images, 1.0))


def progress_after(warmup_images: int, images_seen: int, total_images: int) -> float:
    """Share of the run after warm-up that is done, in [0, 1]."""
    return min(1.0, max(0.0, (images_seen - warmup_images) / max(1, total_images - warmup_images)))
