"""Checkpoints of VAR's authors (FoundationVision/VAR): the transformer, alone or with its tokenizer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.autoregressive.next_scale.var import VAR
from generative.convert.arguments import FLAG, NUMBER, SIZES, UNUSED, WHOLE, Argument, Constructor
from generative.convert.base import OfficialSource, split_by_module
from generative.convert.keys import names_of, rename_by
from generative.convert.tokenizers.var_vqvae import PATCH_NUMS_256, build_vqvae, convert_vqvae_state, recognise_vqvae
from generative.convert.tokenizers.vqgan_options import count_indices
from generative.core.errors import UserError

if TYPE_CHECKING:
    from pipelines.var import VARPipeline

MODULES = ("vae", "var")
# The published 512-pixel model's scales (var_d36.pth).
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
# What the published scores were sampled with: the official cfg, which is our scale less 1, top-k and top-p (official README).
FID_CFG, FID_TOP_K, FID_TOP_P = 1.5, 900, 0.96
# The official script's drop path of the last block is 0.1 depth / 24 (build_vae_var).
DROP_PATH, DROP_PATH_DEPTH = 0.1, 24
HEAD_SIZE = 64  # of every published model
# Tensors that follow from the options: the bias of the keys, the mask of training, and the scale of each token.
MASK, LEVELS, KEY_BIAS = "attn_bias_for_masking", "lvl_1L", "zero_k_bias"
OWN_KEYS = ("word_embed.weight", "class_emb.weight", "pos_start", "pos_1LC", "lvl_embed.weight", "head_nm.ada_lin.1.weight")
# Official key -> ours, first match wins.
KEY_PATTERNS = (
    (r"^word_embed\.", "input_projection."),
    (r"^class_emb\.", "class_embedding."),
    (r"^pos_start$", "start_embedding"),
    (r"^pos_1LC$", "position_embedding"),
    (r"^lvl_embed\.", "level_embedding."),
    (r"^shared_ada_lin\.1\.", "shared_modulation."),
    (r"^blocks\.(\d+)\.ada_gss$", r"blocks.\1.modulation_table"),
    (r"^blocks\.(\d+)\.ada_lin\.1\.", r"blocks.\1.modulation."),
    (r"^blocks\.(\d+)\.attn\.mat_qkv\.", r"blocks.\1.attention.qkv."),
    (r"^blocks\.(\d+)\.attn\.([qv]_bias)$", r"blocks.\1.attention.\2"),
    (r"^blocks\.(\d+)\.attn\.scale_mul_1H11$", r"blocks.\1.attention.log_scale"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"blocks.\1.attention.out."),
    (r"^blocks\.(\d+)\.ffn\.(fc[12])\.", r"blocks.\1.mlp.\2."),
    (r"^head_nm\.ada_lin\.1\.", "head_modulation."),
    (r"^head\.", "head."),
)


CONSTRUCTOR = Constructor(
    "VAR",
    "FoundationVision/VAR",
    {
        "vocab_size": Argument("num_codes", 4096, WHOLE),  # this and the next are the tokenizer's
        "z_channels": Argument("latent_channels", 32, WHOLE),
        "num_classes": Argument("num_classes", 1000, WHOLE),
        "patch_nums": Argument("patch_nums", PATCH_NUMS_256, SIZES, untold='{"var": {"patch_nums": [...]}}'),
        "embed_dim": Argument("hidden_size", 1024, WHOLE),
        "depth": Argument("depth", 16, WHOLE),
        "num_heads": Argument("num_heads", 16, WHOLE, untold='{"var": {"num_heads": N}}'),
        "mlp_ratio": Argument("mlp_ratio", 4.0, NUMBER),
        "shared_aln": Argument("shared_adaln", False, FLAG),
        "attn_l2_norm": Argument("qk_l2_norm", False, FLAG),
        "norm_eps": Argument("norm_eps", 1e-6, NUMBER),
        "drop_rate": Argument("dropout", 0.0, NUMBER),
        "attn_drop_rate": Argument("attention_dropout", 0.0, NUMBER),
        "drop_path_rate": Argument("drop_path", 0.0, NUMBER),
        "cond_drop_rate": Argument(None, 0.1, NUMBER),  # ``label_dropout`` of our objective
        "vae_kwargs": UNUSED,
        "flash_if_available": UNUSED,  # this and the next choose among kernels of the same result
        "fused_if_available": UNUSED,
    },
)


def build_transformer(config: Mapping[str, Any], vae: Mapping[str, Any] | None) -> VAR:
    """Build our VAR from the official constructor's arguments.

    Args:
        config: Arguments of the official ``VAR``. Without ``vae`` the tokenizer's ``vocab_size`` and ``z_channels`` may be among
            them.
        vae: Arguments of the tokenizer, the official constructor's first argument; None for ``vae_kwargs`` of ``config``
            (``VARHF``).

    Raises:
        UserError: If an option is unknown or of the wrong type.
    """
    stated = CONSTRUCTOR.values(config)["vae_kwargs"] if vae is None else vae
    stated = stated if isinstance(stated, Mapping) else {}
    codes = {name: stated[name] for name in ("vocab_size", "z_channels") if name in stated}
    return VAR(**CONSTRUCTOR.read({**config, **codes}))


def check_constant(key: str, value: Tensor, network: ModelMixin) -> None:
    """Check a tensor that follows from the options against what it must be.

    Raises:
        UserError: If it is something else.
    """
    levels = network.levels
    if key.endswith(KEY_BIAS):
        expected = torch.zeros(network.config.hidden_size)
    elif key == LEVELS:
        expected = levels[None]  # (1, L)
    else:
        expected = torch.where(levels[:, None] >= levels, 0.0, -math.inf)[None, None]  # (1, 1, L, L)
    is_known = not (value.is_meta or expected.is_meta)
    if value.shape != expected.shape or (is_known and not torch.equal(value.to(expected.dtype), expected)):
        raise UserError(
            f"{key} of the VAR checkpoint is not what patch_nums={tuple(network.config.patch_nums)} make it; "
            "give the patch_nums it was trained with"
        )


class VARSource(OfficialSource):
    """VAR as ``models/var.py`` builds it (module ``var``), with its tokenizer (module ``vae``) where that is given too."""

    name = "var"
    repository = "FoundationVision/VAR"
    modules = MODULES

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks from official arguments.

        Args:
            config: Arguments of the official ``VQVAE`` as ``vae`` and of ``VAR`` as ``var``; one may be absent.

        Returns:
            Networks by the same names.

        Raises:
            UserError: If an option is unknown or of the wrong type, or the two do not fit.
        """
        strangers = [name for name in config if name not in MODULES]
        if strangers or not config:
            raise UserError(f"options of {self.repository} must be given as vae and var, got {strangers or 'none'}")
        networks: dict[str, ModelMixin] = {}
        if "vae" in config:
            networks["vae"] = build_vqvae(config["vae"])
        if "var" in config:
            networks["var"] = build_transformer(config["var"], config.get("vae"))
        if len(networks) == len(MODULES):
            from generative.autoregressive.next_scale.scheduler import check_pyramid

            check_pyramid(networks["var"], networks["vae"])
        return networks

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; constants that follow from the options are checked and left out.

        Args:
            module: ``vae`` or ``var``.
            state: Official tensors.
            network: Our network.

        Raises:
            UserError: If a key is unknown, or a constant is not what it must be.
        """
        if module == "vae":
            return convert_vqvae_state(state, network)
        constants = [key for key in state if key in (MASK, LEVELS) or re.match(rf"^blocks\.\d+\.attn\.{KEY_BIAS}$", key)]
        for key in constants:
            check_constant(key, state[key], network)
        names = names_of("VAR", (key for key in state if key not in constants), partial(rename_by, KEY_PATTERNS))
        converted = {}
        for key, name in names.items():
            value = state[key]
            # One of each head, or six of each feature, without the axes that broadcast.
            is_small = name.endswith((".log_scale", ".modulation_table"))
            converted[name] = value.reshape([size for size in value.shape if size > 1] or [1]) if is_small else value
        return converted

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off names and shapes; what they do not tell is the official script's (``build_vae_var``).

        Args:
            state: Official tensors, with or without modules before their names.

        Returns:
            Options in the form that ``build`` takes; None for another layout, a tokenizer alone included.

        Raises:
            UserError: If transformer and tokenizer are not of one model.
        """
        parts = split_by_module(state)
        var = recognise_transformer(parts.get("var", parts.get("", {})))
        if var is None or any(name not in (*MODULES, "") for name in parts):
            return None
        if "vae" not in parts:
            return {"var": var}
        vae = recognise_vqvae(parts["vae"])
        if vae is None:
            return None
        check_codes(var, vae)
        shared = {name: value for name, value in var.items() if name not in ("vocab_size", "z_channels")}
        return {"vae": vae | {"v_patch_nums": var["patch_nums"]}, "var": shared}

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> VARPipeline:
        """Pipeline with the options that the published scores were sampled with.

        Args:
            networks: ``vae`` and ``var``, loaded.
            config: Official options.

        Raises:
            UserError: If one is absent.
        """
        from pipelines.var import VARPipeline

        lacks = [name for name in MODULES if name not in networks]
        if lacks:
            raise UserError(
                "a VAR pipeline needs the transformer (var_d16.pth, ...) and its tokenizer (vae_ch160v4096z32.pth), and "
                f"{' and '.join(lacks)} is not among the files; give both"
            )
        defaults = {"guidance_scale": 1 + FID_CFG, "top_k": FID_TOP_K, "top_p": FID_TOP_P}
        return VARPipeline(networks["var"], networks["vae"], defaults)


