"""Official options of FiT and FiTv2 (whlzy/FiT): the network's, the path's and those of sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

from generative.convert.arguments import FLAG, NUMBER, POSITIVE, UNUSED, Argument, Constructor, Kind, one_of, optional
from generative.convert.diffusion import dit, sit
from generative.convert.diffusion.dit_layout import GUIDED_CHANNELS, LATENT_CHANNELS
from generative.core.errors import UserError
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.fit_blocks import NormKind
from generative.layers.scaled_rope import FrequencyScaling

SAMPLING_STEPS, FID_GUIDANCE = 250, 1.5
PUBLISHED_TRANSPORT = MappingProxyType({"path_type": "Linear", "prediction": "velocity", "snr_type": "lognorm"})
INTERPOLANT_OPTIONS = ("path", "prediction_type", "data_time", "weighting", "min_level", "max_level")


def lowered(choices: tuple[str, ...]) -> Kind:
    """Some names in any case, which the official code ignores."""
    wanted = ", ".join(map(repr, choices))
    return Kind(wanted, lambda value: isinstance(value, str) and value.lower() in choices, str.lower)


NORM = Kind(
    ", ".join(("None", *map(repr, get_args(NormKind)))),
    lambda value: value in (None, "") or lowered(get_args(NormKind)).fits(value),
    lambda value: str(value or "none").lower(),
)
SCALING = lowered(get_args(FrequencyScaling))
ROTARY = Kind(
    "text or None",  # other texts than these two are officially no rotation
    lambda value: value is None or isinstance(value, str),
    lambda value: value is not None and value.lower() in ("rope", "xpos"),
)
POWER = Kind("a number of 0 or more", lambda value: NUMBER.fits(value) and value >= 0)
OPTIONS = Kind("options by name", lambda value: isinstance(value, Mapping))
TRANSPORT = Constructor(
    "Transport",
    "whlzy/FiT",
    {
        **{name: sit.CONSTRUCTOR.arguments[name] for name in sit.SiTSource.script_arguments},
        "snr_type": Argument(None, "uniform", one_of({"uniform": "uniform", "lognorm": "logit_normal"})),
    },
)
CONSTRUCTOR = Constructor(
    "FiT",
    "whlzy/FiT",
    {
        "context_size": Argument("context_size", 256, POSITIVE),
        "patch_size": Argument("patch_size", 2, POSITIVE),
        "in_channels": Argument("in_channels", 4, POSITIVE),
        "hidden_size": Argument("hidden_size", 1152, POSITIVE),
        "depth": Argument("depth", 28, POSITIVE),
        "num_heads": Argument("num_heads", 16, POSITIVE, untold='{"num_heads": N}'),
        "mlp_ratio": Argument("mlp_ratio", 4.0, NUMBER),
        "class_dropout_prob": Argument("class_dropout_prob", 0.1, NUMBER),
        "num_classes": Argument("num_classes", 1000, POSITIVE),
        "learn_sigma": Argument("learn_sigma", True, FLAG),
        "use_sit": Argument(None, False, FLAG),
        "use_swiglu": Argument("use_swiglu", False, FLAG),
        "use_swiglu_large": Argument("use_swiglu_large", False, FLAG),
        "rel_pos_embed": Argument("rotates", "rope", ROTARY),
        "norm_type": Argument("norm_type", "layernorm", NORM),
        "q_norm": Argument("q_norm", None, NORM),
        "k_norm": Argument("k_norm", None, NORM),
        "qk_norm_weight": Argument(None, False, FLAG),
        "qkv_bias": Argument("qkv_bias", True, FLAG),
        "ffn_bias": Argument("ffn_bias", True, FLAG),
        "adaln_bias": Argument("adaln_bias", True, FLAG),
        "adaln_type": Argument("adaln_type", "normal", one_of(("normal", "lora", "swiglu"))),
        "adaln_lora_dim": Argument("adaln_lora_dim", None, optional(POSITIVE)),
        "rope_theta": Argument("rope_theta", 10000.0, NUMBER),
        "custom_freqs": Argument("custom_freqs", "normal", SCALING),
        "max_pe_len_h": Argument("max_pe_len_h", None, optional(POSITIVE)),
        "max_pe_len_w": Argument("max_pe_len_w", None, optional(POSITIVE)),
        "decouple": Argument("decouple", False, FLAG),
        "ori_max_pe_len": Argument("ori_max_pe_len", None, optional(POSITIVE)),
        "online_rope": Argument("online_rope", False, FLAG),
        "add_rel_pe_to_v": Argument("add_rel_pe_to_v", False, FLAG),
        "time_shifting": Argument("time_shifting", 1, NUMBER),
        "frequency_embedding_size": Argument("frequency_embedding_size", 256, POSITIVE),  # of the embedder's constructor
        # How it is trained, where weights come from, and what the constructor takes and ignores.
        **dict.fromkeys(("use_checkpoint", "pretrain_ckpt", "ignore_keys", "finetune", "abs_pos_embed"), UNUSED),
        # Of the configurations and the sampling script.
        "transport": Argument(None, PUBLISHED_TRANSPORT, OPTIONS),
        "cfg_scale": Argument(None, FID_GUIDANCE, NUMBER),
        "scale_pow": Argument(None, 0.0, POWER),
    },
)
# What the published FiTv2 is besides what its tensors tell. Where sides are longer than 16 tokens the official commands sample by
# NTK-aware bases for each side; shorter ones change nothing.
PUBLISHED_V2 = MappingProxyType(
    {
        "q_norm": "layernorm",
        "k_norm": "layernorm",
        "custom_freqs": "ntk-aware",
        "decouple": True,
        "online_rope": True,
        "ori_max_pe_len": 16,
    }
)


def network_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our arguments of a network from official ones.

    Args:
        config: Official options.

    Raises:
        UserError: If an option is unknown or of the wrong kind, or options contradict one another.
    """
    values, ours = CONSTRUCTOR.values(config), CONSTRUCTOR.read(config)
    TRANSPORT.values(values["transport"])
    if values["learn_sigma"] and values["use_sit"]:
        raise UserError("FiT option learn_sigma of whlzy/FiT has no meaning with use_sit; set it to False")
    for name in ("q_norm", "k_norm"):
        if values["qk_norm_weight"] and ours[name] == "layernorm":
            ours[name] = "w_layernorm"
    if ours["adaln_type"] != "lora":
        ours["adaln_lora_dim"] = None
    ours["sample_size"] = math.isqrt(values["context_size"]) * values["patch_size"]
    return ours


