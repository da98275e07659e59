"""The RIN network. Its agreement with the official implementation is tested in tests/parity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from denoiser_contract import DenoiserContract, randomized
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.networks.rin import RIN
from generative.diffusion.networks.rin_blocks import grid_sinusoid, sinusoid


def make_rin(**options: Any) -> RIN:
    """A tiny RIN with random weights."""
    arguments = {
        "sample_size": 8,
        "patch_size": 2,
        "num_layers": (1, 2),
        "latent_slots": 6,
        "latent_dim": 16,
        "latent_num_heads": 2,
        "tape_dim": 12,
        "tape_mlp_ratio": 2,
        "rw_num_heads": 2,
        "num_classes": 4,
    }
    return randomized(RIN(**(arguments | options)))


READ = {"time_on_latent": False, "cond_on_latent": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "official": {},
    "both memories": {"self_cond": "latent+tape"},
    "memory of the tape": {"self_cond": "tape"},
    "no memory": {"self_cond": "none"},
    "all read": READ,
    "time read": {"time_on_latent": False},
    "class read, normed": {"cond_on_latent": False, "xattn_enc_ln": True},
    "writable": {**READ, "cond_tape_writable": True},
    "decoupled": {**READ, "cond_decoupled_read": True, "cond_dim": 8},
    "convolution": {"conv_kernel_size": 3, "conv_drop_units": 0.1},
    "even convolution": {"conv_kernel_size": 4, **READ, "cond_tape_writable": True},
    "fixed positions": {"latent_pos_encoding": "sin_cos", "tape_pos_encoding": "sin_cos"},
    "fixed and learned": {"latent_pos_encoding": "sin_cos_plus_learned", "tape_pos_encoding": "sin_cos_plus_learned"},
    "reads only": {"num_layers": (1, 0), "tape_mlp_ratio": 0},
    "one-hot": {"cond_proj": False, "num_classes": 16},
    "no classes": {"class_conditional": False, "num_classes": 1},
    "dropout": {"drop_path": 0.1, "drop_units": 0.1, "drop_att": 0.1, "class_dropout_prob": 0.1},
    "uneven heads": {"rw_num_heads": 5, "latent_num_heads": 3},
}


class TestDenoiser(DenoiserContract):
    variants = tuple(VARIANTS[name] for name in ("official", "both memories", "all read", "fixed and learned"))
    checkpointed = {"conv_kernel_size": 3}
    saved = {"tape_pos_encoding": "sin_cos_plus_learned"}

    def make(self, **options: Any) -> RIN:
        return make_rin(**options)

    def check_without_labels(self, network: RIN, sample: Tensor, times: Tensor) -> None:
        """Zeros are its paper's null condition, and no weights stand for one."""
        assert network(sample, times).prediction.shape == sample.shape


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> RIN:
    return make_rin(**VARIANTS[request.param])


