"""The DiT network. Its agreement with the official implementation is tested in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoiser_contract import DenoiserContract, randomized

from generative.core.errors import UserError
from generative.diffusion.networks.dit import DIT_SIZES, DiT


def make_dit(**options: Any) -> DiT:
    """A tiny DiT with random weights."""
    arguments = {"sample_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2}
    return randomized(DiT(**(arguments | {"num_classes": 4} | options)))


class TestDenoiser(DenoiserContract):
    variants = ({}, {"learn_sigma": True}, {"patch_size": 1}, {"class_dropout_prob": 0.0})
    saved = {"learn_sigma": True}

    def make(self, **options: Any) -> DiT:
        return make_dit(**options)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize(("sample_size", "patch_size", "channels"), [(8, 2, 3), (8, 1, 4), (12, 4, 1)])
def test_output_shape(sample_size: int, patch_size: int, channels: int, learn_sigma: bool) -> None:
    model = make_dit(sample_size=sample_size, patch_size=patch_size, in_channels=channels, learn_sigma=learn_sigma)
    output = model(torch.randn(2, channels, sample_size, sample_size), torch.tensor([0, 999]), torch.tensor([1, 4]))
    assert output.prediction.shape == (2, channels, sample_size, sample_size)
    assert (output.variance is not None) == learn_sigma and (output.variance is None or output.variance.shape[1] == channels)


def test_fresh_network_predicts_zero_and_blocks_are_identity() -> None:
    model = DiT(sample_size=8, hidden_size=16, depth=2, num_heads=2, num_classes=4)
    assert not model(torch.randn(1, 4, 8, 8), torch.tensor(3), torch.tensor([0])).prediction.any()
    tokens = torch.randn(1, 16, 16)
    assert torch.equal(model.blocks[0](tokens, torch.randn(1, 16)), tokens)


def test_patches_come_back_where_they_were_taken() -> None:
    model = make_dit(in_channels=2, patch_size=4)
    sample = torch.arange(2 * 8 * 8.0).reshape(1, 2, 8, 8)
    patches = [sample[0, :, row : row + 4, column : column + 4].permute(1, 2, 0).flatten() for row in (0, 4) for column in (0, 4)]
    assert torch.equal(model.assemble_patches(torch.stack(patches)[None]), sample)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide sample_size 8, got 3"),
        ({"hidden_size": 18}, "hidden_size must be a multiple of 4 and of num_heads 2, got 18"),
        ({"class_dropout_prob": 1.0}, r"class_dropout_prob must be in \[0, 1\), got 1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_dit(**options)


def test_published_size_has_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = DiT(learn_sigma=True, **DIT_SIZES["S"])
    # 33 M in arXiv 2212.09748, table 1 (DiT-S/2).
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == 33


@pytest.mark.parametrize("name", ["sample_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "num_classes"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"DiT: {name} must be at least 1, got 0"):
        make_dit(**{name: 0})
