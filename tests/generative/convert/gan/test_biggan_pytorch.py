"""Official SAGAN and BigGAN options and keys; what the numbers must be is held by tests/parity."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative.convert import load_official
from generative.convert.gan.biggan_options import attention_from_string
from generative.convert.gan.biggan_pytorch import BigGANSource, SAGANSource, our_key
from generative.core.errors import UserError
from pipelines.gan import GANImagePipeline

GENERATOR = {"G_shared": False, "G_ch": 4, "dim_z": 6, "resolution": 32, "G_attn": "16_8", "n_classes": 3, "G_init": "xavier"}
DISCRIMINATOR = {"D_ch": 4, "resolution": 64, "D_attn": "16_8", "n_classes": 3, "D_init": "xavier"}

BIGGAN_GENERATOR = {**GENERATOR, "G_shared": True, "hier": True, "dim_z": 13, "shared_dim": 5, "G_init": "ortho"}

# Our names -> official, written down apart from the tables under test.
OFFICIAL_NAMES = [
    (r"^blocks\.(\d+)\.norm(\d)\.norm\.running_", r"blocks.\1.0.bn\2.stored_"),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"blocks.\1.0.bn\2."),
    (r"^blocks\.(\d+)\.shortcut\.", r"blocks.\1.0.conv_sc."),
    (r"^blocks\.(\d+)\.conv", r"blocks.\1.0.conv"),
    (r"^attentions\.(\d+)\.query\.", r"blocks.\1.1.theta."),
    (r"^attentions\.(\d+)\.key\.", r"blocks.\1.1.phi."),
    (r"^attentions\.(\d+)\.value\.", r"blocks.\1.1.g."),
    (r"^attentions\.(\d+)\.out\.", r"blocks.\1.1.o."),
    (r"^attentions\.(\d+)\.gamma", r"blocks.\1.1.gamma"),
    (r"^norm_out\.running_", "output_layer.0.stored_"),
    (r"^norm_out\.", "output_layer.0."),
    (r"^conv_out\.", "output_layer.2."),
]
VECTORS = ".spectral_norm.u"
VALUES = ".spectral_norm.singular_values"


def official_state(module: str, network: nn.Module, has_own_norm: bool = False) -> dict[str, Tensor]:
    """A network's tensors as the official code saves them; ``has_own_norm`` as ``mybn`` does."""
    state: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        name = re.sub("^class_embedding", {"generator": "shared", "discriminator": "embed"}[module], key)
        for pattern, replacement in OFFICIAL_NAMES:
            name, hits = re.subn(pattern, replacement, name)
            if hits:
                break
        if name.endswith(VECTORS):
            state |= {f"{name.removesuffix(VECTORS)}.u{index}": row[None] for index, row in enumerate(value)}
        elif name.endswith(VALUES):
            state |= {f"{name.removesuffix(VALUES)}.sv{index}": number[None] for index, number in enumerate(value)}
        elif has_own_norm and ".stored_" in name:
            state[name.replace(".stored_", ".bn.stored_")] = value
            state[re.sub(r"stored_.*", "bn.accumulation_counter", name)] = torch.zeros(1)
        else:
            state[name] = value
    return state


def digest(state: Mapping[str, Tensor]) -> str:
    """Names and shapes in a few characters."""
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in sorted(state.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


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


IMAGENET = {"n_classes": 1000, "SN_eps": 1e-6}
BIG = {**IMAGENET, "G_ch": 96, "shared_dim": 128, "hier": True, "G_shared": True}

# Digests of names and shapes of what ajbrock/BigGAN-PyTorch@98459431a5d6 BigGAN.py builds from these options, at full size.
FULL_SIZE = [
    ("biggan", "generator", {**BIG, "resolution": 128, "dim_z": 120, "G_attn": "64"}, "459292636951839d"),
    ("biggan", "generator", {**BIG, "resolution": 256, "dim_z": 140, "G_attn": "128"}, "baf1e3c898a8b887"),
    ("biggan", "generator", {**BIG, "resolution": 512, "dim_z": 128, "G_attn": "64"}, "740a0f1f8cca4f70"),
    ("biggan", "discriminator", {**IMAGENET, "D_ch": 96, "resolution": 128, "D_attn": "64"}, "9657f15ced08ad97"),
    ("biggan", "discriminator", {**IMAGENET, "D_ch": 96, "resolution": 256, "D_attn": "64"}, "9d00c3af5889cd78"),
    ("sagan", "generator", {**IMAGENET, "G_shared": False, "G_ch": 64, "resolution": 128}, "7d5caa1724ca13c8"),
    ("sagan", "discriminator", {**IMAGENET, "D_ch": 64, "resolution": 128}, "3024c9b06158aaf9"),
    (
        "biggan",
        "generator",
        {**BIG, "n_classes": 10, "G_ch": 64, "resolution": 32, "dim_z": 128, "G_attn": "0"},
        "97f90597a02837d2",
    ),
    ("biggan", "discriminator", {"n_classes": 10, "D_ch": 64, "resolution": 32, "D_attn": "16"}, "b964068749417787"),
]


@pytest.mark.parametrize(("name", "module", "options", "expected"), FULL_SIZE)
def test_full_size_networks_have_the_official_names_and_shapes(name: str, module: str, options: Any, expected: str) -> None:
    source = {"sagan": SAGANSource, "biggan": BigGANSource}[name]()
    with torch.device("meta"):
        network = source.build({module: options})[module]
    state = official_state(module, network)
    assert digest(state) == expected
    converted = source.convert_state(module, state, network)
    ours = network.state_dict()
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in ours.items()}


