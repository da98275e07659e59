"""Official Projected GAN options and keys; what the numbers must be is held by tests/parity."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.convert.base import load_official
from generative.convert.gan.projected_gan import ProjectedGANSource
from generative.convert.gan.projected_gan_keys import TENSORS, backbone_pairs, module_places
from generative.core.errors import UserError
from generative.gan.fastgan import FastGANGenerator
from generative.gan.projected import FeatureProjector
from generative.gan.projected_discriminator import ProjectedDiscriminator
from generative.gan.projected_heads import MultiScaleHeads
from generative.layers.efficientnet_lite import BATCH_NORM_EPS

GENERATOR: dict[str, Any] = {"z_dim": 5, "img_resolution": 128, "ngf": 2, "cond": 1, "synthesis_kwargs": {"num_classes": 3}}
HEADS: dict[str, Any] = {"channels": [3, 4], "resolutions": [32, 16], "num_discs": 2, "cond": 1}
HEADS |= {"SingleDiscCond": {"ndf": 6, "c_dim": 3, "cmap_dim": 5, "embedding_dim": 7}}
PROJECTOR: dict[str, Any] = {"in_channels": [4, 5, 6, 8], "cout": 3}
WHOLE: dict[str, Any] = {"interp224": True, "backbone_kwargs": {"cout": 4, "num_discs": 2, "cond": 1}, "c_dim": 3}


def built(module: str, options: dict[str, Any]) -> Any:
    return ProjectedGANSource().build({module: copy.deepcopy(options)})[module]


def official_state(network: Any) -> dict[str, Tensor]:
    """A state dict as the official code would write it: our tensors under its names, idle stages and counters included."""
    state, ours = {}, {name: torch.randn_like(value) for name, value in network.state_dict().items()}
    for path, (place, kind) in module_places(network).items():
        for tensor, name in TENSORS[kind].items():
            if name is None or place is None:
                state[f"{path}.{tensor}"] = torch.zeros(())
            elif f"{place}.{name}" in ours:
                value = ours[f"{place}.{name}"]
                state[f"{path}.{tensor}"] = value[0] if tensor in ("weight_u", "weight_v") else value
    return state


def with_backbone(network: ProjectedDiscriminator, first_stage: int) -> dict[str, Tensor]:
    """The whole discriminator's official state, for an older (3) or newer (2) release of timm."""
    state = official_state(network)
    marker = {f"feature_network.pretrained.layer0.{first_stage + 1}.": torch.zeros(0)} if first_stage == 3 else {}
    for name, (conv, norm) in zip(network.backbone.conv_names(), backbone_pairs(marker), strict=True):
        weight = network.backbone.get_submodule(name).weight
        state[f"{conv}.weight"] = torch.randn_like(weight)
        for tensor in ("weight", "bias", "running_mean"):
            state[f"{norm}.{tensor}"] = torch.randn(len(weight))
        state[f"{norm}.running_var"] = torch.rand(len(weight)) + 0.5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(3)
    return state


def test_generator_options_become_ours() -> None:
    network = built("generator", GENERATOR | {"c_dim": 9, "w_dim": 4, "mapping_kwargs": {"num_layers": 2}})
    assert isinstance(network, FastGANGenerator)
    config = network.config
    assert (config.image_size, config.z_dim, config.num_classes, config.channels) == (128, 5, 3, 2)
    assert (config.conditional, config.lite, config.image_channels) == (True, False, 3)
    plain = built("generator_lite", {"ngf": 4, "c_dim": 9, "synthesis_kwargs": {"lite": True}})
    assert (plain.config.conditional, plain.config.lite, plain.num_classes, plain.image_size) == (False, True, 9, 256)
    assert built("G_ema", {"img_resolution": 128, "cond": 1, "ngf": 1}).num_classes == 1000  # the official default


