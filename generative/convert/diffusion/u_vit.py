"""Checkpoints of the U-ViT authors' code (baofff/U-ViT), of latent and of pixel models."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import (
    FLAG,
    NUMBER,
    POSITIVE,
    REQUIRED,
    UNUSED,
    WHOLE,
    Argument,
    Constructor,
    Kind,
    one_of,
    optional,
)
from generative.convert.base import OfficialSource
from generative.convert.keys import names_of, rename_by
from generative.core.errors import UserError
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.u_vit import UViT
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.dpm_solver import DPMSolverSampler
from generative.diffusion.samplers.sde import SDESampler

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

REPOSITORY = "baofff/U-ViT"
# Heads of the published sizes by width: a checkpoint does not tell.
HEADS = MappingProxyType({512: 8, 768: 12, 1024: 16, 1152: 16})
# Stable Diffusion's betas, of latent models; steps are counted from 1.
BETA_START, BETA_END = 0.00085, 0.012
# The SDE of pixel models, told to the network as 999 t, and where their solvers end.
BETA_MIN, BETA_MAX, TIME_SCALE, SOLVER_END, EULER_MARUYAMA_END = 0.1, 20.0, 999.0, 1e-4, 1e-3
LATENT_CHANNELS = 4
# Guidance of the published figures of latent models, by the size of the latents.
GUIDANCE = MappingProxyType({32: 0.4, 64: 0.7})
OPTIONS = Kind("options by name", lambda value: isinstance(value, Mapping))
NETWORK = Constructor(
    "UViT",
    REPOSITORY,
    {
        "img_size": Argument("sample_size", 224, POSITIVE),
        "patch_size": Argument("patch_size", 16, POSITIVE),
        "in_chans": Argument("in_channels", 3, POSITIVE),
        "embed_dim": Argument("hidden_size", 768, POSITIVE),
        "depth": Argument("depth", 12, POSITIVE),
        "num_heads": Argument("num_heads", 12, POSITIVE, untold='{"nnet": {"num_heads": N}}'),
        "mlp_ratio": Argument("mlp_ratio", 4.0, NUMBER),
        "qkv_bias": Argument("qkv_bias", False, FLAG),
        "mlp_time_embed": Argument("time_mlp", False, FLAG),
        "num_classes": Argument(None, -1, WHOLE),
        "conv": Argument("final_conv", True, FLAG),
        "skip": Argument("skip_connections", True, FLAG),
        "qk_scale": UNUSED,  # of the attention written out, which the official code takes under torch 1 only
        "use_checkpoint": UNUSED,
        "name": Argument(None, "uvit", one_of(("uvit",))),  # of the official configurations
    },
)
SCRIPTS = Constructor(
    "training script",
    REPOSITORY,
    {
        "nnet": Argument(None, REQUIRED, OPTIONS),
        "pixel": Argument(None, False, FLAG),
        "null_label": Argument(None, None, optional(WHOLE)),
        "guidance_s": Argument(None, None, optional(NUMBER)),
        "algorithm": Argument(None, "dpm_solver", one_of(("dpm_solver", "euler_maruyama_sde", "euler_maruyama_ode"))),
        "sample_steps": Argument(None, 50, POSITIVE),
        "em_steps": Argument(None, None, optional(POSITIVE)),
    },
)
KEY_PATTERNS = (
    (r"^patch_embed\.proj\.", "patch_embedding."),
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^label_emb\.", "label_embedding."),
    (r"^pos_embed$", "position_embedding"),
    (r"^((?:in|out)_blocks\.\d+|mid_block)\.attn\.qkv\.", r"\1.attention.qkv."),
    (r"^((?:in|out)_blocks\.\d+|mid_block)\.attn\.proj\.", r"\1.attention.out."),
    (r"^((?:in|out)_blocks\.\d+|mid_block)\.(norm[12]|mlp\.fc[12]|skip_linear)\.", r"\1.\2."),
    (r"^norm\.", "norm."),
    (r"^decoder_pred\.", "head."),
    (r"^final_layer\.", "conv_out."),
)
# Keys that every checkpoint has, and no other layout together.
OWN_KEYS = (
    "pos_embed",
    "patch_embed.proj.weight",
    "mid_block.attn.qkv.weight",
    "decoder_pred.weight",
    "mid_block.mlp.fc1.weight",
)


def network_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our network's arguments.

    Args:
        config: Official options: those of the network under ``nnet``, beside them those of the scripts.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    values = SCRIPTS.values(config)
    arguments, rows, null = NETWORK.read(values["nnet"]), NETWORK.values(values["nnet"])["num_classes"], values["null_label"]
    if rows <= 0:
        if null is not None:
            raise UserError(f"null_label {null} of {REPOSITORY} needs a network with num_classes; leave it out")
        return arguments | {"class_conditional": False, "class_dropout_prob": 0.0}
    if null is None:
        return arguments | {"num_classes": rows, "class_dropout_prob": 0.0}
    if null != rows - 1 or rows < 2:
        raise UserError(
            f"null_label of {REPOSITORY} must be the last of num_classes {rows}, behind one class at least, got {null}"
        )
    return arguments | {"num_classes": rows - 1}


def latent_formulation() -> GaussianDiffusion:
    """The discrete schedule of latent models."""
    return GaussianDiffusion(
        beta_schedule="scaled_linear",
        beta_start=BETA_START,
        beta_end=BETA_END,
        time_offset=1.0,
        interpolation="log_alpha",
    )


def pixel_formulation() -> ContinuousDiffusion:
    """The continuous SDE of pixel models."""
    return ContinuousDiffusion(
        schedule="vp_sde", beta_min=BETA_MIN, beta_max=BETA_MAX, time_scale=TIME_SCALE, min_time=SOLVER_END
    )


def formulation(config: Mapping[str, Any]) -> Formulation:
    """What a model was trained under.

    Args:
        config: Official options.
    """
    return pixel_formulation() if SCRIPTS.values(config)["pixel"] else latent_formulation()


def dpm_solver(config: Mapping[str, Any]) -> DPMSolverSampler:
    """The official DPM-Solver: of the data and in even times on latents, of the noise and in even log-SNR on pixels."""
    if SCRIPTS.values(config)["pixel"]:
        return DPMSolverSampler(3, "log_snr", "dpmsolver")
    return DPMSolverSampler(3, "time_uniform", "dpmsolver++")


def euler_maruyama(is_stochastic: bool) -> SDESampler:
    """The official Euler-Maruyama sampler of pixel models, of the reverse SDE or of the ODE on the same grid."""
    return SDESampler("sbdm", float(is_stochastic), "mean", EULER_MARUYAMA_END)


class UViTSource(OfficialSource):
    """U-ViT as ``libs/uvit.py`` builds it."""

    name = "u-vit"
    repository = REPOSITORY

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our U-ViT.

        Args:
            config: Arguments of the official network under ``nnet``. Beside them ``pixel``, whether the model is of pixels and of
                continuous time; ``null_label``, the row of the label table that stands for no class, if there is one;
                ``guidance_s`` of cond + s (cond - uncond); ``algorithm``, ``sample_steps`` and ``em_steps`` of sampling.

        Returns:
            ``{"model": UViT}``.

        Raises:
            UserError: If an option is unknown or has no equal here.
        """
        network = UViT(**network_arguments(config))
        self.sampling(config, network)
        return {"model": network}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; see ``OfficialSource``."""
        names = names_of("UViT", state, partial(rename_by, KEY_PATTERNS))
        return {name: state[key] for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the options off names and shapes; models of four channels are latent ones, whose last label is the null class."""
        if any(key not in state for key in OWN_KEYS) or "cls_token" in state:
            return None
        width, channels, patch, _ = state["patch_embed.proj.weight"].shape
        labels = len(state["label_emb.weight"]) if "label_emb.weight" in state else -1
        num_patches = state["pos_embed"].shape[1] - (2 if labels > 0 else 1)
        blocks = [int(match[1]) for match in (re.match(r"^in_blocks\.(\d+)\.", key) for key in state) if match]
        nnet = {
            "img_size": math.isqrt(num_patches) * patch,
            "patch_size": patch,
            "in_chans": channels,
            "embed_dim": width,
            "depth": 2 * (max(blocks, default=-1) + 1) or 1,
            "num_heads": HEADS.get(width),
            "mlp_ratio": state["mid_block.mlp.fc1.weight"].shape[0] / width,
            "qkv_bias": "mid_block.attn.qkv.bias" in state,
            "mlp_time_embed": "time_embed.0.weight" in state,
            "num_classes": labels,
            "conv": "final_layer.weight" in state,
            "skip": "out_blocks.0.skip_linear.weight" in state,
        }
        is_latent = channels == LATENT_CHANNELS
        return {"nnet": nnet, "pixel": not is_latent, "null_label": labels - 1 if is_latent and labels > 0 else None}

    def sampling(self, config: Mapping[str, Any], network: UViT) -> tuple[Sampler, dict[str, Any]]:
        """The official sampler and the pipeline's defaults.

        Args:
            config: Official options.
            network: From ``build``.

        Raises:
            UserError: If an option has no meaning for such a model.
        """
        values = SCRIPTS.values(config)
        sampler: Sampler = dpm_solver(config)
        if values["algorithm"] != "dpm_solver":
            if not values["pixel"]:
                raise UserError(
                    f"algorithm {values['algorithm']} of {REPOSITORY} is of pixel models; leave it out, or set pixel to true"
                )
            sampler = euler_maruyama(values["algorithm"] == "euler_maruyama_sde")
        defaults: dict[str, Any] = {"num_inference_steps": values["sample_steps"]}
        if network.null_label is None:  # officially sampled without guidance, whatever its strength
            return sampler, defaults
        strength = values["guidance_s"]
        if strength is None:
            strength = GUIDANCE.get(network.config.sample_size, GUIDANCE[32])
        # cond + s (cond - uncond) = uncond + (1 + s) (cond - uncond)
        return sampler, defaults | {"guidance_scale": 1 + strength}

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline that samples as the published figures were; the autoencoder of latent models is the caller's to add.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        network = networks["model"]
        assert isinstance(network, UViT)
        sampler, defaults = self.sampling(config, network)
        return DiffusionImagePipeline(network, sampler, sampling_defaults=defaults, formulation=formulation(config))
