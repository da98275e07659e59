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

from generative.convert.arguments import FLAG, NUMBER, POSITIVE, WHOLE, Argument, Constructor, one_of
from generative.convert.base import OfficialSource
from generative.convert.keys import names_of, rename_by
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.dit import DiT
from generative.diffusion.samplers.ancestral import AncestralSampler

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

# The official linear schedule for 1,000 steps; other lengths scale both ends by 1000 / steps (arXiv 2006.11239, section 4).
LINEAR_STEPS, LINEAR_BETA_START, LINEAR_BETA_END = 1000, 1e-4, 0.02
# Heads of the published sizes S, B, L and XL by hidden size (arXiv 2212.09748, table 1; XL has 16): a checkpoint does not tell.
HEADS = MappingProxyType({384: 6, 768: 12, 1024: 16, 1152: 16})
# What the published FID was sampled with (the official sample_ddp.py): so many steps, guidance of so many channels.
SAMPLING_STEPS, GUIDED_CHANNELS, FID_GUIDANCE = 250, 3, 1.5
LATENT_CHANNELS = 4
# Arguments of the official constructor, and of the official sampling and training scripts, which build no layer.
CONSTRUCTOR = Constructor(
    "DiT",
    "facebookresearch/DiT",
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
        "cfg_scale": Argument(None, FID_GUIDANCE, NUMBER),
        "noise_schedule": Argument(None, "linear", one_of(("linear", "squaredcos_cap_v2"))),
        "diffusion_steps": Argument(None, LINEAR_STEPS, POSITIVE),
    },
)
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
        UserError: If an option is unknown or of the wrong kind.
    """
    values = CONSTRUCTOR.values(config)
    num_steps = values["diffusion_steps"]
    return GaussianDiffusion(
        num_train_timesteps=num_steps,
        beta_schedule=values["noise_schedule"],
        beta_start=LINEAR_BETA_START * LINEAR_STEPS / num_steps,
        beta_end=LINEAR_BETA_END * LINEAR_STEPS / num_steps,
        learned_variance=values["learn_sigma"],
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
            UserError: If an option is unknown or of the wrong kind.
        """
        return {"model": DiT(**CONSTRUCTOR.read(config))}

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

        trained, values = formulation(config), CONSTRUCTOR.values(config)
        defaults: dict[str, Any] = {"num_inference_steps": min(SAMPLING_STEPS, trained.config.num_train_timesteps)}
        if values["class_dropout_prob"] > 0:
            defaults["guidance_scale"] = values["cfg_scale"]
            if values["in_channels"] == LATENT_CHANNELS:
                defaults["guidance_channels"] = GUIDED_CHANNELS
        sampler = AncestralSampler(variance="learned" if trained.config.learned_variance else "large")
        return DiffusionImagePipeline(networks["model"], sampler, sampling_defaults=defaults, formulation=trained)
