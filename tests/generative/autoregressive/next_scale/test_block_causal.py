"""Block-causal attention: slices cover every query once, and equal the masked square."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from generative.autoregressive.next_scale.block_causal import (
    QuerySlice,
    block_causal_attention,
    query_slices,
    scale_offsets,
)

PYRAMIDS = [(1, 2, 3), (1, 2, 3, 4, 12, 13), (12, 2, 3), (3,), (1, 12, 2, 12)]


def test_offsets() -> None:
    assert scale_offsets((1, 2, 3)) == [0, 1, 5, 14]


def test_large_scales_have_a_call_of_their_own() -> None:
    assert query_slices((1, 2, 3)) == [QuerySlice(0, 14, True)]
    assert query_slices((1, 2, 12, 13)) == [QuerySlice(0, 5, True), QuerySlice(5, 149, False), QuerySlice(149, 318, False)]
    assert query_slices((1, 2, 3), 1, 2) == [QuerySlice(1, 5, False)]  # one scale sees all keys so far: no mask


@pytest.mark.parametrize("patch_nums", PYRAMIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_equal_the_masked_square(patch_nums: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = [side * side for side in patch_nums]
    levels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    q, k, v = torch.randn(3, 2, 2, sum(sizes), 8, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=levels[:, None] >= levels, scale=0.3)
    ours = block_causal_attention(q.to(dtype), k.to(dtype), v.to(dtype), query_slices(patch_nums), levels, scale=0.3)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.03)
    first, last = 1, len(sizes)  # with the smaller scales in a cache
    if last > 1:
        start = sizes[0]
        slices = query_slices(patch_nums, first, last)
        part = block_causal_attention(q[:, :, start:].float(), k.float(), v.float(), slices, levels, 0.3)
        torch.testing.assert_close(part.double(), expected[:, :, start:], rtol=0, atol=1e-5)
