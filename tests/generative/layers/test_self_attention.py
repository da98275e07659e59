"""Self-attention over a feature map, against the formula written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from generative.core.errors import UserError
from generative.layers.gan_blocks import plain_conv
from generative.layers.self_attention import SelfAttention2d, attention_after


def test_starts_as_the_identity() -> None:
    sample = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(SelfAttention2d(8, plain_conv)(sample), sample, rtol=0, atol=0)


def test_equals_the_formula_position_by_position() -> None:
    torch.manual_seed(0)
    layer = SelfAttention2d(16, plain_conv)
    layer.gamma.data.fill_(0.7)
    sample = torch.randn(1, 16, 4, 4)
    query = layer.query(sample)[0]  # (2, 4, 4)
    key = F.max_pool2d(layer.key(sample), 2)[0].flatten(1)  # (2, 4)
    value = F.max_pool2d(layer.value(sample), 2)[0].flatten(1)  # (8, 4)
    mixed = torch.zeros(1, 8, 4, 4)
    for row in range(4):
        for column in range(4):
            weights = torch.softmax(query[:, row, column] @ key, dim=0)
            mixed[0, :, row, column] = value @ weights
    torch.testing.assert_close(layer(sample), sample + 0.7 * layer.out(mixed))


def test_keeps_channels_last_and_has_two_gradients() -> None:
    torch.manual_seed(0)
    layer = SelfAttention2d(8, plain_conv).double()
    layer.gamma.data.fill_(0.7)
    sample = torch.randn(2, 8, 4, 2, dtype=torch.float64, requires_grad=True)
    last = sample.detach().to(memory_format=torch.channels_last)
    out = layer.to(memory_format=torch.channels_last)(last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, layer(sample))
    assert torch.autograd.gradcheck(layer, (sample,))
    assert torch.autograd.gradgradcheck(layer, (sample,))  # penalties on the discriminator's gradient need it


def test_too_few_channels_is_told() -> None:
    with pytest.raises(UserError, match="at least 8 channels, got 4"):
        SelfAttention2d(4, plain_conv)


def test_layers_stand_after_the_blocks_of_their_size() -> None:
    layers = attention_after([16, 8, 4, 4], [8, 16, 24, 32], (4, 16), plain_conv)
    assert {index: layer.query.in_channels for index, layer in layers.items()} == {"0": 8, "2": 24, "3": 32}
    assert len(attention_after([16, 8], [8, 16], (), plain_conv)) == 0
