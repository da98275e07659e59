"""Official options of PyTorch-StudioGAN's ``deep_conv`` networks: read off a configuration or off a checkpoint's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from generative.convert.arguments import (
    FLAG,
    LIST,
    NUMBER,
    OFF,
    UNUSED,
    WHOLE,
    Argument,
    Constructor,
    Kind,
    is_whole,
    one_of,
    optional,
)
from generative.convert.base import split_by_module
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
ACTIVATION_NAMES = {"ReLU": "relu", "Leaky_ReLU": "leaky_relu", "ELU": "elu", "GELU": "gelu"}
INIT_NAMES = {"ortho": "orthogonal", "N02": "normal", "glorot": "xavier", "xavier": "xavier", None: None}
GENERATOR_CONDITIONS = {"W/O": False, "cBN": True}
# MH (multi-hinge) is a discriminator of 1 + num_classes outputs. AC, 2C, D2DCE add heads whose losses are not here.
DISCRIMINATOR_CONDITIONS = {"W/O": "none", "MH": "none", "PD": "projection", "MD": "class_output"}


def kind_of(module: str) -> str | None:
    """``generator`` or ``discriminator`` for a module of that name, with or without a suffix (``generator_cond``); else None."""
    return next((kind for kind in OWN_OPTIONS if module == kind or module.startswith(f"{kind}_")), None)


NOT_APPLICABLE = Argument(None, "N/A", one_of(("N/A",)))
NUMBERS = Kind("a list of whole numbers", lambda value: LIST.fits(value) and all(map(is_whole, value)), tuple)


def shared_arguments(kind: str) -> dict[str, Argument]:
    """Arguments of a kind of network that the other kind has too, some of them under a prefix."""
    prefix = kind[0]
    return {
        **dict.fromkeys(UNUSED_OPTIONS[kind], UNUSED),
        "backbone": Argument(None, BACKBONE, one_of((BACKBONE,))),
        "mixed_precision": Argument(None, False, OFF),  # half precision is the trainer's here
        # InfoGAN's codes and heads
        **dict.fromkeys(("info_type", "info_num_discrete_c", "info_dim_discrete_c", "info_num_conti_c"), NOT_APPLICABLE),
        "g_info_injection": NOT_APPLICABLE,
        "img_size": Argument(None, 32, WHOLE),
        "in_dims": Argument(None, None, optional(NUMBERS)),
        "out_dims": Argument(None, None, optional(NUMBERS)),
        "apply_attn": Argument(None, False, FLAG),
        f"attn_{prefix}_loc": Argument(None, ["N/A"], Kind("a list of blocks, counted from 1", LIST.fits)),
        "num_classes": Argument("num_classes", 10, WHOLE),
        f"{prefix}_act_fn": Argument("activation", "ReLU", one_of(ACTIVATION_NAMES)),
        f"{prefix}_init": Argument("weight_init", "ortho", one_of(INIT_NAMES)),
        f"apply_{prefix}_sn": Argument("spectral_norm", False, FLAG),
        "bn_eps": Argument("batch_norm_eps", 1e-4, NUMBER),
        "bn_momentum": Argument("batch_norm_momentum", 0.1, NUMBER),
    }


GENERATOR = Constructor(
    "generator",
    "PyTorch-StudioGAN",
    {
        **shared_arguments("generator"),
        "z_dim": Argument("z_dim", 128, WHOLE),
        "g_cond_mtd": Argument("class_conditional", "W/O", one_of(GENERATOR_CONDITIONS)),
    },
)
DISCRIMINATOR = Constructor(
    "discriminator",
    "PyTorch-StudioGAN",
    {
        **shared_arguments("discriminator"),
        "last_conv": Argument(None, None, optional(NUMBERS)),
        "d_cond_mtd": Argument("conditioning", "W/O", one_of(DISCRIMINATOR_CONDITIONS)),
        "aux_cls_type": Argument(None, "W/O", one_of(("W/O",))),  # the classifiers of TAC-GAN and ADC-GAN
    },
)


def spread(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which ``activation`` and ``init``, of both networks, are a network's own unless it has its own."""
    names = {"activation": f"{kind[0]}_act_fn", "init": f"{kind[0]}_init"}
    common = {ours: config[name] for name, ours in names.items() if name in config}
    return common | {name: value for name, value in config.items() if name not in names}


def widths(
    owner: str, values: Mapping[str, Any], default: tuple[tuple[int, ...], tuple[int, ...]], divisor: int
) -> tuple[int, ...]:
    """Channels into the first block, then out of each.

    Raises:
        UserError: If a block takes other channels than the one before gives.
    """
    official = [tuple(dim if dim == 3 else dim // divisor for dim in dims) for dims in default]
    in_dims, out_dims = (
        stated if stated is not None else dims
        for stated, dims in zip((values["in_dims"], values["out_dims"]), official, strict=True)
    )
    if not in_dims or len(in_dims) != len(out_dims) or in_dims[1:] != out_dims[:-1]:
        raise UserError(f"{owner} option in_dims {list(in_dims)} does not continue out_dims {list(out_dims)}")
    return (in_dims[0], *out_dims)


def attended(is_wanted: bool, places: list[Any], stages: list[int]) -> tuple[int, ...]:
    """Sizes with attention: numbers of blocks, counted from 1; those that are not there never match officially."""
    return tuple(size for index, size in enumerate(stages, start=1) if is_wanted and index in places)


def build_generator(module: str, config: Mapping[str, Any], divisor: int) -> DCGANGenerator:
    """Build our generator; the official one ignores ``img_size``, its widths say how often it doubles.

    Args:
        module: Name of the network, for messages.
        config: Official options.
        divisor: Of the official widths.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    constructor, config = GENERATOR.named(module), spread("generator", config)
    values = constructor.values(config)
    sizes = widths(module, values, GENERATOR_DIMS, divisor)
    stages = [BOTTOM_SIZE << (index + 1) for index in range(len(sizes) - 1)]
    attention = attended(values["apply_attn"], values["attn_g_loc"], stages)
    return DCGANGenerator(**constructor.read(config), widths=sizes, attention_resolutions=attention)


def build_discriminator(module: str, config: Mapping[str, Any], divisor: int) -> DCGANDiscriminator:
    """Build our discriminator; batch norm is where spectral norm is not.

    Args:
        module: Name of the network, for messages.
        config: Official options.
        divisor: Of the official widths.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    constructor, config = DISCRIMINATOR.named(module), spread("discriminator", config)
    values, arguments = constructor.values(config), constructor.read(config)
    image_channels, *sizes = widths(module, values, DISCRIMINATOR_DIMS, divisor)
    last_conv = values["last_conv"] if values["last_conv"] is not None else tuple(width // divisor for width in LAST_CONV)
    if image_channels != 3 or len(last_conv) != 2 or last_conv[0] != sizes[-1]:
        wanted = f"in_dims that start with 3 and last_conv with {sizes[-1]}, channels out of the last block"
        raise UserError(f"{module} needs {wanted}, and last_conv of two numbers; got {image_channels}, {list(last_conv)}")
    is_multi_hinge = config.get("d_cond_mtd") == "MH"
    stages = [values["img_size"] >> (index + 1) for index in range(len(sizes))]
    return DCGANDiscriminator(
        **arguments,
        image_size=values["img_size"],
        widths=tuple(sizes),
        last_width=last_conv[1],
        output_dim=1 + arguments["num_classes"] if is_multi_hinge else 1,
        attention_resolutions=attended(values["apply_attn"], values["attn_d_loc"], stages),
        batch_norm=not arguments["spectral_norm"],
    )


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
