"""Official SAGAN options and keys; what the numbers must be is held by tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from generative.convert.biggan_pytorch import SAGANSource, attention_from_string, our_key
from generative.core.errors import UserError

GENERATOR = {"G_shared": False, "G_ch": 4, "dim_z": 6, "resolution": 32, "G_attn": "16_8", "n_classes": 3, "G_init": "xavier"}
DISCRIMINATOR = {"D_ch": 4, "resolution": 64, "D_attn": "16_8", "n_classes": 3, "D_init": "xavier"}


def build(generator: dict[str, Any] | None = None, discriminator: dict[str, Any] | None = None) -> dict[str, Any]:
    return SAGANSource().build(
        {"generator": {**GENERATOR, **(generator or {})}, "discriminator": {**DISCRIMINATOR, **(discriminator or {})}}
    )


def test_options_become_ours() -> None:
    networks = build({"G_shared": True, "shared_dim": 0, "mybn": True, "num_G_SVs": 2}, {"D_wide": False})
    config = networks["generator"].config
    assert (config.shared_embedding_dim, config.moving_variance, config.num_singular_values) == (6, "biased", 2)
    assert (config.resolution, config.channels, tuple(config.attention_resolutions)) == (32, 4, (16, 8))
    assert networks["discriminator"].config.wide is False


def test_training_options_are_consumed() -> None:
    build(
        {"G_lr": 1e-4, "G_B1": 0.0, "G_B2": 0.999, "adam_eps": 1e-8, "G_mixed_precision": False}, {"D_lr": 4e-4, "D_fp16": False}
    )


@pytest.mark.parametrize(
    ("generator", "discriminator", "message"),
    [
        ({"hier": True}, {}, "option hier=True"),
        ({"G_fp16": True}, {}, "option G_fp16=True"),
        ({"G_activation": "swish"}, {}, "option G_activation='swish'"),
        ({"norm_style": "gn"}, {}, "option norm_style='gn'"),
        ({"cross_replica": True}, {}, "option cross_replica=True"),
        ({"G_param": "SVD"}, {}, "option G_param='SVD'"),
        ({"G_colour": 3}, {}, "generator option 'G_colour' of BigGAN-PyTorch is unknown"),
        ({"resolution": 48}, {}, "resolution must be one of"),
        ({"G_attn": "sixty"}, {}, "attention resolutions of BigGAN-PyTorch look like"),
        ({}, {"D_param": None}, "option D_param=None"),
        ({}, {"D_depth": 2}, "discriminator option 'D_depth'"),
    ],
)
def test_unknown_or_unsupported_options_are_loud(generator: dict[str, Any], discriminator: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(generator, discriminator)


def test_unknown_modules_are_loud() -> None:
    with pytest.raises(UserError, match="modules generator and discriminator"):
        SAGANSource().build({"encoder": {}})


def test_attention_strings() -> None:
    assert attention_from_string("64_16", [8, 16, 32, 64]) == (64, 16)
    assert attention_from_string("0", [8, 16]) == ()
    assert attention_from_string("64", [8, 16, 32]) == ()


def test_keys_become_ours() -> None:
    assert our_key("generator", "blocks.3.0.bn2.gain.weight") == "blocks.3.norm2.gain.weight"
    assert our_key("generator", "blocks.3.0.bn2.stored_var") == "blocks.3.norm2.norm.running_var"
    assert our_key("generator", "blocks.3.0.bn2.bn.stored_var") == "blocks.3.norm2.norm.running_var"
    assert our_key("generator", "output_layer.2.u0") == "conv_out.spectral_norm.u"
    assert our_key("discriminator", "blocks.1.1.theta.sv0") == "attentions.1.query.spectral_norm.singular_values"
    assert our_key("discriminator", "embed.weight") == "class_embedding.weight"
    assert our_key("discriminator", "blocks.1.0.bn1.stored_mean") is None


def test_stray_keys_and_standing_sums_are_loud() -> None:
    source, networks = SAGANSource(), build()
    with pytest.raises(UserError, match="no place for the official keys mystery.weight"):
        source.convert_state("generator", {"mystery.weight": torch.zeros(1)}, networks["generator"])
    with pytest.raises(UserError, match="standing sums"):
        source.convert_state("generator", {"blocks.0.0.bn1.bn.accumulation_counter": torch.ones(1)}, networks["generator"])


def test_spectral_vectors_are_stacked_in_their_order() -> None:
    source, networks = SAGANSource(), build({"num_G_SVs": 2})
    state = {
        "linear.u1": torch.full((1, 4), 1.0),
        "linear.u0": torch.zeros(1, 4),
        "linear.sv1": torch.ones(1),
        "linear.sv0": torch.zeros(1),
    }
    converted = source.convert_state("generator", state, networks["generator"])
    torch.testing.assert_close(converted["linear.spectral_norm.u"], torch.stack([torch.zeros(4), torch.ones(4)]))
    torch.testing.assert_close(converted["linear.spectral_norm.singular_values"], torch.tensor([0.0, 1.0]))