def formulation(config: Mapping[str, Any]) -> Formulation:
    """What a network is trained under: the official path (``use_sit``, FiTv2), or DiT's chain (FiT).

    Args:
        config: Official options; ``use_sit``, ``learn_sigma`` and ``transport`` are read.

    Raises:
        UserError: If an option is unknown or of the wrong kind.
    """
    values = CONSTRUCTOR.values(config)
    if not values["use_sit"]:
        return dit.formulation({"learn_sigma": values["learn_sigma"]})
    TRANSPORT.values(values["transport"])
    options = dict(values["transport"])
    density = TRANSPORT.values({"snr_type": options.pop("snr_type", "uniform")})["snr_type"]
    path = sit.formulation(options)
    return Interpolant(**{**{name: path.config[name] for name in INTERPOLANT_OPTIONS}, "density": density})


def guidance_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Guidance that the published figures were sampled with, where the network has a null class.

    Args:
        config: Official options; ``cfg_scale``, ``scale_pow``, ``class_dropout_prob`` and ``in_channels`` are read.
    """
    values = CONSTRUCTOR.values(config)
    if not values["class_dropout_prob"] > 0:
        return {}
    defaults: dict[str, Any] = {"guidance_scale": float(values["cfg_scale"])}
    if values["in_channels"] >= LATENT_CHANNELS:
        defaults["guidance_channels"] = GUIDED_CHANNELS
    if values["scale_pow"]:
        defaults |= {"guidance_schedule": "falling_power_cosine", "guidance_exponent": float(values["scale_pow"])}
    return defaults
