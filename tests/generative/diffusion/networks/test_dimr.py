"""The DiMR network. Its agreement with the official implementation is tested in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoiser_contract import DenoiserContract, randomized

from generative.core.errors import UserError
from generative.diffusion.networks.dimr import DIMR_SIZES, DiMR

THREE: dict[str, Any] = {
    "block_types": ("transformer", "convnext", "convnext"),
    "hidden_sizes": (8, 6, 4),
    "mlp_sizes": (10, 8, 6),
    "num_blocks": (2, 3, 1),
    "num_heads": (2, 1, 1),
    "kernel_sizes": (7, 3, 5),
    "downsamplings": (2, 1, 1),
    "patch_sizes": (2, 2, 1),
    "final_kernel_sizes": (3, 1, 3),
    "dropouts": (0.0, 0.0, 0.0),
}


def make_dimr(**options: Any) -> DiMR:
    """A tiny DiMR of large weights, so that everything shows in its output."""
    arguments: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 3,
        "hidden_sizes": (8, 6),
        "mlp_sizes": (12, 8),
        "num_heads": (2, 1),
    }
    return randomized(DiMR(**(arguments | {"num_classes": 4, "num_blocks": (2, 1)} | options)))


class TestDenoiser(DenoiserContract):
    variants = ({}, THREE, {"norm": "rms_norm"}, {"class_conditional": False, "class_dropout_prob": 0.0})
    times = (-4.0, 0.1, 3.0)
    saved = THREE

    def make(self, **options: Any) -> DiMR:
        return make_dimr(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "td_layer_norm"},
        {"norm": "rms_norm", "detach_lower": True},
        {"norm": "ada_rms_norm", "dropouts": (0.1, 0.2)},
        {"positions": "axial_rope", "class_conditional": False, "class_dropout_prob": 0.0, "hidden_sizes": (10, 6)},
        THREE,
    ],
)
def test_every_branch_predicts_at_its_own_size(options: dict[str, Any]) -> None:
    model = make_dimr(**options)
    output = model(torch.randn(2, 3, 8, 8), torch.tensor([-3.0, 2.0]), torch.tensor([0, 3]))
    sizes = [level.shape[-1] for level in (*output.pyramid, output.prediction)]
    assert sizes == ([2, 4, 8] if options is THREE else [4, 8]) and len(sizes) == model.pyramid_levels
    assert all(len(level) == 2 and level.shape[1] == 3 for level in (*output.pyramid, output.prediction))
    smaller = model(torch.randn(1, 3, 4, 4), torch.tensor(0.0), torch.tensor([1]))  # a corner of the learned positions
    assert smaller.prediction.shape == (1, 3, 4, 4)


@pytest.mark.parametrize("detach_lower", [False, True])
def test_gradients_of_a_branch_reach_the_branch_below_unless_kept_from_it(detach_lower: bool) -> None:
    model = make_dimr(detach_lower=detach_lower)
    model(torch.randn(1, 3, 8, 8), torch.tensor(0.0), torch.tensor([1])).prediction.sum().backward()
    assert (model.stages[0].blocks[0].mlp.gate.weight.grad is None) is detach_lower
    assert model.stages[1].blocks[0].conv.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_sizes": (8,)}, "must have one value for each branch, got 2, 1, 2"),
        ({"num_heads": (3, 1)}, "num_heads must divide the hidden_size 8 of its branch, got 3"),
        ({"kernel_sizes": (7, 4)}, "kernel_size of a branch must be odd, got 4"),
        ({"mlp_sizes": (0, 4)}, "mlp_size of a branch must be at least 1, got 0"),
        ({"dropouts": (0.0, 1.0)}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"block_types": ("transformer", "mamba")}, "block_types must be transformer or convnext, got 'mamba'"),
        ({"patch_sizes": (3, 1)}, r"downsamplings \* patch_sizes must divide sample_size 8, got 3"),
        ({"patch_sizes": (4, 2)}, "must grow by whole factors to 8, got 2, 4"),
        ({"norm": "batch_norm"}, "norm and positions must be one each of td_layer_norm, .* got 'batch_norm'"),
        ({"positions": "axial_rope"}, "axial_rope has no place for a class token"),
        ({"block_types": ("convnext", "convnext")}, "come in as tokens of transformers, and there are none"),
        ({"positions": "axial_rope", "class_conditional": False, "class_dropout_prob": 0.0, "representation_dim": 6}, "no place"),
        ({"class_conditional": False}, "class_dropout_prob 0.1 has no meaning without classes"),
    ],
)
def test_what_makes_no_branches_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_dimr(**options)


@pytest.mark.parametrize(("size", "millions"), [("XL/2R", 505), ("G/2R", 1056)])
def test_published_sizes_have_their_published_numbers_of_parameters(size: str, millions: int) -> None:
    with torch.device("meta"):
        model = DiMR(**DIMR_SIZES[size])
    # 505 M and 1.06 B in the official README.
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_every_transformer_has_a_token_of_the_representation() -> None:
    of_transformers = make_dimr(block_types=("transformer", "transformer"), num_heads=(2, 2), representation_dim=6)
    embedded = [name for name, _ in of_transformers.named_parameters() if "vector_embedding" in name]
    assert [name for name in embedded if name.endswith("null")] == [f"stages.{place}.vector_embedding.null" for place in (0, 1)]
    assert not any("vector_embedding" in name for name, _ in make_dimr(**THREE).named_parameters())
