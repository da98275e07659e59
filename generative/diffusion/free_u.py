"""FreeU (arXiv 2309.11497): a U-Net's decoder made to trust its own features more and the low frequencies of its skips less."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.networks.skips import SkipNetwork, SkipTransform
from generative.diffusion.options import FreeUVersion

THRESHOLD = 1
"""Half the width of the box of low frequencies that skips lose; the official code has no other."""


@dataclass(frozen=True, kw_only=True)
class FreeU:
    """Scales half of the backbone's channels by b and the low frequencies of the skip by s, before they are put together.

    Which factors act is told by the backbone's width, as officially, where the stages are 1280 and 640 channels of Stable
    Diffusion. Here the first stage is the width at the lowest resolution and the second the next other width of the decoder:
    1024 and 512 in ADM at 256, 768 and 576 in ADM at 64 and in EDM2-S. A network of one width has the first stage only. Every
    concatenation of a stage is changed, so that several blocks change what the earlier ones made.

    Attributes:
        widths: Widths of the stages, of which there are one or two.
        b: Factor on the backbone in each of the two stages (b1, b2); 1 changes nothing.
        s: Factor on the low frequencies of the skip (s1, s2); 1 changes nothing.
        version: ``v1`` scales by b; ``v2`` by (b - 1) m + 1, m the mean over all channels, brought to [0, 1] over each image.
            Where that mean is the same all over the map, m is 0 and nothing is scaled; the official code divides 0 by 0 there.

    Raises:
        UserError: If a factor is no finite number of 0 or more.
    """

    widths: tuple[int, ...]
    b: tuple[float, float] = (1.0, 1.0)
    s: tuple[float, float] = (1.0, 1.0)
    version: FreeUVersion = "v2"

    def __post_init__(self) -> None:
        factors = (*self.b, *self.s)
        if not all(factor >= 0 and math.isfinite(factor) for factor in factors):
            raise UserError(f"free_u must be four numbers b1,b2,s1,s2 of 0 or more, got {', '.join(map(str, factors))}")

    def __call__(self, hidden: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """See ``SkipTransform``; other widths than those of the stages are left alone."""
        width = hidden.shape[1]
        if width not in self.widths:
            return hidden, skip
        stage = self.widths.index(width)
        factor: float | Tensor = self.b[stage]
        if self.version == "v2":
            factor = (self.b[stage] - 1) * relative_mean(hidden) + 1
        half = width // 2
        hidden = torch.cat([hidden[:, :half] * factor, hidden[:, half:]], dim=1)
        return hidden, scale_low_frequencies(skip, THRESHOLD, self.s[stage])


def relative_mean(hidden: Tensor) -> Tensor:
    """Mean over the channels, from 0 where it is least on an image's map to 1 where it is largest: (B, C, h, w) -> (B, 1, h, w).

    0 everywhere on a map whose mean is the same all over.
    """
    mean = hidden.mean(1, keepdim=True)
    least, largest = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    spread = largest - least
    return (mean - least) / torch.where(spread > 0, spread, 1)


def scale_low_frequencies(x: Tensor, threshold: int, scale: float) -> Tensor:
    """Scale the frequencies -threshold to threshold - 1 of both axes, the mean among them.

    Args:
        x: (B, C, h, w), of any floating dtype; the transform is float32.
        threshold: At most half of h and of w, rounded down, or 1.
        scale: Factor.

    Returns:
        The same shape and dtype.
    """
    frequencies = torch.fft.fftshift(torch.fft.fft2(x.float()), dim=(-2, -1))
    rows, columns = (slice(size // 2 - threshold, size // 2 + threshold) for size in x.shape[-2:])
    mask = torch.ones(x.shape[-2:], device=x.device)
    mask[rows, columns] = scale
    return torch.fft.ifft2(torch.fft.ifftshift(frequencies * mask, dim=(-2, -1))).real.to(x.dtype)


def free_u_of(network: Any, factors: tuple[float, float, float, float] | None, version: FreeUVersion) -> FreeU | None:
    """FreeU for a network, its stages by the rule of ``FreeU``; None where none is asked for.

    Args:
        network: The denoiser.
        factors: b1, b2, s1, s2.
        version: See ``FreeU``.

    Raises:
        UserError: If the network has no skips to transform, or a factor is out of range.
    """
    if factors is None:
        return None
    if not isinstance(network, SkipNetwork):
        raise UserError(f"free_u is for U-Nets with skips, and {type(network).__name__} has none; leave it out")
    b1, b2, s1, s2 = factors
    return FreeU(widths=network.decoder_widths[:2], b=(b1, b2), s=(s1, s2), version=version)


@contextmanager
def transformed_skips(network: Any, transform: SkipTransform | None) -> Iterator[None]:
    """Let a network's decoder read transformed skips for a while; None changes nothing."""
    if transform is None:
        yield
        return
    before = network.skip_transform
    network.skip_transform = transform
    try:
        yield
    finally:
        network.skip_transform = before
