"""Official BigGAN-deep options and keys; what the numbers must be is held by tests/parity."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import pytest
import torch

from generative.convert import get_source, load_official
from generative.convert.base import MismatchError
from generative.convert.gan.biggan_deep import BigGANDeepSource, our_key
from generative.core.errors import UserError

Shapes = dict[str, tuple[int, ...]]

GENERATOR = {"hier": True, "G_ch": 4, "dim_z": 6, "shared_dim": 5, "resolution": 32, "G_attn": "16_8", "n_classes": 3}
DISCRIMINATOR = {"D_ch": 4, "resolution": 64, "D_attn": "32_4", "n_classes": 3}


def build(generator: dict[str, Any] | None = None, discriminator: dict[str, Any] | None = None) -> dict[str, Any]:
    return BigGANDeepSource().build(
        {"generator": {**GENERATOR, **(generator or {})}, "discriminator": {**DISCRIMINATOR, **(discriminator or {})}}
    )


def spectral(path: str, weight: tuple[int, ...], bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{path}.weight": weight, f"{path}.u0": (1, weight[0]), f"{path}.sv0": (1,)}
    return shapes | ({f"{path}.bias": weight[:1]} if bias else {})


def attention_shapes(path: str, c: int) -> Shapes:
    shapes: Shapes = {f"{path}.gamma": ()}
    for name, c_in, c_out in (("theta", c, c // 8), ("phi", c, c // 8), ("g", c, c // 2), ("o", c // 2, c)):
        shapes |= spectral(f"{path}.{name}", (c_out, c_in, 1, 1), bias=False)
    return shapes


def conv_shapes(path: str, c_in: int, c_out: int, middle: int) -> Shapes:
    kernels = ((middle, c_in, 1, 1), (middle, middle, 3, 3), (middle, middle, 3, 3), (c_out, middle, 1, 1))
    shapes: Shapes = {}
    for number, kernel in enumerate(kernels, start=1):
        shapes |= spectral(f"{path}.conv{number}", kernel)
    return shapes


def generator_shapes(widths: list[int], attended: int, condition: int = 256, classes: int = 1000) -> Shapes:
    """Names and shapes of the official generator's tensors; attention behind a block."""
    shapes: Shapes = {"shared.weight": (classes, condition // 2)} | spectral("linear", (widths[0] * 16, condition))
    number = 0
    for width_in, width_out in pairwise(widths):
        for out in (width_in, width_out):
            path, middle = f"blocks.{number}.0", width_in // 4
            shapes |= conv_shapes(path, width_in, out, middle)
            for i, c in enumerate((width_in, middle, middle, middle), start=1):
                shapes |= {f"{path}.bn{i}.stored_{name}": (c,) for name in ("mean", "var")}
                for affine in ("gain", "bias"):
                    shapes |= spectral(f"{path}.bn{i}.{affine}", (c, condition), bias=False)
            if number == attended:
                shapes |= attention_shapes(f"blocks.{number}.1", out)
            number += 1
    shapes |= {f"output_layer.0.{name}": (widths[-1],) for name in ("gain", "bias", "stored_mean", "stored_var")}
    return shapes | spectral("output_layer.2", (3, widths[-1], 3, 3))


def discriminator_shapes(widths: list[int], attended: int, classes: int = 1000) -> Shapes:
    """Names and shapes of the official discriminator's tensors; attention behind a stage."""
    shapes = spectral("input_conv", (widths[0], 3, 3, 3))
    for stage, (width_in, width_out) in enumerate(pairwise(widths)):
        for number, c in enumerate((width_in, width_out)):
            shapes |= conv_shapes(f"blocks.{stage}.{number}", c, width_out, width_out // 4)
            if c != width_out:
                shapes |= spectral(f"blocks.{stage}.{number}.conv_sc", (width_out - c, c, 1, 1))
        if stage == attended:
            shapes |= attention_shapes(f"blocks.{stage}.2", width_out)
    return shapes | spectral("linear", (1, widths[-1])) | spectral("embed", (classes, widths[-1]), bias=False)


# Resolution, widths of generator and discriminator in multiples of 128, block and stage before the attention at 64, sha256 of the
# names and shapes of the official tensors of both, from the official constructors with the launch script's options.
FULL_SIZE = [
    (
        128,
        (16, 16, 8, 4, 2, 1),
        (1, 2, 4, 8, 16, 16),
        (7, 0),
        "0525b8463aa161775ff59b7f3b790aaf26243bb85210736046ee7fc8e3247fdd",
        "2e9742e023401f3c62f87cb143b5f1eabd710dbd4052f3e7ad86e28f05908cb9",
    ),
    (
        256,
        (16, 16, 8, 8, 4, 2, 1),
        (1, 2, 4, 8, 8, 16, 16),
        (7, 1),
        "8ef25b00ddd9a584bed16c57e5d983dbcc698d42c28024c4e449e4bf204947b3",
        "cbd59851e65c9d2ab7d110f472c52e74d7dcf24719e10ecc7ca97e1dab7cb80b",
    ),
]


@pytest.mark.parametrize(("resolution", "g_widths", "d_widths", "attended", "g_digest", "d_digest"), FULL_SIZE)
def test_full_sizes_have_every_key_and_shape(
    resolution: int,
    g_widths: tuple[int, ...],
    d_widths: tuple[int, ...],
    attended: tuple[int, int],
    g_digest: str,
    d_digest: str,
) -> None:
    source = BigGANDeepSource()
    official = {
        "generator": generator_shapes([128 * width for width in g_widths], attended[0]),
        "discriminator": discriminator_shapes([128 * width for width in d_widths], attended[1]),
    }
    for module, digest in (("generator", g_digest), ("discriminator", d_digest)):
        lines = "\n".join(f"{name} {shape}" for name, shape in sorted(official[module].items()))
        assert hashlib.sha256(lines.encode()).hexdigest() == digest
    with torch.device("meta"):
        state = {f"{module}/{name}": torch.empty(shape) for module, shapes in official.items() for name, shape in shapes.items()}
        found: Any = source.recognise(state)
        assert (found["generator"]["resolution"], found["generator"]["G_ch"], found["generator"]["G_attn"]) == (
            resolution,
            128,
            "64",
        )
        assert (found["discriminator"]["resolution"], found["discriminator"]["D_ch"]) == (resolution, 128)
        for module, network in source.build(found).items():
            part = {name: state[f"{module}/{name}"] for name in official[module]}
            converted = source.convert_state(module, part, network)
            ours = network.state_dict()
            assert {name: value.shape for name, value in converted.items()} == {name: value.shape for name, value in ours.items()}


def test_options_become_ours() -> None:
    networks = build({"shared_dim": 0, "mybn": True, "num_G_SVs": 2, "G_depth": 3}, {"D_wide": False, "D_depth": 1})
    generator, discriminator = networks["generator"].config, networks["discriminator"].config
    assert (generator.shared_embedding_dim, generator.moving_variance, generator.num_singular_values) == (6, "biased", 2)
    assert (generator.resolution, generator.channels, generator.depth) == (32, 4, 3)
    assert list(networks["generator"].attentions) == ["2", "5"]
    assert (discriminator.depth, tuple(discriminator.attention_resolutions)) == (1, (32, 4))


@pytest.mark.parametrize(
    ("generator", "discriminator", "message"),
    [
        ({"hier": False}, {}, "generator option hier=False of BigGAN-PyTorch is not supported here; supported: True"),
        ({"G_shared": False}, {}, "generator option G_shared=False"),
        ({"G_depth": 1, "resolution": 64}, {}, "G_depth=1 of BigGAN-PyTorch runs at resolution 32 only, got 64; use 2"),
        ({"G_depth": 0}, {}, "depth must be at least 1, got 0"),
        ({"G_depth": "2"}, {}, "generator option G_depth"),
        ({"resolution": 512}, {}, "resolution must be one of 32, 64, 128, 256, got 512"),
        ({"cross_replica": True}, {}, "option cross_replica=True"),
        ({"norm_style": "gn"}, {}, "option norm_style='gn'"),
        ({"G_activation": "swish"}, {}, "option G_activation='swish'"),
        ({"G_fp16": True}, {}, "option G_fp16=True"),
        ({"G_colour": 3}, {}, "generator option 'G_colour' of BigGAN-PyTorch is unknown"),
        ({"G_ch": 1, "resolution": 128, "G_attn": "0"}, {}, "needs at least 4 channels, got 2"),
        ({}, {"D_param": None}, "option D_param=None"),
        ({}, {"resolution": 512}, "resolution must be one of 32, 64, 128, 256, got 512"),
        ({}, {"D_depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_unknown_or_unsupported_options_are_loud(generator: dict[str, Any], discriminator: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(generator, discriminator)


def test_keys_become_ours() -> None:
    assert our_key("generator", "blocks.11.0.bn4.gain.weight") == "blocks.11.norm4.gain.weight"
    assert our_key("generator", "blocks.3.0.bn2.bn.stored_var") == "blocks.3.norm2.norm.running_var"
    assert our_key("generator", "blocks.7.1.o.u0") == "attentions.7.out.spectral_norm.u"
    assert our_key("discriminator", "blocks.1.0.conv_sc.sv0") == "blocks.1.0.shortcut.spectral_norm.singular_values"
    assert our_key("discriminator", "blocks.1.2.gamma") == "attentions.1.gamma"
    assert our_key("discriminator", "input_conv.bias") == "conv_in.bias"
    assert our_key("discriminator", "blocks.1.0.bn1.stored_mean") is None
    assert our_key("generator", "blocks.1.0.conv5.weight") is None


def test_stray_and_missing_keys_are_named() -> None:
    source, networks = BigGANDeepSource(), {"generator": build()["generator"]}
    with pytest.raises(MismatchError, match="no place for the official keys mystery.weight"):
        load_official(source, networks, {"generator/mystery.weight": torch.zeros(1)})
    with pytest.raises(MismatchError, match=r"lacks attentions\.1\.gamma"):
        load_official(source, networks, {"generator/linear.bias": torch.zeros(256)})


def test_other_layouts_are_not_recognised() -> None:
    source = BigGANDeepSource()
    assert source.recognise({}) is None
    assert source.recognise({"embeddings.weight": torch.zeros(2, 2)}) is None
    shapes = {
        "linear.weight": (8, 4),
        "output_layer.0.gain": (4,),
        "blocks.0.0.conv2.weight": (4, 4, 3, 3),
        "shared.weight": (2, 4),
    }
    assert source.recognise({name: torch.zeros(shape) for name, shape in shapes.items()}) is None  # BigGAN.py's


def test_the_pipeline_needs_the_generator() -> None:
    source = get_source("biggan-deep")
    networks = build()
    pipeline: Any = source.pipeline(networks, {})
    assert (pipeline.num_classes, pipeline.image_size, pipeline.truncation_law) == (3, 32, "truncated")
    with pytest.raises(UserError, match="discriminator only"):
        source.pipeline({"discriminator": networks["discriminator"]}, {})