def inputs(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.rand(count, generator=generator) * 1000, torch.arange(count)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "no classes"])
def test_a_representation_is_a_token_wherever_the_class_is_one(name: str) -> None:
    dim = 16 if name == "one-hot" else 6  # the vector itself is the token there
    model = make_rin(**(VARIANTS[name] | {"representation_dim": dim, "num_classes": 1, "class_dropout_prob": 0.1}))
    sample, told, _ = inputs()
    vector = torch.randn(3, dim, generator=torch.Generator().manual_seed(2))
    memory = model(sample, told, vector=vector).memory
    together = model(sample, told, torch.tensor([0, 1, 0]), memory, vector).prediction
    dropped = model(sample, told, None, memory, torch.zeros(3, dim)).prediction
    torch.testing.assert_close(together[1], dropped[1], rtol=1e-4, atol=1e-4)  # zeros are the null representation
    assert not torch.allclose(together[0], dropped[0])
    changed = model(sample, told, torch.tensor([0, 1, 0]), memory, torch.stack([vector[0], vector[0], vector[0]])).prediction
    torch.testing.assert_close(together[:2], changed[:2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[2], changed[2])
    assert not any("class_projection" in key for key in model.state_dict())


def test_every_option_makes_images_that_depend_on_their_own_inputs_only(variant: RIN) -> None:
    sample, told, labels = inputs()
    labels = labels.clamp(max=variant.config.num_classes - 1)
    first = variant(sample, told, labels)
    assert first.prediction.shape == sample.shape
    assert len(first.memory) == {"none": 0, "latent+tape": 2}.get(variant.config.self_cond, 1)
    together = variant(sample, told, labels, first.memory)
    assert variant.carries_memory == bool(first.memory)
    assert variant.carries_memory != torch.allclose(first.prediction, together.prediction)
    for row in range(len(sample)):
        memory = tuple(part[row : row + 1] for part in first.memory)
        alone = variant(sample[row : row + 1], told[row], labels[row : row + 1], memory)
        torch.testing.assert_close(alone.prediction[0], together.prediction[row], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.prediction, variant(sample, told / 2, labels, first.memory).prediction)
    changed = variant(sample, told, labels.flip(0), first.memory).prediction
    assert variant.config.class_conditional != torch.allclose(together.prediction, changed)


def test_every_parameter_has_a_part_in_the_output(variant: RIN) -> None:
    sample, told, labels = inputs()
    labels = labels.clamp(max=variant.config.num_classes - 1)
    memory = tuple(part.detach() for part in variant(sample, told, labels).memory)
    output = variant(sample, told, labels, memory)
    (output.prediction.square().sum() + sum(part.square().sum() for part in output.memory)).backward()
    without = [name for name, value in variant.named_parameters() if value.grad is None]
    # The class projection's rows of classes that are not there have none, which is a zero.
    assert without == []


def test_no_memory_is_zeros_and_a_fresh_network_reads_none() -> None:
    sample, told, labels = inputs()
    model = make_rin()
    first = model(sample, told, labels)
    zeros = tuple(torch.zeros_like(part) for part in first.memory)
    assert torch.equal(first.prediction, model(sample, told, labels, zeros).prediction)
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 4, "num_layers": (1,), "latent_slots": 4, "latent_dim": 16, "tape_dim": 8}
    fresh = RIN(**sizes, latent_num_heads=2, rw_num_heads=2)
    before = fresh(sample, told, labels)
    assert torch.equal(before.prediction, fresh(sample, told, labels, before.memory).prediction)


def test_positions_by_hand() -> None:
    waves = sinusoid(torch.tensor([2.0]), 4)
    expected = [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]
    torch.testing.assert_close(waves[0], torch.tensor(expected))
    grid = grid_sinusoid(2, 3, 4, extent=6.0)  # rows at 0 and 6, columns at 0, 3 and 6
    torch.testing.assert_close(grid[5], torch.tensor([math.sin(6), math.cos(6), math.sin(6), math.cos(6)]))
    torch.testing.assert_close(grid[1], torch.tensor([0.0, 1.0, math.sin(3), math.cos(3)]))
    line = grid_sinusoid(3, 1, 2, extent=1.0)
    torch.testing.assert_close(line[1], torch.tensor([math.sin(0.5), math.cos(0.5)]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "RIN: patch_size must divide sample_size 8, got 3"),
        ({"num_layers": ()}, "RIN: num_layers must be counts of 0 or more, of one block at least"),
        ({"rw_num_heads": 13}, "RIN: rw_num_heads must be at most 12"),
        ({"latent_num_heads": 17}, "RIN: latent_num_heads must be at most latent_dim 16, got 17"),
        ({"latent_slots": 2}, "RIN: latent_slots must be more than the 2 that time and class take, got 2"),
        ({"self_cond": "tape", "tape_mlp_ratio": 0}, "RIN: tape_mlp_ratio must be 0 or more, with self_cond of the tape"),
        ({"self_cond": "x"}, "RIN: self_cond must be one of none, latent, tape"),
        ({"latent_dim": 18}, "RIN: the width of the time's token must be a multiple of 4"),
        ({"cond_proj": False}, "RIN: without cond_proj the class's token has num_classes 4 values and must have 16"),
        ({"cond_proj": False, "representation_dim": 6}, "the class's token has representation_dim 6 values and must have 16"),
        ({**READ, "cond_dim": 8}, "RIN: cond_dim 8 other than tape_dim 12 needs cond_decoupled_read"),
        ({"cond_decoupled_read": True}, "RIN: cond_decoupled_read needs something to read"),
        ({"tape_pos_encoding": "rotary"}, "RIN: positions must be learned"),
        ({"latent_slots": 3, "latent_pos_encoding": "sin_cos"}, "RIN: positions sin_cos need at least 2 tokens, got 1"),
        ({"tape_dim": 13, "tape_pos_encoding": "sin_cos"}, "RIN: positions sin_cos on a grid need an even width, got 13"),
        ({"conv_kernel_size": 3, "tape_dim": 13}, "RIN: conv_kernel_size needs a tape_dim that 3 groups divide, got 13"),
        ({"class_conditional": False, "class_dropout_prob": 0.1}, "RIN: class_dropout_prob 0.1 has no meaning without classes"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_rin(**options)
