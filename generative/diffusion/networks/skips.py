"""Where decoders of U-Nets read the skips of their encoders, so that what is read may be transformed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

SkipTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(hidden (B, C, h, w), skip (B, S, h, w)) -> both, changed``, called before they are put together along the channels."""


class SkipNetwork:
    """Mixin of U-Nets: ``join`` before every concatenation of the decoder.

    Attributes:
        decoder_widths: Widths of the decoder's hidden map before its concatenations, from the lowest resolution up, each once.
        skip_transform: Changes what the decoder reads (FreeU, arXiv 2309.11497); None, as in training, changes nothing.
    """

    decoder_widths: tuple[int, ...]
    skip_transform: SkipTransform | None = None

    def join(self, hidden: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's hidden map and the skip that it reads, transformed where that is asked for."""
        return (hidden, skip) if self.skip_transform is None else self.skip_transform(hidden, skip)