def test_discriminator_options_become_ours() -> None:
    heads = built("discriminator", HEADS | {"cout": 64, "expand": True})
    assert isinstance(heads, MultiScaleHeads)
    assert (heads.config.width, heads.config.map_channels, heads.config.embedding_dim, heads.num_classes) == (6, 5, 7, 3)
    assert built("discriminator", {"channels": [8], "resolutions": [8], "SingleDisc": {"ndf": 8}}).config.num_heads == 1
    whole = built("D", WHOLE | {"img_resolution": 128, "img_channels": 3})
    assert isinstance(whole, ProjectedDiscriminator)
    assert (whole.feature_resolution, whole.image_size, whole.num_classes, whole.config.num_heads) == (224, 128, 3, 2)
    assert built("D", WHOLE | {"interp224": False, "img_resolution": 256}).feature_resolution == 256
    projector = built("projector", PROJECTOR | {"proj_type": 1, "ccm_channels": [3, 6, 12, 24]})
    assert isinstance(projector, FeatureProjector) and projector.channels == (3, 6, 12, 24)


def test_modules_without_weights_are_checked_and_left_out() -> None:
    config = {"diffaug": {"policy": "color,cutout"}, "projector": PROJECTOR | {"proj_type": 0}, "generator": GENERATOR}
    assert list(ProjectedGANSource().build(config)) == ["generator"]


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("encoder", {}, "modules named generator, discriminator, projector, diffaug, G, D and G_ema, got 'encoder'"),
        ("generator", {"colour": 3}, "generator option 'colour' of Projected GAN is unknown"),
        ("generator", {"img_resolution": 64}, r"img_resolution=64 .* \(the official code cannot run it\); supported: 128"),
        ("generator", GENERATOR | {"img_resolution": 512}, "img_resolution=512 .* supported: 128, 256$"),
        ("generator", {"img_channels": 4}, "img_channels=4 .* supported: 3, 1"),
        ("generator", {"z_dim": "5"}, "option z_dim of Projected GAN must be a whole number, got '5'"),
        ("generator", {"z_dim": True}, "option z_dim of Projected GAN must be a whole number, got True"),
        ("generator", {"synthesis_kwargs": {"num_classes": 3}}, "generator.synthesis_kwargs option 'num_classes'"),
        ("generator", {"synthesis_kwargs": 3}, "must be a mapping"),
        ("projector", {}, "projector of Projected GAN needs the option in_channels"),
        ("projector", PROJECTOR | {"proj_type": 3}, "proj_type=3 .* supported: 0, 1, 2"),
        ("projector", PROJECTOR | {"csm_channels": [1, 1, 1, 1]}, r"csm_channels of Projected GAN is \[3, 3, 6, 12\]"),
        ("discriminator", HEADS | {"num_discs": 5}, "num_discs=5"),
        ("discriminator", HEADS | {"SingleDisc": {}}, "discriminator option 'SingleDisc'"),
        ("discriminator", HEADS | {"SingleDiscCond": {"nf": 3}}, "discriminator.SingleDiscCond option 'nf'"),
        ("discriminator", {"channels": [8], "resolutions": [4], "SingleDisc": {"ndf": 9}}, "takes 9 channels, but 8 enter"),
        ("D", WHOLE | {"backbone_kwargs": {"num_disc": 1}}, "D.backbone_kwargs option 'num_disc'"),
        ("diffaug", {"policy": "color,blur"}, "policy of Projected GAN names 'blur'"),
    ],
)
def test_unknown_or_unsupported_options_are_loud(module: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(module, options)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("generator", GENERATOR),
        ("generator", GENERATOR | {"synthesis_kwargs": {"num_classes": 3, "lite": True}}),
        ("generator", {"z_dim": 5, "img_resolution": 256, "ngf": 2, "img_channels": 1}),
        ("generator", {"z_dim": 5, "img_resolution": 512, "ngf": 4, "synthesis_kwargs": {"lite": True}}),
        ("generator", {"z_dim": 5, "img_resolution": 1024, "ngf": 8, "synthesis_kwargs": {"lite": True}}),
        ("discriminator", HEADS),
        ("discriminator", HEADS | {"separable": True, "patch": True, "resolutions": [16, 16]}),
        ("discriminator", {"channels": [3], "resolutions": [32], "SingleDisc": {"ndf": 6, "head": True}}),
        ("discriminator", {"channels": [9], "resolutions": [8]} | {"SingleDisc": {}}),
        ("projector", PROJECTOR),
        ("projector", PROJECTOR | {"expand": False, "proj_type": 1}),
    ],
)
def test_options_are_read_off_a_checkpoint(module: str, options: dict[str, Any]) -> None:
    source = ProjectedGANSource()
    network = built(module, options)
    state = official_state(network)
    idle = "synthesis.feat_256.1.weight_orig" if not options.get("cond") else "synthesis.feat_256.conv1.weight_orig"
    assert module != "generator" or idle in state or options.get("synthesis_kwargs", {}).get("lite")
    found = source.recognise(state)
    assert found is not None and list(found) == [module]
    again = source.build(found)
    ours, expected = dict(again[module].config), dict(network.config)
    if not options.get("cond"):  # an unconditional network does not show how many classes its data had
        ours.pop("num_classes", None), expected.pop("num_classes", None)
    assert ours == expected
    load_official(source, again, state)
    converted = source.convert_state(module, state, network)
    for name, value in again[module].state_dict().items():
        torch.testing.assert_close(value, converted[name])


