"""Sizes of images that are asked for in sampling, width before height, and which networks take them."""

from __future__ import annotations

import re
from typing import Any

from generative.core.errors import UserError


def parse_size(size: str) -> tuple[int, int]:
    """Width and height in pixels of ``WIDTHxHEIGHT``.

    Raises:
        UserError: If a text is not of that form.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    if match is None:
        raise UserError(f"size must be WIDTHxHEIGHT in pixels, such as 320x192 (320 wide, 192 high), got {size!r}")
    return int(match[1]), int(match[2])


def sample_shape(size: str | None, denoiser: Any, stride: int, companions: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the samples that a denoiser is to make.

    Args:
        size: ``WIDTHxHEIGHT`` in pixels; None for the denoiser's ``sample_size``.
        denoiser: One of any size says by its ``size_multiple`` what sides of samples must be multiples of.
        stride: Pixels per latent along an axis; 1 on pixels.
        companions: Networks by their role that run beside it at every step, a guide or a classifier.

    Raises:
        UserError: If a network is of one size only, or the sides are no multiples.
    """
    if size is None:
        return denoiser.config.sample_size, denoiser.config.sample_size
    width, height = parse_size(size)
    for role, network in {"denoiser": denoiser, **companions}.items():
        multiple = getattr(network, "size_multiple", None)
        if multiple is None:
            own = network.config.sample_size * stride
            raise UserError(
                f"size {size} cannot be made: the {role} is a {type(network).__name__}, which knows {own}x{own} only; leave size "
                "out, or train a FiT"
            )
        if width % (multiple * stride) or height % (multiple * stride):
            raise UserError(
                f"size must be WIDTHxHEIGHT in multiples of {multiple * stride} pixels, the {role}'s patches, got {size}"
            )
    return height // stride, width // stride
