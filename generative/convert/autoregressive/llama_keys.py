"""What checkpoints of LlamaGen and of Open-MAGVIT2's transformer, which was made from it, have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from generative.convert.arguments import NUMBER, UNUSED, WHOLE, Argument, Kind, is_whole, one_of, optional
from generative.convert.base import UnknownKeysError
from generative.convert.tokenizers.vqgan_options import count_indices
from generative.layers.swiglu import swiglu_hidden_size

# Heads of the published sizes by width (gpt.py; Open-MAGVIT2's configurations): a checkpoint does not tell.
HEADS = MappingProxyType({768: 12, 1024: 16, 1280: 20, 1536: 24, 2560: 40, 3200: 32})
MULTIPLE_OF = 256  # official default
GATE, UP = "feed_forward.w1.weight", "feed_forward.w3.weight"
# Official key within a block -> ours; gate and up become one tensor.
BLOCK_KEYS = MappingProxyType(
    {
        "attention.wqkv.weight": "attention.qkv_proj.weight",
        "attention.wo.weight": "attention.out_proj.weight",
        "feed_forward.w2.weight": "mlp.down_proj.weight",
        "attention_norm.weight": "attention_norm.weight",
        "ffn_norm.weight": "mlp_norm.weight",
    }
)
# What was computed and not learned: rotary angles, and the caches of sampling, where a checkpoint holds them.
COMPUTED = re.compile(r"^(freqs_cis|causal_mask|\w+\.\d+\.attention\.kv_cache\.[kv]_cache)$")


# What both constructors call the same.
SHARED_ARGUMENTS = MappingProxyType(
    {
        "cls_token_num": Argument(None, 1, one_of((1,), " (a class is one token)")),
        "max_batch_size": UNUSED,  # caches are made anew for every run, as is the next
        "max_seq_len": UNUSED,
        "n_kv_head": Argument("num_kv_heads", None, optional(WHOLE)),
        "multiple_of": Argument("mlp_multiple_of", MULTIPLE_OF, WHOLE),
        "ffn_dim_multiplier": Argument("mlp_multiplier", None, optional(NUMBER)),
        "rope_base": Argument("rope_base", 10000, NUMBER),
        "norm_eps": Argument("norm_eps", 1e-5, NUMBER),
        "attn_dropout_p": Argument("attention_dropout", 0.0, NUMBER),
        "ffn_dropout_p": Argument("mlp_dropout", 0.1, NUMBER),
        "drop_path_rate": Argument("drop_path", 0.0, NUMBER),
    }
)
# ``block_size``, the number of tokens, as sides of a grid.
GRID = Kind(
    "a square number of tokens",
    lambda length: is_whole(length) and length > 0 and math.isqrt(length) ** 2 == length,
    lambda length: (math.isqrt(length), math.isqrt(length)),
)


def convert_state(
    owner: str, state: Mapping[str, Tensor], blocks: Mapping[str, str], others: Mapping[str, str]
) -> dict[str, Tensor]:
    """Rename official tensors, and join gates and their multiplicands.

    Args:
        owner: Whose layout it is, for messages.
        state: Official tensors by key.
        blocks: Official name of each list of blocks -> ours.
        others: Official key -> ours of all that is in no block.

    Raises:
        UnknownKeysError: If a key is unknown.
    """
    converted, unknown = {}, []
    for key, value in state.items():
        prefix, _, rest = key.partition(".")
        index, _, inner = rest.partition(".")
        ours = f"{blocks[prefix]}.{index}" if prefix in blocks and index.isdecimal() else None
        if key in others:
            converted[others[key]] = value
        elif ours and inner in BLOCK_KEYS:
            converted[f"{ours}.{BLOCK_KEYS[inner]}"] = value
        elif ours and inner in (GATE, UP):
            gate, up = (state.get(f"{prefix}.{index}.{name}") for name in (GATE, UP))
            if gate is not None and up is not None:  # else our joined tensor is told to be missing
                converted[f"{ours}.mlp.gate_up_proj.weight"] = torch.cat([gate, up])
        elif not COMPUTED.match(key):
            unknown.append(key)
    if unknown:
        raise UnknownKeysError(owner, unknown)
    return converted


def recognise_blocks(state: Mapping[str, Tensor], blocks: str) -> dict[str, Any]:
    """Options that the shapes of some blocks tell, and the published number of heads of their width (None for another)."""
    rows, dim = state[f"{blocks}.0.attention.wqkv.weight"].shape
    n_head = HEADS.get(dim)
    options: dict[str, Any] = {"dim": dim, "n_head": n_head, "n_kv_head": None}
    if rows != 3 * dim and n_head:
        options["n_kv_head"] = (rows // (dim // n_head) - n_head) // 2
    inner = state[f"{blocks}.0.{GATE}"].shape[0]
    if inner != swiglu_hidden_size(dim, MULTIPLE_OF):
        # Halfway to the next number, so that rounding down gives this one.
        options |= {"multiple_of": 1, "ffn_dim_multiplier": (inner + 0.5) / swiglu_hidden_size(dim, 1)}
    return options | {"depth": count_indices(state, f"{blocks}.")}
