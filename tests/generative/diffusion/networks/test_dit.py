"""The DiT network. Its agreement with the official implementation is tested in tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from generative.core.errors import UserError
from generative.diffusion.networks.dit import DIT_SIZES, DiT


def make_dit(**options: Any) -> DiT:
    """A tiny DiT whose zero-initialised layers are made random, so that everything shows in its output."""
    torch.manual_seed(0)
    arguments = {"sample_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2}
    model = DiT(**(arguments | {"num_classes": 4} | options))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


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


def test_each_image_depends_on_its_own_inputs_only() -> None:
    model = make_dit()
    sample, timesteps, labels = torch.randn(3, 3, 8, 8), torch.tensor([1.5, 20.0, 700.0]), torch.tensor([0, 1, 4])
    together = model(sample, timesteps, labels).prediction
    for row in range(3):
        alone = model(sample[row : row + 1], timesteps[row], labels[row : row + 1]).prediction
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together, model(sample, timesteps + 5, labels).prediction)
    assert not torch.allclose(together, model(sample, timesteps, labels.flip(0)).prediction)


def test_no_labels_is_the_null_label() -> None:
    model = make_dit()
    sample, timestep = torch.randn(2, 3, 8, 8), torch.tensor(5)
    labelled = model(sample, timestep, torch.tensor([4, 4]))
    assert torch.equal(model(sample, timestep).prediction, labelled.prediction)


def test_network_without_label_dropout_has_no_null_condition() -> None:
    model = make_dit(class_dropout_prob=0.0)
    assert model.null_label is None and len(model.label_embedding.weight) == 4
    with pytest.raises(UserError, match="no null condition"):
        model(torch.randn(1, 3, 8, 8), torch.tensor(5))


def test_patches_come_back_where_they_were_taken() -> None:
    model = make_dit(in_channels=2, patch_size=4)
    sample = torch.arange(2 * 8 * 8.0).reshape(1, 2, 8, 8)
    patches = [sample[0, :, row : row + 4, column : column + 4].permute(1, 2, 0).flatten() for row in (0, 4) for column in (0, 4)]
    assert torch.equal(model.assemble_patches(torch.stack(patches)[None]), sample)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = make_dit().train()
    sample = torch.randn(2, 3, 8, 8)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(sample, torch.tensor(5), torch.tensor([0, 1])).prediction.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_save_and_load_is_bit_equal(tmp_path: Path) -> None:
    model = make_dit(learn_sigma=True)
    model.save_pretrained(tmp_path)
    loaded = DiT.from_pretrained(tmp_path)
    for name, value in model.config.items():
        assert name.startswith("_") or loaded.config[name] == value
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key


def test_bfloat16_forward_runs() -> None:
    model = make_dit().to(torch.bfloat16)
    output = model(torch.randn(1, 3, 8, 8, dtype=torch.bfloat16), torch.tensor([5]), torch.tensor([0]))
    assert output.prediction.dtype == torch.bfloat16


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
