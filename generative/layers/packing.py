"""Images of several sizes in one batch: sequences padded to one length, and several images packed into a sequence.

A batch of padded sequences is (B, C, N, p^2): the N patches of p x p values of each image in raster order, padding behind them.
Packed, rows of L tokens hold several images each; ``places`` (R, L) says which of the B N padded places stands where, -1 for
none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from generative.core.errors import UserError


def valid_tokens(sizes: Tensor, length: int) -> Tensor:
    """(B, N) bool: which of N padded places of images of (B, 2) sizes in tokens hold a token."""
    return torch.arange(length, device=sizes.device) < sizes.prod(1)[:, None]


def to_patches(sample: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) as patches (B, C, N, p^2) in raster order.

    Raises:
        UserError: If height or width is no multiple of the patch.
    """
    height, width = sample.shape[-2:]
    if height % patch_size or width % patch_size:
        raise UserError(f"an image of {width}x{height} (width x height) cannot be cut into patches of {patch_size}x{patch_size}")
    cut = sample.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (B, C, h, p, w, p)
    return cut.transpose(3, 4).flatten(4).flatten(2, 3)  # (B, C, N, p^2)


def to_images(patches: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Patches (B, C, N, p^2) of images of height x width tokens, padding left off, as (B, C, H, W)."""
    grid = patches[:, :, : height * width].unflatten(3, (patch_size, -1)).unflatten(2, (height, width))  # (B, C, h, w, p, p)
    return grid.transpose(3, 4).flatten(4).flatten(2, 3)


def pack_rows(sizes: Tensor, length: int, row_length: int) -> Tensor:
    """Put images of a batch into as few rows as first-fit decreasing finds.

    Args:
        sizes: (B, 2) heights and widths in tokens, on the CPU.
        length: N, padded length of an image.
        row_length: L.

    Returns:
        ``places`` (R, L) int64.

    Raises:
        UserError: If an image has more tokens than a row or its padded sequence.
    """
    counts = sizes.prod(1).tolist()
    if max(counts) > min(length, row_length):
        height, width = sizes[counts.index(max(counts))].tolist()
        raise UserError(
            f"an image of {width}x{height} tokens (width x height) is {max(counts)} tokens long and the context takes "
            f"{min(length, row_length)}; make it smaller, or context_size larger"
        )
    rows: list[list[int]] = []
    free: list[int] = []
    for image in sorted(range(len(counts)), key=lambda image: -counts[image]):
        row = next((row for row, space in enumerate(free) if space >= counts[image]), None)
        if row is None:
            rows.append([])
            free.append(row_length)
            row = len(rows) - 1
        rows[row].append(image)
        free[row] -= counts[image]
    return torch.stack([row_places(row, counts, length, row_length) for row in rows])


def row_places(images: Sequence[int], counts: Sequence[int], length: int, row_length: int) -> Tensor:
    """``places`` (L,) of a row that holds some images one after the other."""
    tokens = torch.cat([torch.arange(counts[image]) + image * length for image in images])
    return torch.nn.functional.pad(tokens, (0, row_length - len(tokens)), value=-1)


def pack(values: Tensor, places: Tensor) -> Tensor:
    """Padded values (B, N, X) in packed rows (R, L, X); what stands where nothing is packed is of no account."""
    return values.flatten(0, 1)[places.clamp(min=0)]


def unpack(values: Tensor, places: Tensor, batch_size: int, length: int) -> Tensor:
    """Packed values (R, L, X) back in padded sequences (B, N, X), zero where nothing was packed."""
    dump = batch_size * length  # all padding of the rows goes behind the last place
    padded = values.new_zeros(dump + 1, values.shape[-1])
    index = torch.where(places < 0, dump, places).flatten()
    return padded.index_copy(0, index, values.flatten(0, 1))[:-1].unflatten(0, (batch_size, length))
