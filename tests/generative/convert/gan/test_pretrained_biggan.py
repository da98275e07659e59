"""The released BigGAN-deep generators, Hugging Face and TF-Hub layouts, against values of the official code.

Images and lists of names were computed by pytorch-pretrained-BigGAN 0.1.1 on the weights that ``hugging_face_state`` makes.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generative.convert import get_source, load_official
from generative.convert.base import MismatchError
from generative.convert.gan.pretrained_biggan import CONSTRUCTOR, PretrainedBigGANSource
from generative.core.errors import UserError

Shapes = dict[str, tuple[int, ...]]

TINY: dict[str, Any] = {
    "output_dim": 16,
    "z_dim": 5,
    "class_embed_dim": 5,
    "channel_width": 4,
    "num_classes": 3,
    "layers": [[False, 16, 16], [True, 16, 8], [False, 8, 4], [True, 4, 2], [False, 2, 1]],
    "attention_layer_position": 2,
    "eps": 1e-4,
    "n_stats": 5,
}
PUBLISHED_LAYERS = {
    128: [(16, 16), (16, 8), (8, 4), (4, 2), (2, 1)],
    256: [(16, 16), (16, 8), (8, 8), (8, 4), (4, 2), (2, 1)],
    512: [(16, 16), (16, 8), (8, 8), (8, 4), (4, 2), (2, 1), (1, 1)],
}
# Mode, truncation -> official pixels of two images at row 3, column 5, their three channels each.
OFFICIAL_PIXELS = {
    (False, 0.3): [0.803871, 0.576986, -0.205067, 0.857662, 0.294595, -0.075796],
    (False, 0.5): [0.837086, 0.514053, -0.084615, 0.874088, 0.224944, -0.021511],
    (False, 0.9): [0.919066, 0.419561, 0.224852, 0.939202, -0.032511, -0.023168],
    (False, 1.0): [0.690849, 0.523834, -0.260167, 0.890264, 0.346903, -0.093764],
    (True, 0.3): [0.818233, 0.522754, -0.11691, 0.852519, 0.398255, -0.054659],
    (True, 1.0): [0.703163, 0.507289, -0.234298, 0.808349, 0.477353, -0.084787],
}


def published(resolution: int) -> dict[str, Any]:
    layers = [layer for a, b in PUBLISHED_LAYERS[resolution] for layer in ((False, a, a), (True, a, b))]
    defaults = {name: argument.default for name, argument in CONSTRUCTOR.arguments.items()}
    return {**defaults, "output_dim": resolution, "layers": layers}


def spectral(path: str, weight: tuple[int, ...], bias: bool = True) -> Shapes:
    shapes = {f"{path}.weight_orig": weight, f"{path}.weight_u": weight[:1], f"{path}.weight_v": (math.prod(weight[1:]),)}
    return shapes | ({f"{path}.bias": weight[:1]} if bias else {})


def attention_shapes(path: str, c: int) -> Shapes:
    shapes: Shapes = {f"{path}.gamma": (1,)}
    for name, c_in, c_out in (("theta", c, c // 8), ("phi", c, c // 8), ("g", c, c // 2), ("o_conv", c // 2, c)):
        shapes |= spectral(f"{path}.snconv1x1_{name}", (c_out, c_in, 1, 1), bias=False)
    return shapes


def hugging_face_shapes(options: dict[str, Any]) -> Shapes:
    """Names and shapes of the official generator's tensors."""
    ch, z, rows = options["channel_width"], options["z_dim"], options["n_stats"]
    shapes: Shapes = {"embeddings.weight": (z, options["num_classes"])} | spectral("generator.gen_z", (256 * ch, 2 * z))
    number = 0
    for index, (_, width_in, width_out) in enumerate(options["layers"]):
        if index == options["attention_layer_position"]:
            shapes |= attention_shapes(f"generator.layers.{number}", width_in * ch)
            number += 1
        path, c, m = f"generator.layers.{number}", width_in * ch, width_in * ch // 4
        for i, kernel in enumerate(((m, c, 1, 1), (m, m, 3, 3), (m, m, 3, 3), (width_out * ch, m, 1, 1))):
            for table in ("running_means", "running_vars"):
                shapes[f"{path}.bn_{i}.{table}"] = (rows, kernel[1])
            for affine in ("scale", "offset"):
                shapes |= spectral(f"{path}.bn_{i}.{affine}", (kernel[1], 2 * z), bias=False)
            shapes |= spectral(f"{path}.conv_{i}", kernel)
        number += 1
    shapes |= {f"generator.bn.{name}": (ch,) for name in ("weight", "bias")}
    shapes |= {f"generator.bn.{name}": (rows, ch) for name in ("running_means", "running_vars")}
    return shapes | spectral("generator.conv_to_rgb", (ch, ch, 3, 3))


