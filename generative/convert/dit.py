"""Checkpoints of the DiT authors' code (facebookresearch/DiT)."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any

from diffusers import DDPMScheduler, ModelMixin
from torch import Tensor

from generative.convert.base import OfficialSource, show_names
from generative.core.errors import UserError
from generative.diffusion.dit import DiT

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
# Options of the official sampling and training scripts: they build no layer; ``noise_scheduler`` reads two of them.
NOISE_SCHEDULES = ("linear", "squaredcos_cap_v2")
SCRIPT_OPTIONS = ("cfg_scale", "noise_schedule", "diffusion_steps")
# The official linear schedule for 1,000 steps; other lengths scale both ends by 1000 / steps (arXiv 2006.11239, section 4).
LINEAR_STEPS, LINEAR_BETA_START, LINEAR_BETA_END = 1000, 1e-4, 0.02

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


def noise_scheduler(config: dict[str, Any]) -> DDPMScheduler:
    """The official noise schedule and ancestral sampler: no clipping, learned variance where the network has one.

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
    return DDPMScheduler(
        num_train_timesteps=num_steps,
        beta_schedule=schedule,
        beta_start=LINEAR_BETA_START * LINEAR_STEPS / num_steps,
        beta_end=LINEAR_BETA_END * LINEAR_STEPS / num_steps,
        variance_type="learned_range" if config.get("learn_sigma", True) else "fixed_large",
        clip_sample=False,
        timestep_spacing="linspace",
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
        noise_scheduler(config)
        cfg_scale = config.get("cfg_scale", 1.0)
        if isinstance(cfg_scale, bool) or not isinstance(cfg_scale, (int, float)):
            raise UserError(f"cfg_scale of DiT must be a number, got {cfg_scale!r}")
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
        converted, unknown = {}, []
        for key, value in state.items():
            match = next((pattern for pattern in KEY_PATTERNS if re.match(pattern[0], key)), None)
            if match is None:
                unknown.append(key)
            else:
                converted[re.sub(*match, key)] = value
        if unknown:
            raise UserError(f"DiT has no place for the official keys {show_names(sorted(unknown))}")
        return converted
