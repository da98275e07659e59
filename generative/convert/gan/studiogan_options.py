"""Official options of PyTorch-StudioGAN's ``deep_conv`` networks: read off a configuration or off a checkpoint's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from generative.convert.base import split_by_module
from generative.convert.files.options import ConstructorOptions
from generative.core.errors import UserError
from generative.gan.dcgan import BOTTOM_SIZE, DCGANDiscriminator, DCGANGenerator

BACKBONE = "deep_conv"
# Hard-coded in models/deep_conv.py: into and out of each block, and the discriminator's last convolution.
GENERATOR_DIMS = ((512, 256, 128), (256, 128, 64))
DISCRIMINATOR_DIMS = ((3, 64, 128), (64, 128, 256))
LAST_CONV = (256, 512)
# Options that say nothing of this backbone's layers: of other backbones, or of training.
UNUSED_OPTIONS = {
    "generator": ("g_shared_dim", "g_conv_dim", "g_depth"),
    "discriminator": ("d_conv_dim", "d_depth", "d_embed_dim", "normalize_d_embed"),
}
TRAINING_OPTIONS = ("gp_lambda",)
# Options that may stand in "common" and speak of one network only.
OWN_OPTIONS = {
    "generator": {"z_dim", "g_cond_mtd", "attn_g_loc", "apply_g_sn", "g_act_fn", "g_init", "g_info_injection"},
    "discriminator": {"d_cond_mtd", "attn_d_loc", "apply_d_sn", "d_act_fn", "d_init", "aux_cls_type", "last_conv"},
}
YES_NO = {True: True, False: False}
ACTIVATION_NAMES = {"ReLU": "relu", "Leaky_ReLU": "leaky_relu", "ELU": "elu", "GELU": "gelu"}
INIT_NAMES = {"ortho": "orthogonal", "N02": "normal", "glorot": "xavier", "xavier": "xavier", None: None}
GENERATOR_CONDITIONS = {"W/O": False, "cBN": True}
# MH (multi-hinge) is a discriminator of 1 + num_classes outputs. AC, 2C, D2DCE add heads whose losses are not here.
DISCRIMINATOR_CONDITIONS = {"W/O": "none", "MH": "none", "PD": "projection", "MD": "class_output"}


def kind_of(module: str) -> str | None:
    """``generator`` or ``discriminator`` for a module of that name, with or without a suffix (``generator_cond``); else None."""
    return next((kind for kind in OWN_OPTIONS if module == kind or module.startswith(f"{kind}_")), None)


class StudioOptions(ConstructorOptions):
    """Official options of one network.

    Args:
        module: Name of the network, for messages.
        kind: ``generator`` or ``discriminator``.
        options: Arguments by name.
    """

    repository = "PyTorch-StudioGAN"

    def __init__(self, module: str, kind: str, options: Mapping[str, Any]) -> None:
        super().__init__(module, options)
        self.drop(*UNUSED_OPTIONS[kind])
        self.choose("backbone", BACKBONE, (BACKBONE,))
        self.choose("mixed_precision", False, (False,))  # half precision is the trainer's here
        for name in ("info_type", "g_info_injection", "info_num_discrete_c", "info_dim_discrete_c", "info_num_conti_c"):
            self.choose(name, "N/A", ("N/A",))  # InfoGAN's codes and heads

    def numbers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Take a list of whole numbers.

        Raises:
            UserError: If it is not one.
        """
        value = self.take(name, default)
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            raise self.refuse(name, value, "a list of whole numbers")
        return tuple(value)

    def widths(self, default: tuple[tuple[int, ...], tuple[int, ...]], divisor: int) -> tuple[int, ...]:
        """Take ``in_dims`` and ``out_dims``: channels into the first block, then out of each.

        Raises:
            UserError: If a block takes other channels than the one before gives.
        """
        official = [tuple(dim if dim == 3 else dim // divisor for dim in dims) for dims in default]
        in_dims, out_dims = self.numbers("in_dims", official[0]), self.numbers("out_dims", official[1])
        if not in_dims or len(in_dims) != len(out_dims) or in_dims[1:] != out_dims[:-1]:
            raise UserError(f"{self.owner} option in_dims {list(in_dims)} does not continue out_dims {list(out_dims)}")
        return (in_dims[0], *out_dims)

    def attention(self, name: str, stages: list[int]) -> tuple[int, ...]:
        """Take ``apply_attn`` and where: numbers of blocks, counted from 1; those that are not there never match officially."""
        wanted = self.choose("apply_attn", False, YES_NO)
        places = self.take(name, ["N/A"])
        if not isinstance(places, (list, tuple)):
            raise self.refuse(name, places, "a list of blocks, counted from 1")
        return tuple(size for index, size in enumerate(stages, start=1) if wanted and index in places)

    def shared(self, prefix: str) -> dict[str, Any]:
        """Take what both networks say in one way."""
        activation = self.take("activation", "ReLU")
        init = self.take("init", "ortho")
        return {
            "num_classes": self.take("num_classes", 10, int),
            "activation": self.choose(f"{prefix}_act_fn", activation, ACTIVATION_NAMES),
            "weight_init": self.choose(f"{prefix}_init", init, INIT_NAMES),
            "spectral_norm": self.choose(f"apply_{prefix}_sn", False, YES_NO),
            "batch_norm_eps": self.take("bn_eps", 1e-4, float, int),
            "batch_norm_momentum": self.take("bn_momentum", 0.1, float, int),
        }


def build_generator(options: StudioOptions, divisor: int) -> DCGANGenerator:
    """Build our generator; the official one ignores ``img_size``, its widths say how often it doubles."""
    options.take("img_size", 32, int)
    widths = options.widths(GENERATOR_DIMS, divisor)
    arguments = {
        "z_dim": options.take("z_dim", 128, int),
        "widths": widths,
        "class_conditional": options.choose("g_cond_mtd", "W/O", GENERATOR_CONDITIONS),
        "attention_resolutions": options.attention("attn_g_loc", [BOTTOM_SIZE << (i + 1) for i in range(len(widths) - 1)]),
        **options.shared("g"),
    }
    options.finish()
    return DCGANGenerator(**arguments)


def build_discriminator(options: StudioOptions, divisor: int) -> DCGANDiscriminator:
    """Build our discriminator; batch norm is where spectral norm is not."""
    image_size = options.take("img_size", 32, int)
    image_channels, *widths = options.widths(DISCRIMINATOR_DIMS, divisor)
    last_conv = options.numbers("last_conv", (LAST_CONV[0] // divisor, LAST_CONV[1] // divisor))
    if image_channels != 3 or len(last_conv) != 2 or last_conv[0] != widths[-1]:
        wanted = f"in_dims that start with 3 and last_conv with {widths[-1]}, channels out of the last block"
        raise UserError(f"{options.owner} needs {wanted}, and last_conv of two numbers; got {image_channels}, {list(last_conv)}")
    method = options.options.get("d_cond_mtd", "W/O")
    options.choose("aux_cls_type", "W/O", {"W/O": None})  # the classifiers of TAC-GAN and ADC-GAN
    shared = options.shared("d")
    arguments = {
        "image_size": image_size,
        "widths": tuple(widths),
        "last_width": last_conv[1],
        "conditioning": options.choose("d_cond_mtd", "W/O", DISCRIMINATOR_CONDITIONS),
        "output_dim": 1 + shared["num_classes"] if method == "MH" else 1,
        "attention_resolutions": options.attention("attn_d_loc", [image_size >> (i + 1) for i in range(len(widths))]),
        "batch_norm": not shared["spectral_norm"],
        **shared,
    }
    options.finish()
    return DCGANDiscriminator(**arguments)


def recognise_generator(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of a generator by its tensors' names and shapes; None if they are not one of this layout."""
    weight = "weight_orig" if "linear0.weight_orig" in state else "weight"
    if not {f"linear0.{weight}", f"blocks.0.0.deconv0.{weight}", f"conv4.{weight}"} <= state.keys():
        return None
    blocks, places = find_blocks(state, f"deconv0.{weight}")
    in_dims, out_dims = [len(blocks[0]), *(block.shape[1] for block in blocks[:-1])], [block.shape[1] for block in blocks]
    options: dict[str, Any] = {"z_dim": state[f"linear0.{weight}"].shape[1], "in_dims": in_dims, "out_dims": out_dims}
    options |= {"apply_g_sn": weight == "weight_orig", "apply_attn": bool(places), "attn_g_loc": places}
    table = state.get(f"blocks.0.0.bn0.gain.{weight}")  # a layer on one-hot labels (C, K)
    return options | ({"g_cond_mtd": "W/O"} if table is None else {"g_cond_mtd": "cBN", "num_classes": table.shape[1]})


def recognise_discriminator(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of a discriminator by its tensors' names and shapes; None if they are not one of this layout.

    MH and MD, of 1 + K and of K outputs, look alike: without K from elsewhere the option is left out, and loading refuses.
    """
    weight = "weight_orig" if "linear1.weight_orig" in state else "weight"
    if not {f"linear1.{weight}", f"blocks.0.0.conv0.{weight}", f"conv1.{weight}"} <= state.keys():
        return None
    blocks, places = find_blocks(state, f"conv0.{weight}")
    options: dict[str, Any] = {"in_dims": [block.shape[1] for block in blocks], "out_dims": [len(block) for block in blocks]}
    options["last_conv"] = [state[f"conv1.{weight}"].shape[1], len(state[f"conv1.{weight}"])]
    options |= {"apply_d_sn": weight == "weight_orig", "apply_attn": bool(places), "attn_d_loc": places}
    has_head, table = f"linear2.{weight}" in state, state.get(f"embedding.{weight}")
    if table is not None and not has_head:
        options |= {"d_cond_mtd": "PD", "num_classes": len(table)}
    elif has_head:
        options["d_cond_mtd"] = "AC" if table is None else "2C"  # which build refuses by name
    return options


def find_blocks(state: Mapping[str, Tensor], first: str) -> tuple[list[Tensor], list[int]]:
    """First weights of a network's blocks, and after which of them, counted from 1, attention comes."""
    blocks: list[Tensor] = []
    places: list[int] = []
    while True:
        prefix = f"blocks.{len(blocks) + len(places)}.0"
        if f"{prefix}.{first}" in state:
            blocks.append(state[f"{prefix}.{first}"])
        elif f"{prefix}.sigma" in state:
            places.append(len(blocks))
        else:
            return blocks, places


def recognise_networks(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of every network of a checkpoint.

    Args:
        state: Tensors by ``<module>/<key>``, or those of one network by ``<key>``.

    Returns:
        Options by network; None if any of them is of another layout.
    """
    parts = split_by_module(state)
    config: dict[str, Any] = {}
    for module, tensors in parts.items():
        found = {"generator": recognise_generator(tensors), "discriminator": recognise_discriminator(tensors)}
        kind = next((kind for kind, options in found.items() if options is not None), None)
        if kind is None or (module and kind_of(module) != kind):
            return None
        config[module or kind] = found[kind]
    share_facts(config, parts)
    return config or None


def share_facts(config: dict[str, Any], parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Tell each network, in place, what only the others' shapes show: the number of classes and the size of the images."""
    num_classes = next((options["num_classes"] for options in config.values() if "num_classes" in options), None)
    sizes = [BOTTOM_SIZE << len(options["out_dims"]) for name, options in config.items() if kind_of(name) == "generator"]
    for module, options in config.items():
        if sizes:
            options["img_size"] = sizes[0]
        if num_classes is None:
            continue
        options["num_classes"] = num_classes
        bias = parts.get(module, parts.get("", {})).get("linear1.bias")  # one for each output
        if bias is not None and len(bias) > 1:
            options.setdefault("d_cond_mtd", "MD" if len(bias) == num_classes else "MH")