def wave(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers that look random and depend on no generator."""
    values = 0.7 * torch.arange(math.prod(shape), dtype=torch.float64) ** 1.1
    return torch.sin(values + zlib.crc32(name.encode()) % 1000).reshape(shape)


def hugging_face_state(options: dict[str, Any]) -> dict[str, Tensor]:
    state = {}
    for name, shape in hugging_face_shapes(options).items():
        value = wave(name, shape)
        state[name] = 0.5 + value**2 if name.endswith(("running_vars", "bn.weight")) else value
    for name in [name for name in state if name.endswith("weight_u")]:
        matrix = state[name.replace("_u", "_orig")].flatten(1)
        v = F.normalize(state[name] @ matrix, dim=0)
        state[name.replace("_u", "_v")], state[name] = v, F.normalize(matrix @ v, dim=0)
    return {name: value.float() for name, value in state.items()}


def hub_dump(options: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same generator by TensorFlow names and axes."""
    dump: dict[str, Tensor] = {}
    numbers = iter(10 * i + digit for i in range(50) for digit in (1, 3, 6, 8))
    position = options["attention_layer_position"]
    for name, value in state.items():
        path, _, tensor = name.rpartition(".")
        if tensor == "running_means":
            dump[f"module_apply_default/stack_{next(numbers)}"] = value
            dump[f"module_apply_default/stack_{next(numbers)}"] = state[f"{path}.running_vars"]
            continue
        if tensor in ("weight_v", "running_vars"):
            continue
        scope = {"embeddings": "linear", "generator.gen_z": "Generator/GenZ/G_linear"}.get(path)
        layer = re.match(r"generator\.layers\.(\d+)\.?(.*)", path)
        if layer and int(layer[1]) == position:
            scope = f"Generator/attention/{layer[2].removeprefix('snconv1x1_')}".rstrip("/")
        elif layer:
            block = int(layer[1]) - (int(layer[1]) > position)
            inner = re.sub(r"^bn_(\d)\.", r"BatchNorm_\1/", re.sub(r"^conv_(\d)", r"conv\1", layer[2]))
            scope = f"Generator/GBlock_{block}/{inner}".replace("GBlock_0", "GBlock").replace("BatchNorm_0", "BatchNorm")
        scope = scope or path.replace("generator.bn", "Generator/BatchNorm").replace("generator.", "Generator/")
        leaf = {"weight_orig": "/w", "bias": "/b", "weight_u": "/u0", "gamma": "/gamma", "weight": "/w"}[tensor]
        if path == "generator.bn":
            leaf, value = {"weight": "/scale", "bias": "/offset"}[tensor], value[None, None, None]
        value = value.permute(2, 3, 1, 0) if value.ndim == 4 and leaf == "/w" else value.T if value.ndim == 2 else value
        dump[scope + leaf + ("" if leaf == "/u0" else "/ema_0.9999")] = value[None] if leaf == "/u0" else value
    return dump


def loaded(options: dict[str, Any], state: dict[str, Tensor]) -> Any:
    source = PretrainedBigGANSource()
    networks = source.build(options)
    load_official(source, networks, state)
    return networks["model"]


@pytest.mark.parametrize(("training", "truncation"), OFFICIAL_PIXELS)
def test_images_are_the_official_ones(training: bool, truncation: float) -> None:
    generator = loaded(TINY, hugging_face_state(TINY)).train(training)
    statistics = {name: value.clone() for name, value in generator.state_dict().items() if "running_" in name}
    with torch.no_grad():
        images = generator(wave("z", (2, 5)).float(), torch.tensor([0, 2]), truncation)
    assert images.shape == (2, 3, 16, 16)
    expected = torch.tensor(OFFICIAL_PIXELS[training, truncation])
    torch.testing.assert_close(images[:, :, 3, 5].flatten(), expected, rtol=0, atol=1e-5)
    assert all(torch.equal(generator.state_dict()[name], value) for name, value in statistics.items())


def test_a_hub_module_is_the_same_generator_after_one_power_iteration() -> None:
    state = hugging_face_state(TINY)
    ours, hub = loaded(TINY, state), loaded(TINY, hub_dump(TINY, state))
    z, labels = wave("z", (2, 5)).float(), torch.tensor([0, 2])
    with torch.no_grad():
        ours.train()(z, labels)  # iterates once
        for truncation in (0.25, 0.6, 1.0):
            expected = ours.eval()(z, labels, truncation)
            torch.testing.assert_close(hub.eval()(z, labels, truncation), expected, rtol=0, atol=1e-5)


# sha256 of the official tensors' names and shapes, from the official constructor at its published sizes.
FULL_SIZE = {
    128: "46a76f57a24d9ecfd416ece042fa8308ebc3bdb6ddb123f057fb9db1bc516168",
    256: "46f80d3b112b77a5d035a3ec734e3b66667046a43ab2541d1cd4c9fb12b8369f",
    512: "1bd28297845bd0bbdc7e32621ffe81c2a414253d07c983a443024a283017ae40",
}


@pytest.mark.parametrize("resolution", FULL_SIZE)
def test_published_sizes_have_every_key_and_shape(resolution: int) -> None:
    options = published(resolution)
    shapes = hugging_face_shapes(options)
    lines = "\n".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == FULL_SIZE[resolution]
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        source = PretrainedBigGANSource()
        generator: Any = source.build(options)["model"]
        for layout in (state, hub_dump(options, state)):
            converted = source.convert_state("model", dict(layout), generator)
            assert {key: value.shape for key, value in converted.items()} == {
                key: value.shape for key, value in generator.state_dict().items()
            }
            found: Any = source.recognise(layout)
            assert {**found, "layers": [tuple(layer) for layer in found["layers"]]} == options
    assert generator.image_size == resolution


def test_other_layouts_are_not_recognised() -> None:
    source = PretrainedBigGANSource()
    assert source.recognise({}) is None
    assert source.recognise({"linear.weight": torch.zeros(2, 2), "shared.weight": torch.zeros(2, 2)}) is None
    assert source.recognise({"Generator/conv_to_rgb/u0": torch.zeros(1, 2)}) is None
    assert source.recognise({"embeddings.weight": torch.zeros(2, 2)}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "option 'colour' of pretrained-biggan is unknown here"),
        ({"z_dim": "5"}, "z_dim of pretrained-biggan must be a positive whole number, got '5'"),
        ({"channel_width": 2}, "channel_width of pretrained-biggan must be a whole number of at least 3, got 2"),
        ({"n_stats": 1}, "n_stats of pretrained-biggan must be a whole number of at least 2, got 1"),
        ({"eps": 0.0}, "eps of pretrained-biggan must be a positive number"),
        ({"layers": "all"}, "layers of pretrained-biggan must be triples"),
        ({"layers": [[True, 8, 1]]}, "must start at width 16 and end at 1, got 8 and 1"),
        ({"layers": [[True, 16, 4], [True, 4, 1]]}, "keep or halve their width, got 16 in and 4 out"),
        ({"layers": [[True, 16, 8], [True, 4, 2], [True, 2, 1]]}, "block 0 puts out width 8 but block 1 takes 4"),
    ],
)
def test_options_that_cannot_run_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PretrainedBigGANSource().build({**TINY, **change})


