"""The layout that the checkpoints of DiT and SiT share: names and shapes tell the network, not what it was trained to predict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import FLAG, NUMBER, WHOLE, Argument, Constructor
from generative.convert.base import OfficialSource
from generative.convert.keys import names_of, rename_by
from generative.diffusion.networks.dit import DiT

# Heads of the published sizes S, B, L and XL by hidden size (arXiv 2212.09748, table 1; XL has 16): a checkpoint does not tell.
HEADS = MappingProxyType({384: 6, 768: 12, 1024: 16, 1152: 16})
# What the published FIDs were sampled with (the official sample_ddp.py of both): so many steps, guidance of so many channels.
SAMPLING_STEPS, GUIDED_CHANNELS, FID_GUIDANCE = 250, 3, 1.5
LATENT_CHANNELS = 4
# Arguments of the official constructors.
NETWORK_ARGUMENTS = MappingProxyType(
    {
        "input_size": Argument("sample_size", 32, WHOLE),
        "patch_size": Argument("patch_size", 2, WHOLE),
        "in_channels": Argument("in_channels", 4, WHOLE),
        "hidden_size": Argument("hidden_size", 1152, WHOLE),
        "depth": Argument("depth", 28, WHOLE),
        "num_heads": Argument("num_heads", 16, WHOLE, untold='{"num_heads": N}'),
        "mlp_ratio": Argument("mlp_ratio", 4.0, NUMBER),
        "class_dropout_prob": Argument("class_dropout_prob", 0.1, NUMBER),
        "num_classes": Argument("num_classes", 1000, WHOLE),
        "learn_sigma": Argument("learn_sigma", True, FLAG),
        "frequency_embedding_size": Argument("frequency_embedding_size", 256, WHOLE),
        "cfg_scale": Argument(None, FID_GUIDANCE, NUMBER),  # of the sampling scripts
    }
)
# Keys that every checkpoint has, and no other layout together.
OWN_KEYS = (
    "pos_embed",
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.adaLN_modulation.1.weight",
    "blocks.0.mlp.fc1.weight",
    "final_layer.linear.weight",
)
# Official key -> ours, first match wins.
KEY_PATTERNS = (
    (r"^x_embedder\.proj\.", "patch_embedding."),
    (r"^t_embedder\.mlp\.0\.", "timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "timestep_embedder.linear_2."),
    (r"^y_embedder\.embedding_table\.", "label_embedding."),
    (r"^pos_embed$", "position_embedding"),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"blocks.\1.attention.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"blocks.\1.attention.out."),
    (r"^blocks\.(\d+)\.mlp\.(fc[12])\.", r"blocks.\1.mlp.\2."),
    (r"^blocks\.(\d+)\.adaLN_modulation\.1\.", r"blocks.\1.modulation."),
    (r"^final_layer\.adaLN_modulation\.1\.", "final_layer.modulation."),
    (r"^final_layer\.linear\.", "final_layer.linear."),
)


def read_network(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read the official options of the network off a checkpoint's names and shapes.

    Args:
        state: Official tensors by key.

    Returns:
        Official arguments, ``num_heads`` None where the hidden size is none of the published ones; None for another layout. The
        rows of the label table are the classes and the null class, which published models are all trained with.
    """
    if any(key not in state for key in OWN_KEYS):
        return None
    hidden_size, in_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
    num_patches = state["pos_embed"].shape[1]
    blocks = [int(match[1]) for match in (re.match(r"^blocks\.(\d+)\.", key) for key in state) if match]
    out_channels = state["final_layer.linear.weight"].shape[0] // patch_size**2
    return {
        "input_size": math.isqrt(num_patches) * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "hidden_size": hidden_size,
        "depth": max(blocks) + 1,
        "num_heads": HEADS.get(hidden_size),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / hidden_size,
        "num_classes": state["y_embedder.embedding_table.weight"].shape[0] - 1,
        "learn_sigma": out_channels == 2 * in_channels,
        "frequency_embedding_size": state["t_embedder.mlp.0.weight"].shape[1],
    }


class DiTLayoutSource(OfficialSource):
    """What the sources of this layout share.

    Attributes:
        constructor: The official options, those of the official scripts among them.
    """

    constructor: Constructor

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our DiT from official arguments.

        Args:
            config: Arguments of the official network; options of the official scripts may be among them and are checked.

        Returns:
            ``{"model": DiT}``.

        Raises:
            UserError: If an option is unknown or of the wrong kind.
        """
        return {"model": DiT(**self.constructor.read(config))}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict.

        Args:
            module: ``model``.
            state: Official tensors.
            network: Our DiT.

        Raises:
            UserError: If a key is unknown.
        """
        names = names_of(self.constructor.owner, state, partial(rename_by, KEY_PATTERNS))
        return {name: state[key] for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """See ``read_network``."""
        return read_network(state)

    def guidance_defaults(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Guidance that the published figure was sampled with, where the network has a null class."""
        values = self.constructor.values(config)
        if not values["class_dropout_prob"] > 0:
            return {}
        channels = {"guidance_channels": GUIDED_CHANNELS} if values["in_channels"] == LATENT_CHANNELS else {}
        return {"guidance_scale": values["cfg_scale"], **channels}