@pytest.mark.parametrize("first_stage", [2, 3])
def test_whole_snapshots_load_with_folded_norms(first_stage: int) -> None:
    source = ProjectedGANSource()
    whole, generator = built("D", WHOLE), built("G", GENERATOR)
    state = {f"D/{key}": value for key, value in with_backbone(whole, first_stage).items()}
    state |= {f"{module}/{key}": value for module in ("G", "G_ema") for key, value in official_state(generator).items()}
    found = source.recognise(dict(sorted(state.items())))  # a reader may sort the keys: names must do
    assert found is not None and sorted(found) == ["D", "G", "G_ema"]
    assert found["D"]["img_resolution"] == 128 and found["D"]["interp224"] is True
    networks = source.build(found)
    load_official(source, networks, dict(sorted(state.items())))
    key = "D/feature_network.pretrained.layer0"
    scale = state[f"{key}.1.weight"] / (state[f"{key}.1.running_var"] + BATCH_NORM_EPS).sqrt()
    stem = networks["D"].backbone.stem
    torch.testing.assert_close(stem.weight, state[f"{key}.0.weight"] * scale[:, None, None, None])
    torch.testing.assert_close(stem.bias, state[f"{key}.1.bias"] - state[f"{key}.1.running_mean"] * scale)
    assert source.pipeline(networks, found).generator is networks["G_ema"]
    for missing in (f"{key}.1.bias", "D/discriminator.mini_discs.0.cls.weight_orig"):
        with pytest.raises(UserError, match="lacks"):
            load_official(source, networks, {name: value for name, value in state.items() if name != missing})
    with pytest.raises(UserError, match="no_such.weight"):
        load_official(source, networks, state | {"D/feature_network.no_such.weight": torch.zeros(1)})


def test_singular_values_follow_from_the_stored_vectors() -> None:
    source = ProjectedGANSource()
    network = built("generator", GENERATOR)
    state = official_state(network)
    converted = source.convert_state("generator", state, network)
    weight = state["synthesis.init.init.0.weight_orig"].permute(1, 0, 2, 3).flatten(1)
    expected = state["synthesis.init.init.0.weight_u"] @ weight @ state["synthesis.init.init.0.weight_v"]
    torch.testing.assert_close(converted["project_in.spectral_norm.singular_values"], expected[None])


def test_other_layouts_are_not_recognised() -> None:
    source = ProjectedGANSource()
    assert source.recognise({"linear.weight": torch.zeros(2, 2)}) is None
    assert source.recognise({}) is None
    state = official_state(built("projector", PROJECTOR))
    assert source.recognise({"a/x": torch.zeros(1), **{f"b/{key}": value for key, value in state.items()}}) is None


def test_only_generators_make_images() -> None:
    source = ProjectedGANSource()
    with pytest.raises(UserError, match="holds no generator"):
        source.pipeline({"projector": built("projector", PROJECTOR)}, {})
    with pytest.raises(UserError, match="needs the options of at least one module"):
        source.build({})
