"""ADM's U-Net and classifier. Their agreement with the official implementation is tested in tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from denoiser_contract import DenoiserContract, randomized
from torch import nn

from generative.core.errors import UserError
from generative.core.weights import load_network
from generative.diffusion.networks.adm import ADMUNet
from generative.diffusion.networks.adm_classifier import POOLS, ADMClassifier
from generative.layers.unet_blocks import AttentionBlock

TINY: dict[str, Any] = {
    "sample_size": 8,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "num_classes": 4,
    "num_head_channels": 16,
}


def make_unet(**options: Any) -> ADMUNet:
    return randomized(ADMUNet(**(TINY | options)), std=0.1)


def make_classifier(**options: Any) -> ADMClassifier:
    return randomized(ADMClassifier(**(TINY | options)), std=0.1)


def inputs(batch_size: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch_size, 3, 8, 8, generator=generator)
    return sample, torch.arange(batch_size) * 400, torch.arange(batch_size) % 4


VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"learn_sigma": False},
    {"use_scale_shift_norm": False},
    {"resblock_updown": False},
    {"resblock_updown": False, "conv_resample": False},
    {"num_head_channels": None, "num_heads": 2, "num_heads_upsample": 8},
    {"use_new_attention_order": True},
    {"attention_resolutions": ()},
    {"class_conditional": False},
    {"channel_mult": (0.5, 1), "model_channels": 64, "num_res_blocks": 2},
)


class TestDenoiser(DenoiserContract):
    variants = VARIANTS
    saved = {"num_heads_upsample": 2, "class_dropout_prob": 0.1}

    def make(self, **options: Any) -> ADMUNet:
        return make_unet(**options)


@pytest.mark.parametrize("options", VARIANTS)
def test_each_image_depends_on_its_own_inputs_only(options: dict[str, Any]) -> None:
    model = make_unet(**options)
    sample, timesteps, labels = inputs(3)
    together = model(sample, timesteps, labels)
    assert together.prediction.shape == sample.shape
    assert (together.variance is None) == (options.get("learn_sigma") is False)
    for row in range(3):
        alone = model(sample[row : row + 1], timesteps[row], labels[row : row + 1]).prediction
        torch.testing.assert_close(alone[0], together.prediction[row], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.prediction, model(sample, timesteps + 5, labels).prediction)
    changed = not torch.equal(together.prediction, model(sample, timesteps, labels.flip(0)).prediction)
    assert changed == options.get("class_conditional", True)


def test_fresh_network_predicts_zero() -> None:
    sample, timesteps, labels = inputs()
    assert not ADMUNet(**TINY)(sample, timesteps, labels).prediction.any()


def test_heads_of_the_decoder_may_be_others() -> None:
    model = make_unet(num_head_channels=None, num_heads=2, num_heads_upsample=8)
    heads = {name: module.num_heads for name, module in model.named_modules() if isinstance(module, AttentionBlock)}
    assert {count for name, count in heads.items() if name.startswith("decoder")} == {8}
    assert {count for name, count in heads.items() if not name.startswith("decoder")} == {2}


def test_attention_orders_are_permutations_of_one_another() -> None:
    legacy, new = make_unet(), make_unet(use_new_attention_order=True)
    state = legacy.state_dict()
    for key in [key for key in state if ".qkv." in key]:
        per_head = state[key].unflatten(0, (-1, 3, 16))  # (heads, 3, d, ...)
        state[key] = per_head.transpose(0, 1).flatten(0, 2)
    new.load_state_dict(state)
    torch.testing.assert_close(new(*inputs()).prediction, legacy(*inputs()).prediction)


def test_network_without_label_dropout_has_no_null_condition() -> None:
    model = make_unet()
    assert model.null_label is None
    with pytest.raises(UserError, match="no null condition"):
        model(*inputs()[:2])
    assert make_unet(class_conditional=False)(*inputs()[:2]).prediction.shape == (2, 3, 8, 8)


def test_upsampler_reads_the_image_behind_the_sample() -> None:
    model = make_unet(low_resolution_size=4)
    sample, timesteps, labels = inputs()
    small = torch.randn(2, 3, 4, 4)
    given = model(sample, timesteps, labels, low_resolution=small).prediction
    assert not torch.allclose(given, model(sample, timesteps, labels, low_resolution=small.flip(0)).prediction)
    resized = nn.functional.interpolate(small, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(given, model(sample, timesteps, labels, low_resolution=resized).prediction)
    with pytest.raises(UserError, match="is an upsampler and needs low_resolution images"):
        model(sample, timesteps, labels)
    with pytest.raises(UserError, match="is no upsampler"):
        make_unet()(sample, timesteps, labels, low_resolution=small)


def test_every_skip_passes_through_its_transform() -> None:
    model = make_unet(num_res_blocks=2, channel_mult=(1, 2, 2))
    assert model.decoder_widths == (64, 32)
    seen: list[int] = []

    def halve(hidden: torch.Tensor, skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(hidden.shape[1])
        return hidden, skip / 2

    plain = model(*inputs()).prediction
    model.skip_transform = halve
    assert not torch.allclose(model(*inputs()).prediction, plain)
    assert len(seen) == 9 and tuple(dict.fromkeys(seen)) == model.decoder_widths


def test_gradient_checkpointing_changes_no_gradient() -> None:
    for model in (make_unet(dropout=0.0).train(), make_classifier().train()):
        gradients = []
        for checkpointing in (False, True):
            model.zero_grad()
            if checkpointing:
                model.enable_gradient_checkpointing()
            sample, timesteps, labels = inputs()
            given = (sample, timesteps, labels) if isinstance(model, ADMUNet) else (sample, timesteps)
            output = model(*given)
            (output.prediction if isinstance(model, ADMUNet) else output).square().sum().backward()
            gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, checkpointed)


def test_save_and_load_is_bit_equal(tmp_path: Path) -> None:
    for model in (make_unet(num_heads_upsample=2, class_dropout_prob=0.1), make_classifier(pool="spatial")):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        loaded, _ = load_network(folder)
        assert type(loaded) is type(model)
        for key, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[key]), key


@pytest.mark.parametrize("pool", POOLS)
def test_classifier_gives_logits_and_a_gradient_by_the_sample(pool: Any) -> None:
    model = make_classifier(pool=pool)
    sample, timesteps, labels = inputs(3)
    sample.requires_grad_()
    logits = model(sample, timesteps)
    assert logits.shape == (3, 4)
    (gradient,) = torch.autograd.grad(logits[0].sum(), sample)
    assert gradient[0].any() and not gradient[1:].any()
    assert not torch.allclose(logits, model(sample, timesteps + 100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_mult": (1, 1.5)}, "48 channels does not divide into the 32 groups"),
        ({"channel_mult": ()}, "channel_mult is empty"),
        ({"sample_size": 9}, "sample_size 9 can't be halved 1 times"),
        ({"attention_resolutions": (8, 2)}, "attention_resolutions names 2, but the network's resolutions are 8, 4"),
        ({"num_head_channels": 24}, "num_head_channels must divide the width 64 of attention, got 24"),
        ({"num_head_channels": None, "num_heads": 5}, "attention over 64 channels can't have 5 heads"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"num_head_channels": 0}, "num_head_channels must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_unet(**options)
    with pytest.raises(UserError, match=message):
        make_classifier(pool="adaptive", **options)


def test_options_of_one_of_the_two_are_refused() -> None:
    with pytest.raises(UserError, match=r"class_dropout_prob must be in \[0, 1\), got 1"):
        make_unet(class_dropout_prob=1.0)
    with pytest.raises(UserError, match="has no meaning without classes"):
        make_unet(class_dropout_prob=0.1, class_conditional=False)
    with pytest.raises(UserError, match=r"low_resolution_size must be in 1\.\.8, got 16"):
        make_unet(low_resolution_size=16)
    with pytest.raises(UserError, match="pool must be one of adaptive, attention, spatial, spatial_v2, got 'max'"):
        make_classifier(pool="max")
    with pytest.raises(UserError, match="pool attention needs num_head_channels"):
        make_classifier(num_head_channels=None)
