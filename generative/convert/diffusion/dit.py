"""Checkpoints of the DiT authors' code (facebookresearch/DiT)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.base import OfficialSource, show_names
from generative.convert.keys import names_of, rename_by
from generative.core.errors import UserError
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.dit import DiT
from generative.diffusion.samplers.ancestral import AncestralSampler

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

# Official constructor argument -> (ours, official default, types taken).
ARGUMENTS: MappingProxyType[str, tuple[str, Any, tuple[type, ...]]] = MappingProxyType(
    {
        "input_size": ("sample_size", 32, (int,)),
        "patch_size": ("patch_size", 2, (int,)),
        "in_channels": ("in_channels", 4, (int,)),
        "hidden_size": ("hidden_size", 1152, (int,)),
        "depth": ("depth", 28, (int,)),
        "num_heads": ("num_heads", 16, (int,)),
        "mlp_ratio": ("mlp_ratio", 4.0, (int, float)),
        "class_dropout_prob": ("class_dropout_prob", 0.1, (int, float)),
        "num_classes": ("num_classes", 1000, (int,)),
        "learn_sigma": ("learn_sigma", True, (bool,)),
        "frequency_embedding_size": ("frequency_embedding_size", 256, (int,)),
    }
)
# Options of the official sampling and training scripts: they build no layer; ``formulation`` reads two of them.
NOISE_SCHEDULES = ("linear", "squaredcos_cap_v2")
SCRIPT_OPTIONS = ("cfg_scale", "noise_schedule", "diffusion_steps")
# The official linear schedule for 1,000 steps; other lengths scale both ends by 1000 / steps (arXiv 2006.11239, section 4).
LINEAR_STEPS, LINEAR_BETA_START, LINEAR_BETA_END = 1000, 1e-4, 0.02
# Heads of the published sizes S, B, L and XL by hidden size (arXiv 2212.09748, table 1; XL has 16): a checkpoint does not tell.
HEADS = MappingProxyType({384: 6, 768: 12, 1024: 16, 1152: 16})
# What the published FID was sampled with (the official sample_ddp.py): so many steps, guidance of so many channels.
SAMPLING_STEPS, GUIDED_CHANNELS, FID_GUIDANCE = 250, 3, 1.5
LATENT_CHANNELS = 4
# Keys that every DiT checkpoint has, and no other layout together.
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


def formulation(config: Mapping[str, Any]) -> GaussianDiffusion:
    """The official noise schedule, with a learned variance where the network has one.

    Args:
        config: Official options; ``noise_schedule``, ``diffusion_steps`` and ``learn_sigma`` are read.

    Raises:
        UserError: If an option is unknown.
    """
    schedule, num_steps = config.get("noise_schedule", "linear"), config.get("diffusion_steps", LINEAR_STEPS)
    if schedule not in NOISE_SCHEDULES:
        raise UserError(f"noise_schedule of DiT must be one of {', '.join(NOISE_SCHEDULES)}, got {schedule!r}")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise UserError(f"diffusion_steps of DiT must be a positive integer, got {num_steps!r}")
    return GaussianDiffusion(
        num_train_timesteps=num_steps,
        beta_schedule=schedule,
        beta_start=LINEAR_BETA_START * LINEAR_STEPS / num_steps,
        beta_end=LINEAR_BETA_END * LINEAR_STEPS / num_steps,
        learned_variance=config.get("learn_sigma", True),
    )


class DiTSource(OfficialSource):
    """DiT as ``models.py`` of facebookresearch/DiT builds it."""

    name = "dit"
    repository = "facebookresearch/DiT"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our DiT from official arguments.

        Args:
            config: Arguments of the official ``DiT``; the scripts' ``cfg_scale``, ``noise_schedule`` and ``diffusion_steps`` may
                be among them and are checked.

        Returns:
            ``{"model": DiT}``.

        Raises:
            UserError: If an option is unknown or of the wrong type.
        """
        unknown = [name for name in config if name not in ARGUMENTS and name not in SCRIPT_OPTIONS]
        if unknown:
            raise UserError(f"DiT has no option named {show_names(unknown)}; known: {', '.join((*ARGUMENTS, *SCRIPT_OPTIONS))}")
        formulation(config)
        cfg_scale = config.get("cfg_scale", 1.0)
        if isinstance(cfg_scale, bool) or not isinstance(cfg_scale, (int, float)):
            raise UserError(f"cfg_scale of DiT must be a number, got {cfg_scale!r}")
        if config.get("num_heads", True) is None:
            raise UserError(
                f"a DiT of hidden size {config.get('hidden_size')} is none of the published ones ({', '.join(map(str, HEADS))}), "
                'and its file does not tell how many heads it has; give them as {"num_heads": N} in --config'
            )
        arguments = {}
        for official, (ours, default, types) in ARGUMENTS.items():
            value = config.get(official, default)
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise UserError(f"{official} of DiT must be of type {types[-1].__name__}, got {value!r}")
            arguments[ours] = value
        return {"model": DiT(**arguments)}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict.

        Args:
            module: ``model``.
            state: Official tensors.
            network: Our DiT.

        Raises:
            UserError: If a key is unknown.
        """
        names = names_of("DiT", state, partial(rename_by, KEY_PATTERNS))
        return {name: state[key] for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        Args:
            state: Official tensors by key.

        Returns:
            What ``build`` takes, ``num_heads`` None where the hidden size is none of the published ones; None for another layout.
            The rows of the label table are the classes and the null class, which published models are all trained with.
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

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline with the official sampler; the autoencoder, which no DiT checkpoint holds, is the caller's to add.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        trained = formulation(config)
        defaults: dict[str, Any] = {"num_inference_steps": min(SAMPLING_STEPS, trained.config.num_train_timesteps)}
        if config.get("class_dropout_prob", ARGUMENTS["class_dropout_prob"][1]) > 0:
            defaults["guidance_scale"] = config.get("cfg_scale", FID_GUIDANCE)
            if config.get("in_channels", LATENT_CHANNELS) == LATENT_CHANNELS:
                defaults["guidance_channels"] = GUIDED_CHANNELS
        sampler = AncestralSampler(variance="learned" if trained.config.learned_variance else "large")
        return DiffusionImagePipeline(networks["model"], sampler, sampling_defaults=defaults, formulation=trained)
