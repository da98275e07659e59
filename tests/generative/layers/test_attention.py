"""Self-attention and MLP."""

from __future__ import annotations

import math

import pytest
import torch

from generative.layers.attention import MLP, SelfAttention


def attend_by_hand(attention: SelfAttention, tokens: torch.Tensor) -> torch.Tensor:
    """Softmax attention written out, one head and image at a time."""
    batch, _, dim = tokens.shape
    width = dim // attention.num_heads
    query, key, value = attention.qkv(tokens).chunk(3, dim=-1)
    mixed = torch.zeros_like(tokens)
    for image in range(batch):
        for head in range(attention.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[image, :, part] @ key[image, :, part].T / math.sqrt(width)
            mixed[image, :, part] = scores.softmax(-1) @ value[image, :, part]
    return attention.out(mixed)


def test_attention_equals_its_formula() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, 3)
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(attention(tokens), attend_by_hand(attention, tokens))


def test_attention_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="num_heads must divide the width 12, got 5"):
        SelfAttention(12, 5)


def test_mlp_gelu_variants_differ_a_little() -> None:
    torch.manual_seed(0)
    tanh, exact = MLP(4, 8, "tanh"), MLP(4, 8, "none")
    exact.load_state_dict(tanh.state_dict())
    tokens = torch.randn(3, 4)
    difference = (tanh(tokens) - exact(tokens)).abs().max()
    assert 0 < difference < 1e-2