@pytest.mark.parametrize("position", [-1, 0, 4, 5])
def test_attention_stands_where_the_option_says(position: int) -> None:
    options = {**TINY, "attention_layer_position": position, "channel_width": 8}
    generator = loaded(options, hugging_face_state(options))
    assert list(generator.attentions) == ([str(position - 1)] if 0 <= position < 5 else [])
    assert generator(torch.randn(1, 5), torch.tensor([1])).isfinite().all()


def test_unknown_and_missing_tensors_are_named() -> None:
    state = hugging_face_state(TINY)
    with pytest.raises(MismatchError, match=r"no place for the official keys generator\.layers\.9\.shift"):
        loaded(TINY, {**state, "generator.layers.9.shift": torch.zeros(1)})
    with pytest.raises(MismatchError, match=r"lacks linear\.bias"):
        loaded(TINY, {name: value for name, value in state.items() if name != "generator.gen_z.bias"})
    dump = hub_dump(TINY, state)
    with pytest.raises(MismatchError, match=r"no place for the official keys Generator/attention"):
        loaded({**TINY, "attention_layer_position": -1}, dump)
    for stray in ("Generator/GBlock/conv0/w", "module_apply_default/stack_2", "module_apply_default/stack_991"):
        with pytest.raises(MismatchError, match=f"no place for the official keys {stray}"):
            loaded(TINY, {**dump, stray: torch.zeros(1)})


def test_the_pipeline_scales_truncated_noise() -> None:
    source = get_source("pretrained-biggan")
    networks = source.build(TINY)
    load_official(source, networks, hugging_face_state(TINY))
    pipeline: Any = source.pipeline(networks, TINY)
    assert pipeline.truncation_law == "scaled_truncated"
    assert pipeline.config.sampling_defaults == {"truncation": 1.0}  # what samplers give a call that says nothing
    few, many = (
        pipeline([1], truncation=truncation, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for truncation in (0.2, 1.0)
    )
    assert few.shape == (1, 3, 16, 16) and not torch.allclose(few, many)