def test_biggan_options_become_ours() -> None:
    network = BigGANSource().build({"generator": {**BIGGAN_GENERATOR, "shared_dim": 0, "mybn": True}})["generator"]
    assert (network.config.hierarchical, network.config.shared_embedding_dim, network.z_dim) == (True, 13, 12)
    assert network.config.moving_variance == "biased"
    flat = BigGANSource().build({"generator": {**BIGGAN_GENERATOR, "hier": False}})["generator"]
    assert (flat.config.hierarchical, flat.z_dim) == (False, 13)
    tables = BigGANSource().build({"generator": {**GENERATOR, "hier": False}})["generator"]
    assert tables.class_embedding is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"G_shared": False}, "hier=True of BigGAN-PyTorch needs G_shared=True"),
        ({"dim_z": 3}, "z_dim must be at least 4 for hierarchical noise"),
        ({"dim_z": "x"}, "generator option dim_z of BigGAN-PyTorch must be a whole number, got 'x'"),
        ({"resolution": 16}, "resolution must be one of 32, 64, 128, 256, 512, got 16"),
        ({"hier": "yes"}, "option hier of BigGAN-PyTorch must be True or False, got 'yes'"),
        ({"G_depth": 2}, "generator option 'G_depth'"),
    ],
)
def test_options_that_biggan_cannot_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BigGANSource().build({"generator": {**BIGGAN_GENERATOR, **options}})


def test_the_official_discriminator_ends_at_256() -> None:
    with pytest.raises(UserError, match="resolution must be one of 32, 64, 128, 256, got 512"):
        BigGANSource().build({"discriminator": {**DISCRIMINATOR, "resolution": 512}})


RECOGNISED: list[tuple[str, dict[str, Any]]] = [
    ("generator", {}),
    ("generator", {"resolution": 64, "G_attn": "0", "bottom_width": 6}),
    ("generator", {"hier": False, "num_G_SVs": 2}),
    ("generator", {"mybn": True, "dim_z": 12, "shared_dim": 12}),
    ("generator", {"norm_style": "nonorm", "G_attn": "32"}),
    ("generator", {"G_param": "None", "n_classes": 1}),
    ("discriminator", {}),
    ("discriminator", {"resolution": 32, "D_attn": "16", "output_dim": 3}),
    ("discriminator", {"resolution": 32, "D_attn": "0", "D_wide": False, "num_D_SVs": 2}),
    ("discriminator", {"resolution": 128, "D_attn": "4", "D_wide": False}),
]


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize(("module", "changes"), RECOGNISED)
def test_options_are_read_off_a_checkpoint(module: str, changes: dict[str, Any], prefixed: bool) -> None:
    source = BigGANSource()
    options = {**(BIGGAN_GENERATOR if module == "generator" else {**DISCRIMINATOR, "D_init": "ortho"}), "SN_eps": 1e-6, **changes}
    network = source.build({module: options})[module]
    state = official_state(module, network, has_own_norm=bool(options.get("mybn")))
    config = source.recognise({f"{module}/{key}": value for key, value in state.items()} if prefixed else state)
    assert config is not None and list(config) == [module]
    again = source.build(config)
    load_official(source, again, state)
    found, wanted = dict(again[module].config), dict(network.config)
    for key in wanted.keys() - {"_use_default_values", "z_dim", "attention_resolutions"}:
        assert found[key] == wanted[key], key
    assert sorted(found["attention_resolutions"]) == sorted(wanted["attention_resolutions"])
    if module == "generator":
        assert again[module].z_dim == network.z_dim
    for key, value in network.state_dict().items():
        assert torch.equal(again[module].state_dict()[key], value)


def test_sources_know_their_own_generators() -> None:
    sagan, biggan = SAGANSource(), BigGANSource()
    tables = sagan.build({"generator": GENERATOR, "discriminator": DISCRIMINATOR})
    both = {f"{name}/{key}": value for name, net in tables.items() for key, value in official_state(name, net).items()}
    config = sagan.recognise(both)
    assert config is not None and config["generator"]["SN_eps"] == 1e-8 and config["discriminator"]["D_init"] == "xavier"
    load_official(sagan, sagan.build(config), both)
    assert biggan.recognise(both) is None
    shared = official_state("generator", biggan.build({"generator": BIGGAN_GENERATOR})["generator"])
    assert sagan.recognise(shared) is None
    # A checkpoint that lacks a tensor, or has one too many, is recognised, so that loading can name the tensor.
    config = biggan.recognise(shared | {"mystery": torch.zeros(1)})
    assert config is not None
    with pytest.raises(UserError, match="no place for the official keys mystery"):
        load_official(biggan, biggan.build(config), shared | {"mystery": torch.zeros(1)})


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"linear.weight": torch.zeros(2, 2)},
        {"x/linear.weight": torch.zeros(2, 2), "generator/linear.weight": torch.zeros(2, 2)},
        {"blocks.0.0.conv1.weight": torch.zeros(4, 4, 3, 3), "blocks.0.0.conv3.weight": torch.zeros(4, 4, 3, 3)},
    ],
)
def test_other_layouts_are_not_recognised(state: dict[str, Tensor]) -> None:
    assert SAGANSource().recognise(state) is None and BigGANSource().recognise(state) is None


def test_a_pipeline_needs_the_generator() -> None:
    source = BigGANSource()
    networks = source.build({"generator": BIGGAN_GENERATOR})
    pipeline = source.pipeline(networks, {"generator": BIGGAN_GENERATOR})
    assert isinstance(pipeline, GANImagePipeline) and pipeline.generator is networks["generator"]
    with pytest.raises(UserError, match="holds a discriminator only"):
        source.pipeline(source.build({"discriminator": DISCRIMINATOR}), {})
