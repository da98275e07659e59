"""The compact U-Net."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoiser_contract import DenoiserContract, randomized

from generative.core.errors import UserError
from generative.diffusion.networks.compact_blocks import SeparableConv
from generative.diffusion.networks.compact_unet import CompactUNet
from generative.layers.multi_query import MultiQueryAttention


def make_unet(**options: Any) -> CompactUNet:
    """A tiny network with random weights."""
    arguments = {
        "sample_size": 8,
        "in_channels": 3,
        "widths": (32, 64),
        "num_res_blocks": 1,
        "transformer_depth": (1, 1),
        "self_attention": (False, True),
        "num_head_channels": 16,
        "context_dim": 16,
        "num_classes": 4,
    }
    return randomized(CompactUNet(**(arguments | options)), std=0.1)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 500.0, 900.0]), torch.arange(3)


class TestDenoiser(DenoiserContract):
    variants = ({}, {"transformer_depth": (0, 2), "expansion": 1, "num_res_blocks": 2, "dropout": 0.1})

    def make(self, **options: Any) -> CompactUNet:
        return make_unet(**options)


def test_heads_share_a_key_and_a_value() -> None:
    torch.manual_seed(0)
    attention = MultiQueryAttention(32, 8, num_heads=4)
    assert attention.key_value.weight.shape == (2 * 8, 8)
    tokens, context = torch.randn(2, 5, 32), torch.randn(2, 3, 8)
    query = attention.query_norm(attention.query(tokens).reshape(2, 5, 4, 8))
    key, value = attention.key_value(context).chunk(2, dim=-1)
    weights = torch.einsum("blhd,bmd->bhlm", query, attention.key_norm(key)).div(8**0.5).softmax(-1)
    wanted = attention.out(torch.einsum("bhlm,bmd->blhd", weights, value).flatten(2))
    torch.testing.assert_close(attention(tokens, context), wanted, rtol=1e-4, atol=1e-5)


def test_a_separable_convolution_widens_between_its_parts() -> None:
    conv = SeparableConv(4, 6, expansion=2, stride=2)
    assert [each.weight.shape for each in conv.depthwise] == [(4, 1, 3, 3)] * 2
    assert conv.pointwise.weight.shape == (6, 8, 1, 1)
    assert conv(torch.randn(1, 4, 8, 8)).shape == (1, 6, 4, 4)


def test_the_decoders_skips_may_be_transformed() -> None:
    model = make_unet()
    widths: list[int] = []

    def transform(hidden: torch.Tensor, skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        widths.append(hidden.shape[1])
        return hidden, skip

    model.skip_transform = transform
    model(*inputs())
    assert widths == [64, 64, 64, 32] and set(widths) == set(model.decoder_widths)


def test_the_published_size_has_about_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = CompactUNet()
    # 372 M in the abstract of arXiv 2412.09619.
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(372e6, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_size": 7}, "CompactUNet: sample_size must be a multiple of 2 for 2 resolutions, got 7"),
        ({"transformer_depth": (1,)}, r"must have as many entries as widths \(2\), got 1 and 2"),
        ({"transformer_depth": (1, -1)}, "CompactUNet: transformer_depth must be 0 or more"),
        ({"num_head_channels": 48}, "multiples of num_head_channels 48, got 32"),
        ({"widths": (48, 64)}, "a map of 48 channels does not divide into the 32 groups"),
        ({"num_class_tokens": 0}, "CompactUNet: num_class_tokens must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_unet(**options)


def test_keys_and_values_come_from_the_representation() -> None:
    model = make_unet(representation_dim=6, num_class_tokens=3)
    tokens = model.embed_labels(torch.tensor([0, 4]), 2, torch.randn(2, 6))
    assert tokens.shape == (2, 3, 16) and not torch.allclose(tokens[0], tokens[1])
    assert not any("class_tokens" in key or "label_embedding" in key for key in model.state_dict())
