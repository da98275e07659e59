"""Checkpoints of the FiT authors' code (whlzy/FiT): FiT and FiTv2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.convert.base import OfficialSource
from generative.convert.diffusion.fit_options import (
    PUBLISHED_V2,
    SAMPLING_STEPS,
    formulation,
    guidance_defaults,
    network_arguments,
)
from generative.convert.keys import KeyPatterns, names_of, rename_by
from generative.core.errors import UserError
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.fit import FiT
from generative.diffusion.samplers.adaptive import AdaptiveODESampler
from generative.diffusion.samplers.ancestral import AncestralSampler

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

# Heads of the published widths: a checkpoint does not tell.
HEADS = MappingProxyType({1152: 16, 2304: 24})
OWN_KEYS = (
    "x_embedder.proj.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.attn.qkv.weight",
    "final_layer.linear.weight",
)
GATES = re.compile(r"\.fc1_([gx])\.(weight|bias)$")
# Official key -> ours, first match wins; the two maps of a SwiGLU are one here, ``fc1_gx``.
KEY_PATTERNS = (
    (r"^x_embedder\.proj\.", "patch_embedding."),
    (r"^t_embedder\.mlp\.0\.", "timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "timestep_embedder.linear_2."),
    (r"^y_embedder\.embedding_table\.", "label_embedding."),
    (r"^global_adaLN_modulation\.1\.", "shared_modulation.linear."),
    (r"^blocks\.(\d+)\.(norm[12])\.weight$", r"blocks.\1.\2.weight"),
    (r"^blocks\.(\d+)\.attn\.(qkv|[qk]_norm)\.", r"blocks.\1.attention.\2."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"blocks.\1.attention.out."),
    (r"^blocks\.(\d+)\.mlp\.fc1_gx\.", r"blocks.\1.feed_forward.gate_up_proj."),
    (r"^final_layer\.norm_final\.weight$", "final_layer.norm.weight"),
    (r"^final_layer\.linear\.", "final_layer.linear."),
    (r"^(blocks\.\d+|final_layer)\.adaLN_modulation\.fc1_gx\.", r"\1.modulation.swiglu.gate_up_proj."),
    (r"^(blocks\.\d+|final_layer)\.adaLN_modulation\.fc2\.", r"\1.modulation.swiglu.down_proj."),
    (r"^(blocks\.\d+)\.adaLN_modulation\.2\.", r"\1.modulation.linear."),
    (r"^final_layer\.adaLN_modulation\.1\.", "final_layer.modulation.linear."),
)
LORA_PATTERNS: KeyPatterns = ((r"^(blocks\.\d+)\.adaLN_modulation\.1\.", r"\1.modulation.down."),)
PLAIN_PATTERNS: KeyPatterns = ((r"^(blocks\.\d+)\.adaLN_modulation\.1\.", r"\1.modulation.linear."),)
SWIGLU_PATTERNS: KeyPatterns = ((r"^blocks\.(\d+)\.mlp\.fc2\.", r"blocks.\1.feed_forward.down_proj."),)
MLP_PATTERNS: KeyPatterns = ((r"^blocks\.(\d+)\.mlp\.(fc[12])\.", r"blocks.\1.feed_forward.\2."),)


def merge_gates(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with the two maps of each SwiGLU as one, the gate first.

    Raises:
        UserError: If one of the two is missing.
    """
    merged: dict[str, Tensor] = {}
    for key, value in state.items():
        match = GATES.search(key)
        if match is None:
            merged[key] = value
            continue
        gate, up = (GATES.sub(rf".fc1_{name}.\2", key) for name in "gx")
        for part in (gate, up):
            if part not in state:
                raise UserError(f"FiT checkpoint of whlzy/FiT lacks '{part}', which goes with '{key}'")
        merged[GATES.sub(r".fc1_gx.\2", key)] = torch.cat([state[gate], state[up]])
    return merged


