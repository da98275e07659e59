"""The layout of openai/guided-diffusion, written down apart from the key map: names and shapes of a network's tensors there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK = {"norm1": "in_layers.0", "conv1": "in_layers.2", "modulation": "emb_layers.1", "norm2": "out_layers.0"}
BLOCK |= {"conv2": "out_layers.3", "skip": "skip_connection", "norm": "norm", "qkv": "qkv", "out": "proj_out"}
OUTER = {"timestep_embedder.linear_1": "time_embed.0", "timestep_embedder.linear_2": "time_embed.2"}
OUTER |= {"label_embedding": "label_emb", "conv_in": "input_blocks.0.0", "norm_out": "out.0", "conv_out": "out.2"}
HEADS = {
    "attention": {"head.qkv": "out.2.qkv_proj", "head.out": "out.2.c_proj"},
    "adaptive": {"head": "out.3"},
    "spatial": {"head.0": "out.0", "head.2": "out.2"},
    "spatial_v2": {"head.0": "out.0", "head.1": "out.1", "head.3": "out.3"},
}


def official_name(name: str, pool: str = "attention") -> str:
    """The official name of a tensor of ours."""
    if name == "head.position_embedding":
        return "out.2.positional_embedding"
    layer, _, kind = name.rpartition(".")
    outer = (OUTER | HEADS[pool]).get(layer)
    if outer is not None:
        return f"{outer}.{kind}"
    part, numbers, inner = re.fullmatch(r"(encoder|middle|decoder)\.([\d.]+)\.(\w+)", layer).groups()  # type: ignore[union-attr]
    first, *rest = numbers.split(".")
    stage = {"encoder": f"input_blocks.{int(first) + 1}", "middle": f"middle_block.{first}", "decoder": f"output_blocks.{first}"}
    if inner == "conv":
        inner = "op" if part == "encoder" else "conv"
    return ".".join([stage[part], *rest, BLOCK.get(inner, inner), kind])


def official_state(network: torch.nn.Module, pool: str = "attention") -> dict[str, Tensor]:
    """A network's tensors as the official code names and shapes them."""
    state = {}
    for name, value in network.state_dict().items():
        key = official_name(name, pool)
        if key.endswith("positional_embedding"):
            value = value.T
        elif re.search(r"(qkv|proj_out|qkv_proj|c_proj)\.weight$", key):
            value = value[..., None]
        elif key == "out.3.weight" and pool == "adaptive":
            value = value[..., None, None]
        state[key] = value
    return state


def layout(state: Mapping[str, Tensor]) -> tuple[int, int, str]:
    """Number of tensors, number of values, and a hash of all names and shapes."""
    lines = "\n".join(f"{key} {'x'.join(map(str, value.shape))}" for key, value in sorted(state.items()))
    return len(state), sum(value.numel() for value in state.values()), hashlib.sha256(lines.encode()).hexdigest()
