"""The FiT network and packing. Its agreement with the official implementation is tested in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoiser_contract import DenoiserContract, randomized
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.networks.fit import FIT_SIZES, FiT
from generative.layers.packing import pack, pack_rows, to_images, to_patches, unpack, valid_tokens

SIZES = torch.tensor([[4, 4], [2, 3], [1, 5], [3, 2]])
LENGTH = 16


def make_fit(**options: Any) -> FiT:
    """A tiny FiT with random weights."""
    arguments = {"sample_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2}
    return randomized(FiT(**(arguments | {"num_classes": 4, "q_norm": "layernorm", "k_norm": "layernorm"} | options)))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Padded patches (B, C, N, p^2) with noise in the padding, times and labels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, LENGTH, 4, generator=generator), torch.tensor([0.1, 0.4, 0.7, 0.9]), torch.tensor([0, 1, 4, 3])


VARIANTS = [
    {},
    {"adaln_type": "lora", "adaln_lora_dim": 4, "learn_sigma": True},
    {"adaln_type": "swiglu", "use_swiglu": False, "norm_type": "w_rmsnorm", "q_norm": "w_layernorm", "k_norm": "rmsnorm"},
    {"custom_freqs": "ntk-aware", "online_rope": True, "ori_max_pe_len": 2, "decouple": True, "add_rel_pe_to_v": True},
    {"custom_freqs": "yarn", "online_rope": True, "ori_max_pe_len": 2, "time_shifting": 3.0},
    {"rotates": False, "qkv_bias": False, "ffn_bias": False, "adaln_bias": False},
]


class TestDenoiser(DenoiserContract):
    variants = ({}, {"adaln_type": "lora", "adaln_lora_dim": 4, "learn_sigma": True}, {"rotates": False, "qkv_bias": False})
    times = (0.1, 0.4, 0.7)
    saved = {"custom_freqs": "linear", "max_pe_len_h": 8, "max_pe_len_w": 8, "ori_max_pe_len": 4}

    def make(self, **options: Any) -> FiT:
        return make_fit(**options)


@pytest.mark.parametrize("options", VARIANTS)
def test_padded_and_packed_are_what_each_image_is_alone(options: dict[str, Any]) -> None:
    model = make_fit(**options)
    patches, times, labels = batch()
    padded = model(patches, times, labels, sizes=SIZES)
    packed = model(patches, times, labels, sizes=SIZES, packing=pack_rows(SIZES, LENGTH, LENGTH))
    for each in ("prediction", "variance") if model.config.learn_sigma else ("prediction",):
        torch.testing.assert_close(getattr(packed, each), getattr(padded, each), rtol=1e-4, atol=1e-5)
    for row, (height, width) in enumerate(SIZES.tolist()):
        image = to_images(patches[row : row + 1], height, width, 2)
        alone = model(image, times[row], labels[row : row + 1]).prediction
        torch.testing.assert_close(to_images(padded.prediction[row : row + 1], height, width, 2), alone, rtol=1e-4, atol=1e-5)
        assert not padded.prediction[row, :, height * width :].any()


def test_packing_changes_no_gradient() -> None:
    model = make_fit(adaln_type="lora", adaln_lora_dim=4)
    patches, times, labels = batch()
    gradients = []
    for packing in (None, pack_rows(SIZES, LENGTH, 20)):
        model.zero_grad()
        model(patches, times, labels, sizes=SIZES, packing=packing).prediction.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for padded, packed in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, packed, rtol=1e-3, atol=1e-4)


def test_rows_hold_every_token_once_and_few_rows_are_filled() -> None:
    places = pack_rows(SIZES, LENGTH, LENGTH)
    assert places.shape == (3, LENGTH)  # 16, 6 + 6, 5: first fit, the longest first
    expected = valid_tokens(SIZES, LENGTH).flatten().nonzero()[:, 0]
    assert torch.equal(places[places >= 0].sort().values, expected)
    values = torch.arange(4 * LENGTH * 2.0).reshape(4, LENGTH, 2)
    back = unpack(pack(values, places), places, 4, LENGTH)
    assert torch.equal(back, values * valid_tokens(SIZES, LENGTH)[..., None])


def test_an_image_longer_than_the_context_is_refused() -> None:
    with pytest.raises(UserError, match=r"5x4 tokens \(width x height\) is 20 tokens long and the context takes 16; make it"):
        pack_rows(torch.tensor([[2, 2], [4, 5]]), 32, 16)


def test_patches_are_images_of_any_size() -> None:
    model, sample = make_fit(), torch.randn(2, 3, 6, 20)
    assert torch.equal(to_images(to_patches(sample, 2), 3, 10, 2), sample)
    assert torch.equal(to_patches(sample, 2)[0, :, 11], sample[0, :, 2:4, 2:4].flatten(1))  # second row, second column
    assert model(sample, torch.tensor(0.5), torch.tensor([0, 4])).prediction.shape == sample.shape
    with pytest.raises(UserError, match=r"7x6 \(width x height\) cannot be cut into patches of 2x2"):
        model(sample[..., :7], torch.tensor(0.5), torch.tensor([0, 4]))


def test_longer_sides_are_scaled_for_and_trained_ones_are_not() -> None:
    plain = make_fit()
    scaled = make_fit(custom_freqs="ntk-aware", online_rope=True, ori_max_pe_len=4)
    label = torch.tensor([1])
    small, large = torch.randn(1, 3, 8, 6), torch.randn(1, 3, 8, 12)
    assert torch.equal(plain(small, torch.tensor(0.5), label).prediction, scaled(small, torch.tensor(0.5), label).prediction)
    difference = plain(large, torch.tensor(0.5), label).prediction - scaled(large, torch.tensor(0.5), label).prediction
    assert difference.abs().max() > 1e-3


def test_packed_images_have_a_representation_each() -> None:
    model = make_fit(representation_dim=6)
    patches, times, labels = batch()  # of which one is null
    vector = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    padded = model(patches, times, labels, sizes=SIZES, vector=vector).prediction
    packed = model(patches, times, labels, sizes=SIZES, packing=pack_rows(SIZES, LENGTH, LENGTH), vector=vector).prediction
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)
    for row, (height, width) in enumerate(SIZES.tolist()):
        image = to_images(patches[row : row + 1], height, width, 2)
        alone = model(image, times[row], labels[row : row + 1], vector=vector[row : row + 1]).prediction
        torch.testing.assert_close(to_patches(alone, 2)[0], packed[row, :, : height * width], rtol=1e-4, atol=1e-5)
    changed = model(
        patches, times, labels, sizes=SIZES, packing=pack_rows(SIZES, LENGTH, LENGTH), vector=vector.flip(0)
    ).prediction
    assert [torch.allclose(changed[row], packed[row]) for row in range(4)] == [False, False, True, False]


def test_fresh_network_predicts_zero() -> None:
    model = FiT(sample_size=8, hidden_size=16, depth=2, num_heads=2, num_classes=4, adaln_type="lora", adaln_lora_dim=4)
    assert not model(torch.randn(1, 4, 8, 8), torch.tensor(0.3), torch.tensor([0])).prediction.any()
    assert model.null_label == 4 and FiT(hidden_size=16, depth=1, num_heads=2, class_dropout_prob=0.0).null_label is None


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = make_fit(adaln_type="lora", adaln_lora_dim=4).train()
    patches, times, labels = batch()
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(patches, times, labels, sizes=SIZES).prediction.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize(("name", "millions"), [("FiT-XL", 824), ("FiTv2-XL", 671), ("FiTv2-3B", 3000)])
def test_published_sizes(name: str, millions: int) -> None:
    """Parameters as in the table of the authors' README (3B is told in billions)."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in FiT(sample_size=32, **FIT_SIZES[name]).parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.005 if millions < 1000 else 0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide sample_size 8, got 3"),
        ({"hidden_size": 18, "num_heads": 4}, "multiple of num_heads 4, got 18"),
        ({"hidden_size": 12}, "multiple of 4 and at least 4, got 6"),
        ({"adaln_type": "lora"}, "rank of adaln_type lora, got None with lora"),
        ({"adaln_lora_dim": 3}, "rank of adaln_type lora, got 3 with normal"),
        ({"custom_freqs": "ntk"}, "custom_freqs must be one of normal, linear, "),
        (
            {"custom_freqs": "yarn", "online_rope": True},
            "custom_freqs yarn needs ori_max_pe_len, a side in tokens, got None; give",
        ),
        ({"custom_freqs": "yarn", "ori_max_pe_len": 2}, "needs max_pe_len_h, .* got None; give one, or set online_rope"),
        ({"rope_theta": 1.0}, "rope_theta must be a number above 1"),
        ({"time_shifting": 0}, "time_shifting must be a positive number"),
        ({"context_size": 0}, "context_size must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_fit(**options)