class FiTSource(OfficialSource):
    """FiT and FiTv2 as ``fit_model.py`` of whlzy/FiT builds them."""

    name = "fitv2"
    repository = "whlzy/FiT"
    script_arguments = ("transport", "cfg_scale", "scale_pow")

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our FiT from official arguments.

        Args:
            config: Arguments of the official network; options of the transport and of sampling may be among them.

        Raises:
            UserError: If an option is unknown or has no equal here.
        """
        formulation(config)
        return {"model": FiT(**network_arguments(config))}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; the two maps of each SwiGLU become one.

        Args:
            module: ``model``.
            state: Official tensors.
            network: Our FiT.

        Raises:
            UserError: If a key is unknown.
        """
        merged = merge_gates(state)
        modulation = LORA_PATTERNS if network.config.adaln_type == "lora" else PLAIN_PATTERNS
        feed_forward = SWIGLU_PATTERNS if network.config.use_swiglu else MLP_PATTERNS
        names = names_of("FiT", merged, partial(rename_by, [*KEY_PATTERNS, *modulation, *feed_forward]))
        return {name: merged[key] for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off names and shapes; what no tensor tells is as in the published networks.

        Args:
            state: Official tensors by key.

        Returns:
            Official arguments, ``num_heads`` None where the width is none of the published ones; None for another layout.
        """
        if any(key not in state for key in OWN_KEYS) or state["x_embedder.proj.weight"].dim() != 2:
            return None
        width, patch_values = state["x_embedder.proj.weight"].shape
        is_swiglu = "blocks.0.mlp.fc1_g.weight" in state
        inner = len(state["blocks.0.mlp.fc1_g.weight" if is_swiglu else "blocks.0.mlp.fc1.weight"])
        learn_sigma = len(state["final_layer.linear.weight"]) == 2 * patch_values
        found: dict[str, Any] = {
            "in_channels": patch_values // 4,  # patches of 2
            "hidden_size": width,
            "depth": 1 + max(int(match[1]) for match in (re.match(r"^blocks\.(\d+)\.", key) for key in state) if match),
            "num_heads": HEADS.get(width),
            "mlp_ratio": inner / width,
            "num_classes": len(state["y_embedder.embedding_table.weight"]) - 1,
            "learn_sigma": learn_sigma,
            "use_sit": not learn_sigma,
            "use_swiglu": is_swiglu,
            "use_swiglu_large": is_swiglu,  # with the ratio that says the whole width
            "frequency_embedding_size": state["t_embedder.mlp.0.weight"].shape[1],
            "qkv_bias": "blocks.0.attn.qkv.bias" in state,
            "ffn_bias": "blocks.0.mlp.fc2.bias" in state,
            "adaln_bias": "final_layer.adaLN_modulation.fc2.bias" in state or "final_layer.adaLN_modulation.1.bias" in state,
        }
        if "blocks.0.adaLN_modulation.fc2.weight" in state:
            found["adaln_type"] = "swiglu"
        elif "global_adaLN_modulation.1.weight" in state:
            found |= {"adaln_type": "lora", "adaln_lora_dim": len(state["blocks.0.adaLN_modulation.1.weight"]), **PUBLISHED_V2}
        if "blocks.0.norm1.weight" in state:
            found["norm_type"] = "w_layernorm"
        for name in ("q_norm", "k_norm"):
            if f"blocks.0.attn.{name}.weight" in state:
                found[name] = "w_layernorm"
        return found

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline with the sampler of the published figures; the autoencoder is the caller's to add.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        trained = formulation(config)
        sampler: AncestralSampler | AdaptiveODESampler
        if isinstance(trained, GaussianDiffusion):
            sampler = AncestralSampler(variance="learned" if trained.config.learned_variance else "large")
        else:
            sampler = AdaptiveODESampler()
        defaults = {"num_inference_steps": SAMPLING_STEPS, **guidance_defaults(config)}
        return DiffusionImagePipeline(networks["model"], sampler, sampling_defaults=defaults, formulation=trained)
