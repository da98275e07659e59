"""PyTorch-StudioGAN's options and keys; what the numbers must be is held by tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from generative.convert.base import load_official
from generative.convert.gan.studiogan import StudioGANSource, our_key
from generative.core.errors import UserError

COMMON = {"backbone": "deep_conv", "img_size": 32, "num_classes": 3}
GENERATOR = {"z_dim": 6, "g_cond_mtd": "cBN", "in_dims": [8, 8, 8], "out_dims": [8, 8, 8], "apply_g_sn": False}
DISCRIMINATOR = {"d_cond_mtd": "PD", "in_dims": [3, 8, 8], "out_dims": [8, 8, 16], "last_conv": [16, 8], "apply_d_sn": False}


def build(generator: dict[str, Any] | None = None, discriminator: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    modules = {"generator": {**GENERATOR, **(generator or {})}, "discriminator": {**DISCRIMINATOR, **(discriminator or {})}}
    return StudioGANSource().build({**modules, "common": COMMON, **top})


def official_state(network: torch.nn.Module, pairs: dict[str, str]) -> dict[str, Tensor]:
    """Our tensors under official names."""
    return {official: network.state_dict()[ours].clone() for official, ours in pairs.items()}


def test_options_become_ours() -> None:
    networks = build({"activation": "Leaky_ReLU", "init": "N02", "bn_eps": 1e-5}, {"apply_d_sn": True, "d_init": None})
    config = networks["generator"].config
    assert (tuple(config.widths), config.activation, config.weight_init) == ((8, 8, 8, 8), "leaky_relu", "normal")
    assert (config.batch_norm_eps, config.batch_norm_momentum, config.class_conditional) == (1e-5, 0.1, True)
    config = networks["discriminator"].config
    assert (config.spectral_norm, config.batch_norm, config.conditioning, config.weight_init) == (True, False, "projection", None)
    assert networks["generator"].image_size == networks["discriminator"].image_size == 32


def test_official_defaults_and_divided_widths() -> None:
    networks = StudioGANSource().build({"generator": {}, "discriminator": {}, "width_divisor": 64, "gp_lambda": 10.0})
    assert tuple(networks["generator"].config.widths) == (8, 4, 2, 1)
    config = networks["discriminator"].config
    assert (tuple(config.widths), config.last_width, config.conditioning) == ((1, 2, 4), 8, "none")
    assert networks["generator"].z_dim == 128 and not networks["generator"].config.class_conditional


def test_attention_is_numbered_by_block() -> None:
    networks = build(
        {"apply_attn": True, "attn_g_loc": [2, 7]}, {"apply_attn": True, "attn_d_loc": [1], "img_size": 64}, common=COMMON
    )
    assert tuple(networks["generator"].config.attention_resolutions) == (16,)
    assert tuple(networks["discriminator"].config.attention_resolutions) == (32,)
    assert tuple(build({"attn_g_loc": [2]})["generator"].config.attention_resolutions) == ()


def test_conditions_of_the_discriminator() -> None:
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    for method, shape in (("W/O", (2,)), ("PD", (2,)), ("MD", (2,)), ("MH", (2, 4))):
        assert build(discriminator={"d_cond_mtd": method})["discriminator"](images, labels).shape == shape


def test_several_networks_of_a_kind() -> None:
    config = {
        "generator": GENERATOR,
        "generator_plain": {**GENERATOR, "g_cond_mtd": "W/O"},
        "common": {**COMMON, "d_act_fn": "ELU"},
    }
    networks = StudioGANSource().build(config)
    assert sorted(networks) == ["generator", "generator_plain"]
    with pytest.raises(UserError, match="samples from one generator, the checkpoint holds generator, generator_plain"):
        StudioGANSource().pipeline(networks, config)


@pytest.mark.parametrize(
    ("generator", "discriminator", "message"),
    [
        (
            {"g_cond_mtd": "cAdaIN"},
            {},
            "generator option g_cond_mtd='cAdaIN' of PyTorch-StudioGAN is not supported here; supported: 'W/O', 'cBN'",
        ),
        ({"backbone": "big_resnet"}, {}, "option backbone='big_resnet'"),
        ({"activation": "SiLU"}, {}, "option g_act_fn='SiLU'"),
        ({"g_init": "zero"}, {}, "option g_init='zero'"),
        ({"mixed_precision": True}, {}, "option mixed_precision=True"),
        ({"info_type": "discrete"}, {}, "option info_type='discrete'"),
        ({"in_dims": [8, 8, 4]}, {}, "in_dims \\[8, 8, 4\\] does not continue out_dims \\[8, 8, 8\\]"),
        ({"in_dims": "8"}, {}, "option in_dims of .* must be a list of whole numbers or None, got '8'"),
        ({"z_dim": "6"}, {}, "option z_dim of PyTorch-StudioGAN must be a whole number, got '6'"),
        (
            {"apply_attn": True, "attn_g_loc": "N/A"},
            {},
            "option attn_g_loc of .* must be a list of blocks, .* got 'N/A'",
        ),
        ({"g_colour": 3}, {}, "generator option 'g_colour' of PyTorch-StudioGAN is unknown here"),
        ({}, {"d_cond_mtd": "AC"}, "option d_cond_mtd='AC'"),
        ({}, {"d_cond_mtd": "2C"}, "option d_cond_mtd='2C'"),
        ({}, {"aux_cls_type": "TAC"}, "option aux_cls_type='TAC'"),
        ({}, {"last_conv": [8, 8]}, "last_conv with 16, .* got 3, \\[8, 8\\]"),
        ({}, {"z_dim": 6}, "discriminator option 'z_dim'"),
    ],
)
def test_unknown_or_unsupported_options_are_loud(generator: dict[str, Any], discriminator: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(generator, discriminator)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"encoder": {}}, "modules generator and discriminator, got 'encoder'"),
        ({"common": COMMON}, "modules generator and discriminator, got 'none'"),
        ({"generator": {}, "width_divisor": 0}, "width_divisor must be a whole number of at least 1, got 0"),
    ],
)
def test_unknown_modules_are_loud(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StudioGANSource().build(config)


def test_keys_become_ours() -> None:
    networks = build({"apply_attn": True, "attn_g_loc": [1]}, {"apply_attn": True, "attn_d_loc": [2]})
    generator, discriminator = networks["generator"], networks["discriminator"]
    assert our_key(generator, "linear0.weight") == "linear.weight"
    assert our_key(generator, "blocks.0.0.deconv0.weight_orig") == "convs.0.weight"
    assert our_key(generator, "blocks.1.0.conv1x1_theta.weight") == "attentions.0.query.weight"
    assert our_key(generator, "blocks.1.0.sigma") == "attentions.0.gamma"
    assert our_key(generator, "blocks.2.0.bn0.bn.running_var") == "norms.1.norm.running_var"
    assert our_key(generator, "blocks.2.0.bn0.gain.weight") == "norms.1.gain.weight"
    assert our_key(generator, "blocks.9.0.deconv0.weight") is None
    assert our_key(generator, "blocks.0.0.deconv1.weight") is None
    assert our_key(discriminator, "blocks.3.0.conv1.bias") == "blocks.2.3.bias"
    assert our_key(discriminator, "blocks.0.0.bn1.weight") == "blocks.0.4.gain"
    assert our_key(discriminator, "bn1.weight") == "last.1.gain"
    assert our_key(discriminator, "embedding.weight_u") == "class_embedding.spectral_norm.u"
    assert our_key(discriminator, "linear2.weight") is None
    plain = build(discriminator={"d_cond_mtd": "W/O"})["discriminator"]
    assert our_key(plain, "embedding.weight") is None


class OfficialGenerator(torch.nn.Module):
    """Submodules named, shaped and normalised as those of the official generator; its block of attention comes second."""

    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.utils.spectral_norm
        self.linear0 = norm(torch.nn.Linear(6, 8 * 16))
        blocks = []
        for _ in range(3):
            block = torch.nn.Module()
            block.deconv0 = norm(torch.nn.ConvTranspose2d(8, 8, 4, 2, 1))
            block.bn0 = torch.nn.Module()
            block.bn0.bn = torch.nn.BatchNorm2d(8, affine=False)
            block.bn0.gain, block.bn0.bias = (norm(torch.nn.Linear(3, 8, bias=False)) for _ in range(2))
            blocks.append(torch.nn.ModuleList([block]))
        attention = torch.nn.Module()
        for name, (channels_in, channels_out) in {"theta": (8, 1), "phi": (8, 1), "g": (8, 4), "attn": (4, 8)}.items():
            setattr(attention, f"conv1x1_{name}", norm(torch.nn.Conv2d(channels_in, channels_out, 1, bias=False)))
        attention.sigma = torch.nn.Parameter(torch.tensor([0.5]))
        blocks.insert(1, torch.nn.ModuleList([attention]))
        self.blocks = torch.nn.ModuleList(blocks)
        self.conv4 = norm(torch.nn.Conv2d(8, 3, 3, 1, 1))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_checkpoint_is_recognised_and_loaded() -> None:
    torch.manual_seed(0)
    source, state = StudioGANSource(), OfficialGenerator().state_dict()
    config = source.recognise(state)
    assert config == {
        "generator": {
            **{"z_dim": 6, "in_dims": [8, 8, 8], "out_dims": [8, 8, 8], "g_cond_mtd": "cBN", "num_classes": 3, "img_size": 32},
            **{"apply_g_sn": True, "apply_attn": True, "attn_g_loc": [1]},
        }
    }
    networks = source.build(config)
    load_official(source, networks, state)
    generator = networks["generator"]
    ours = generator.state_dict()
    assert torch.equal(ours["norms.2.gain.weight"], state["blocks.3.0.bn0.gain.weight_orig"].T)
    assert ours["attentions.0.gamma"].item() == 0.5
    for name, module in (("convs.1", generator.convs[1]), ("norms.0.gain", generator.norms[0].gain)):
        norm = module.eval().spectral_norm
        matrix = module.weight.transpose(0, 1).flatten(1)  # both are normalised with their second axis as outputs
        torch.testing.assert_close(ours[f"{name}.spectral_norm.singular_values"], norm.u @ matrix @ norm.v[0])
    images = source.pipeline(networks, config)(class_labels=[0, 2], output_type="pt").images
    assert images.shape == (2, 3, 32, 32)


def test_networks_are_recognised_by_their_shapes() -> None:
    source = StudioGANSource()
    linear = {"linear1.weight": torch.zeros(4, 8), "linear1.bias": torch.zeros(4)}
    convs = {
        "blocks.0.0.conv0.weight": torch.zeros(8, 3, 3, 3),
        "blocks.1.0.conv0.weight": torch.zeros(16, 8, 3, 3),
        "conv1.weight": torch.zeros(8, 16, 3, 3),
    }
    found = source.recognise({**convs, **linear})
    assert found is not None
    options = found["discriminator"]
    assert (options["in_dims"], options["out_dims"], options["last_conv"]) == ([3, 8], [8, 16], [16, 8])
    assert "d_cond_mtd" not in options  # MH of 3 classes, or MD of 4: the shapes do not tell
    generator = {
        "linear0.weight": torch.zeros(128, 6),
        "conv4.weight": torch.zeros(3, 8, 3, 3),
        "blocks.0.0.deconv0.weight": torch.zeros(8, 8, 4, 4),
    }
    for num_classes, method in ((3, "MH"), (4, "MD")):
        table = {"blocks.0.0.bn0.gain.weight": torch.zeros(8, num_classes)}
        both = {f"generator/{key}": value for key, value in (generator | table).items()}
        found = source.recognise({**both, **{f"discriminator/{key}": value for key, value in (convs | linear).items()}})
        assert found is not None and found["discriminator"]["d_cond_mtd"] == method
        assert found["discriminator"]["img_size"] == 8 and found["discriminator"]["num_classes"] == num_classes
    assert source.recognise({**convs, **linear, "linear2.weight": torch.zeros(3, 8)})["discriminator"]["d_cond_mtd"] == "AC"  # type: ignore[index]


def test_other_layouts_are_not_recognised() -> None:
    source = StudioGANSource()
    assert source.recognise({"linear0.weight": torch.zeros(2, 2), "conv4.weight": torch.zeros(3, 2, 3, 3)}) is None  # big_resnet
    assert source.recognise({"linear.weight": torch.zeros(2, 2)}) is None
    assert source.recognise({}) is None


def test_unknown_keys_are_all_named() -> None:
    source, networks = StudioGANSource(), build()
    state = {
        "blocks.0.0.bn0.num_batches_tracked": torch.zeros(()),
        "linear2.weight": torch.zeros(1),
        "foo.num_batches_tracked": torch.zeros(()),
    }
    with pytest.raises(
        UserError, match=r"discriminator of wgan-gp has no place for the official keys foo\.num.*, linear2\.weight"
    ):
        source.convert_state("discriminator", state, networks["discriminator"])


def test_a_discriminator_alone_makes_no_images() -> None:
    with pytest.raises(UserError, match="samples from one generator, the checkpoint holds none"):
        StudioGANSource().pipeline({"discriminator": build()["discriminator"]}, {})
