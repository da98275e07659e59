"""Rotary position embeddings over a token grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AxialRotaryEmbedding(nn.Module):
    """Rotary positions (arXiv 2104.09864) on a grid with a class slot in front, as in LlamaGen (arXiv 2406.06525).

    The pairs of a head are interleaved, (0, 1), (2, 3), ...: the first half of the pairs turns with the row of a token, the
    second half with its column, pair i of a half by the angle ``coordinate * base ** (-2 i / (d / 2))``. Slot 0 holds the
    class, slot s the token s - 1 of the grid in raster order.

    Args:
        grid_height: Rows of the token grid.
        grid_width: Columns of the token grid.
        head_size: d, width of an attention head; a multiple of 4.
        base: Base of the geometric series of frequencies.
        zero_class_slot: Cosine and sine of the class slot are 0, so that its query and key vanish (LlamaGen's published
            networks); otherwise they are 1 and 0, which leaves the slot unrotated, a fixed origin for the grid.
    """

    table: Tensor

    def __init__(
        self, grid_height: int, grid_width: int, head_size: int, base: float = 10000.0, zero_class_slot: bool = False
    ) -> None:
        super().__init__()
        if head_size % 4:
            raise ValueError(f"rotary positions on a grid need a head size that is a multiple of 4, got {head_size}")
        self.head_size = head_size
        self.base = base
        self.zero_class_slot = zero_class_slot
        rows = torch.arange(grid_height).repeat_interleave(grid_width)
        columns = torch.arange(grid_width).repeat(grid_height)
        half = head_size // 2
        frequencies = base ** -(torch.arange(0, half, 2, dtype=torch.float32) / half)  # (d / 4,)
        coordinates = torch.stack([rows, columns], dim=1).float()  # (L, 2)
        angles = (coordinates[:, :, None] * frequencies).flatten(1)  # (L, d / 2)
        rotations = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (L, d / 2, 2)
        class_slot = torch.tensor([0.0 if zero_class_slot else 1.0, 0.0]).expand(1, half, 2)
        table = torch.cat([class_slot, rotations])
        # Kept as the bits of the numbers: a network cast to bfloat16 must not lose the precision of its positions.
        self.register_buffer("table", table.view(torch.int32), persistent=False)  # (1 + L, d / 2, 2)

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Angles of some slots of the sequence.

        Args:
            slots: (S,) int64 in [0, L].

        Returns:
            Cosines and sines, each (S, d / 2) float32.
        """
        cos, sin = self.table[slots].view(torch.float32).unbind(-1)
        return cos, sin


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the interleaved pairs of queries or keys.

    Args:
        x: (B, heads, S, d).
        cos: (S, d / 2) float32.
        sin: (S, d / 2) float32.

    Returns:
        (B, heads, S, d) of x's dtype; computed in float32.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():  # one product of complex numbers: see below
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (B, heads, S, d / 2)
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # 2 x (B, heads, S, d / 2)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)  # (B, heads, S, d)
