"""The U-ViT network. Its agreement with the official implementation is tested in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoiser_contract import DenoiserContract, randomized

from generative.core.errors import UserError
from generative.diffusion.networks.u_vit import UVIT_SIZES, UViT


def make_u_vit(**options: Any) -> UViT:
    """A tiny U-ViT of large weights, so that everything shows in its output."""
    arguments = {"sample_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 4, "num_heads": 2}
    return randomized(UViT(**(arguments | {"num_classes": 4} | options)))


class TestDenoiser(DenoiserContract):
    variants = ({}, {"class_conditional": False, "class_dropout_prob": 0.0}, {"time_mlp": True, "skip_connections": False})
    saved = {"time_mlp": True}

    def make(self, **options: Any) -> UViT:
        return make_u_vit(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_conditional": False, "class_dropout_prob": 0.0},
        {"time_mlp": True, "qkv_bias": True, "final_conv": False, "skip_connections": False, "class_dropout_prob": 0.0},
        {"sample_size": 12, "patch_size": 4, "in_channels": 1, "depth": 1},
        {"hidden_size": 15, "num_heads": 3, "depth": 3},
    ],
)
def test_output_has_the_samples_shape(options: dict[str, Any]) -> None:
    model = make_u_vit(**options)
    sample = torch.randn(2, model.config.in_channels, model.config.sample_size, model.config.sample_size)
    output = model(sample, torch.tensor([1, 999]), torch.tensor([0, 3]))
    assert output.prediction.shape == sample.shape and output.variance is None
    assert len(model.in_blocks) == len(model.out_blocks) == model.config.depth // 2


def test_deep_blocks_read_the_shallow_ones_opposite_them() -> None:
    model = make_u_vit()
    put_out, read = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name in ("in_blocks.0", "in_blocks.1", "out_blocks.0", "out_blocks.1"):
        block = model.get_submodule(name)
        block.register_forward_hook(lambda block, given, made, name=name: put_out.update({name: made}))
        block.register_forward_pre_hook(lambda block, given, name=name: read.update({name: given[-1]}))
    model(torch.randn(1, 3, 8, 8), torch.tensor(3), torch.tensor([1]))
    assert torch.equal(read["out_blocks.0"], put_out["in_blocks.1"])
    assert torch.equal(read["out_blocks.1"], put_out["in_blocks.0"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "UViT: patch_size must divide sample_size 8, got 3"),
        ({"num_heads": 3}, "UViT: hidden_size must be a multiple of num_heads 3, got 16"),
        ({"mlp_ratio": 0.0}, "UViT: mlp_ratio must be positive, got 0.0"),
        ({"class_dropout_prob": 1.0}, r"class_dropout_prob must be in \[0, 1\), got 1.0"),
        ({"class_conditional": False}, "class_dropout_prob 0.1 has no meaning without classes"),
        ({"depth": 0}, "UViT: depth must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_u_vit(**options)


@pytest.mark.parametrize(
    ("size", "options", "millions"),
    [
        ("S", {"patch_size": 2, "in_channels": 3, "class_conditional": False, "class_dropout_prob": 0.0}, 44),
        ("M", {"sample_size": 64, "patch_size": 4, "in_channels": 3, "class_dropout_prob": 0.0}, 131),
        ("L", {}, 287),
        ("H", {}, 501),
    ],
)
def test_published_sizes_have_their_published_numbers_of_parameters(size: str, options: dict[str, Any], millions: int) -> None:
    with torch.device("meta"):
        model = UViT(**UVIT_SIZES[size], **options)
    # arXiv 2209.12152, table 1.
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_a_representation_is_the_token_of_the_class_even_where_there_are_no_classes() -> None:
    without = {"class_conditional": False, "class_dropout_prob": 0.0}
    model, plain = make_u_vit(representation_dim=6, **without), make_u_vit(**without)
    assert model.position_embedding.shape[1] == plain.position_embedding.shape[1] + 1 == make_u_vit().position_embedding.shape[1]
    tokens = model.embed(torch.zeros(2, 3, 8, 8), torch.tensor(3), None, torch.eye(2, 6))
    expected = model.vector_embedding.linear(torch.eye(2, 6)) + model.position_embedding[:, 0]
    torch.testing.assert_close(tokens[:, 0], expected)
