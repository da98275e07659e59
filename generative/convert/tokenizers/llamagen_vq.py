"""LlamaGen's VQ-16 and VQ-8 (FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py): options and keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import FLAG, NUMBER, SIZES, WHOLE, Argument, Constructor
from generative.convert.keys import names_of, rename_by
from generative.convert.tokenizers.vqgan_options import NETWORK_ARGUMENTS, count_indices, guess_groups, spell_out
from generative.core.errors import UserError
from generative.tokenizers.vq import VQTokenizer

CH_MULT_16 = (1, 1, 2, 2, 4)  # of VQ-16, the official default; VQ-8 has (1, 2, 2, 4)
IMAGE_SIZE = 256  # what the published tokenizers were trained at; the network takes any multiple of its stride
# The last codes used, which the official training log reads.
CODES_USED = "quantize.codebook_used"
OWN_KEYS = (
    "encoder.conv_blocks.0.res.0.conv1.weight",
    "decoder.conv_blocks.0.res.0.conv1.weight",
    "encoder.mid.0.conv1.weight",
    "quantize.embedding.weight",
    "quant_conv.weight",
)
# Official key -> ours, first match wins; q, k and v of an attention become one tensor afterwards.
KEY_PATTERNS = (
    (r"^(encoder|decoder)\.(conv_in|norm_out|conv_out)\.", r"\1.\2."),
    (r"^(quant_conv|post_quant_conv)\.", r"\1."),
    (r"^quantize\.embedding\.weight$", "quantizer.codebook"),
    (r"^(encoder|decoder)\.mid\.(\d+)\.", r"\1.mid.\2."),
    (r"^(encoder|decoder)\.conv_blocks\.(\d+)\.res\.(\d+)\.", r"\1.levels.\2.blocks.\3."),
    (r"^(encoder|decoder)\.conv_blocks\.(\d+)\.attn\.(\d+)\.", r"\1.levels.\2.attentions.\3."),
    (r"^(encoder)\.conv_blocks\.(\d+)\.downsample\.", r"\1.downsamples.\2."),
    (r"^(decoder)\.conv_blocks\.(\d+)\.upsample\.", r"\1.upsamples.\2."),
)
ATTENTION_PART = re.compile(r"^(.+\.)([qkv])\.(weight|bias)$")
COMMITMENT_WEIGHT, ENTROPY_WEIGHT = 0.25, 0.0  # official defaults


# Fields of ``ModelArgs``, what the class hard-codes, and the training script's ``image_size``.
CONSTRUCTOR = Constructor(
    "VQModel",
    "FoundationVision/LlamaGen",
    {
        **NETWORK_ARGUMENTS,
        "image_size": Argument("image_size", IMAGE_SIZE, WHOLE),
        "codebook_size": Argument("num_codes", 16384, WHOLE),
        "codebook_embed_dim": Argument("code_dim", 8, WHOLE),
        "encoder_ch_mult": Argument("ch_mult", CH_MULT_16, SIZES),
        "decoder_ch_mult": Argument("decoder_ch_mult", CH_MULT_16, SIZES),
        "z_channels": Argument("z_channels", 256, WHOLE),
        "dropout_p": Argument("dropout", 0.0, NUMBER),
        "codebook_l2_norm": Argument("l2_norm", True, FLAG),
        "codebook_show_usage": Argument(None, True, FLAG),  # only logs
        "commit_loss_beta": Argument(None, COMMITMENT_WEIGHT, NUMBER),  # this and the next weigh losses, see ``official_losses``
        "entropy_loss_ratio": Argument("entropy", ENTROPY_WEIGHT, replace(NUMBER, convert=lambda weight: weight != 0)),
    },
)


def build_vq(config: Mapping[str, Any]) -> VQTokenizer:
    """Build our tokenizer from the official constructor's arguments.

    Args:
        config: Fields of the official ``ModelArgs``, beside them those that it hard-codes (``ch``, ``num_res_blocks``,
            ``norm_groups``) and the training script's ``image_size``, 256 unless given.

    Raises:
        UserError: If an option is unknown or its value has no equal here.
    """
    return VQTokenizer(**CONSTRUCTOR.read(spell_out(config)))


def fuse_attention(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join q, k and v (C, C, 1, 1) or (C,) to (3C, C, 1, 1) or (3C,), where all three are there.

    Args:
        parts: By our name, tensors by ``q``, ``k`` and ``v``.

    Raises:
        UserError: If the three differ in shape.
    """
    fused = {}
    for name, tensors in parts.items():
        if len(tensors) < 3:
            continue  # our fused tensor is then told to be missing
        shapes = {tuple(tensor.shape) for tensor in tensors.values()}
        if len(shapes) > 1:
            raise UserError(f"q, k and v of '{name}' must have one shape, got {', '.join(map(str, sorted(shapes)))}")
        fused[name] = torch.cat([tensors[part] for part in "qkv"])
    return fused


def convert_vq_state(state: Mapping[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
    """Rename the official tensors of a VQModel; its list of codes used, a log, is left out.

    Args:
        state: Official tensors by key.
        network: From ``build_vq``.

    Raises:
        UnknownKeysError: If a key is unknown.
    """
    kept = [key for key in state if key != CODES_USED]
    names = names_of("LlamaGen's VQModel", kept, partial(rename_by, KEY_PATTERNS))
    converted: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for key, renamed in names.items():
        name = renamed.replace(".nin_shortcut.", ".shortcut.").replace(".proj_out.", ".out.")
        part = ATTENTION_PART.match(name)
        if part:
            attention.setdefault(f"{part[1]}qkv.{part[3]}", {})[part[2]] = state[key]
        else:
            converted[name] = state[key]
    return converted | fuse_attention(attention)


def recognise_vq(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read the official options off a VQModel's names and shapes.

    That codes are normalised, which they do not tell, is the published models' choice.

    Args:
        state: Official tensors by key.

    Returns:
        What ``build_vq`` takes, ``norm_groups`` None where nothing tells it; None for another layout.
    """
    if any(key not in state for key in OWN_KEYS):
        return None
    ch = state["encoder.conv_in.weight"].shape[0]
    widths = {
        name: [
            state[f"{name}.conv_blocks.{level}.res.0.conv1.weight"].shape[0] // ch
            for level in range(count_indices(state, f"{name}.conv_blocks."))
        ]
        for name in ("encoder", "decoder")
    }
    num_codes, code_dim = state["quantize.embedding.weight"].shape
    return {
        "codebook_size": num_codes,
        "codebook_embed_dim": code_dim,
        "codebook_l2_norm": True,
        "codebook_show_usage": CODES_USED in state,
        "encoder_ch_mult": widths["encoder"],
        "decoder_ch_mult": widths["decoder"][::-1],
        "z_channels": state["quant_conv.weight"].shape[1],
        "ch": ch,
        "num_res_blocks": count_indices(state, "encoder.conv_blocks.0.res."),
        "norm_groups": guess_groups(ch),
    }


def official_losses(losses: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """The official triple (3,): codebook, commitment times ``commit_loss_beta``, entropy times ``entropy_loss_ratio``.

    Args:
        losses: Of a ``Reconstruction`` or ``Quantized``.
        config: Official options.
    """
    entropy = losses.get("entropy", losses["codebook"].new_zeros(()))
    commitment = config.get("commit_loss_beta", COMMITMENT_WEIGHT) * losses["commitment"]
    return torch.stack([losses["codebook"], commitment, config.get("entropy_loss_ratio", ENTROPY_WEIGHT) * entropy])