def recognise_transformer(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Official options of a VAR, with its tokenizer's ``vocab_size`` and ``z_channels``; None for another layout."""
    if any(key not in state for key in OWN_KEYS):
        return None
    width, channels = state["word_embed.weight"].shape
    depth = count_indices(state, "blocks.")
    scales = state.get("blocks.0.attn.scale_mul_1H11")
    heads = width // HEAD_SIZE if width == HEAD_SIZE * depth else None
    return {
        "vocab_size": state["head.weight"].shape[0],
        "z_channels": channels,
        "num_classes": state["class_emb.weight"].shape[0] - 1,
        "depth": depth,
        "embed_dim": width,
        "num_heads": heads if scales is None else scales.numel(),
        "mlp_ratio": state["blocks.0.ffn.fc1.weight"].shape[0] / width,
        "drop_path_rate": DROP_PATH * depth / DROP_PATH_DEPTH,
        "norm_eps": 1e-6,
        "shared_aln": "shared_ada_lin.1.weight" in state,
        "attn_l2_norm": scales is not None,
        "patch_nums": recognise_scales(state),
    }


def check_codes(var: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Refuse a transformer and a tokenizer of other codes.

    Raises:
        UserError: If their number or their width differ.
    """
    codes = [f"{options['vocab_size']} codes of {options['z_channels']} channels" for options in (var, vae)]
    if codes[0] != codes[1]:
        raise UserError(
            f"the transformer (var) predicts {codes[0]}, the tokenizer (vae) has {codes[1]}: they are not of one model; give the "
            "tokenizer that the transformer was trained on"
        )


def recognise_scales(state: Mapping[str, Tensor]) -> list[int] | None:
    """Sides of the token maps: from the scale of each token where that is there, else the published list that fits."""
    num_scales, num_tokens = state["lvl_embed.weight"].shape[0], state["pos_1LC"].shape[1]
    levels = state.get(LEVELS)
    if levels is not None and not levels.is_meta:
        return [math.isqrt(count) for count in levels.flatten().bincount(minlength=num_scales).tolist()]
    for sides in (PATCH_NUMS_256, PATCH_NUMS_512):
        if (len(sides), sum(side * side for side in sides)) == (num_scales, num_tokens):
            return list(sides)
    return None
