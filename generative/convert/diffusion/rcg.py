"""Checkpoints of RCG's representation diffusion (LTH14/rcg, rdm)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import ANY, DROPOUT, FLAG, NUMBER, POSITIVE, REQUIRED, WHOLE, Argument, Constructor, one_of
from generative.convert.base import OfficialSource
from generative.convert.keys import names_of, rename_by
from generative.core.errors import UserError
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.simple_mlp import SimpleMLP
from generative.diffusion.samplers.ldm_ddim import LDMDDIMSampler

if TYPE_CHECKING:
    from pipelines.representation import RepresentationPipeline

REPOSITORY = "LTH14/rcg"
# Of main_mage.py and the README: steps and eta by which representations are sampled.
SAMPLING_STEPS, SAMPLING_ETA = 250, 1.0
COSINE_OFFSET, LARGEST_BETA = 8e-3, 0.999  # of the cosine schedule
BLOCK = r"^unet/res_blocks\.(\d+)\."
# Official key -> ours, first match wins.
KEY_PATTERNS = (
    (r"^cond_stage/embedding\.", "label_embedding."),
    (r"^unet/time_embed\.0\.", "time_1."),
    (r"^unet/time_embed\.2\.", "time_2."),
    (r"^unet/input_proj\.", "input."),
    (rf"{BLOCK}in_layers\.0\.", r"blocks.\1.norm_1."),
    (rf"{BLOCK}in_layers\.2\.", r"blocks.\1.linear_1."),
    (rf"{BLOCK}emb_layers\.1\.", r"blocks.\1.time."),
    (rf"{BLOCK}context_layers\.1\.", r"blocks.\1.label."),
    (rf"{BLOCK}out_layers\.0\.", r"blocks.\1.norm_2."),
    (rf"{BLOCK}out_layers\.3\.", r"blocks.\1.linear_2."),
    (r"^unet/out\.0\.", "output_norm."),
    (r"^unet/out\.2\.", "output."),
)
OWN_KEYS = (
    "unet/input_proj.weight",
    "unet/time_embed.0.weight",
    "unet/res_blocks.0.in_layers.2.weight",
    "cond_stage/embedding.weight",
)
UNET = Constructor(
    "SimpleMLP",
    REPOSITORY,
    {
        "in_channels": Argument("in_channels", REQUIRED, WHOLE),
        "time_embed_dim": Argument("time_embedding_size", REQUIRED, WHOLE),
        "model_channels": Argument("hidden_size", REQUIRED, WHOLE),
        "bottleneck_channels": Argument("bottleneck_size", REQUIRED, WHOLE),
        "out_channels": Argument(None, REQUIRED, WHOLE),
        "num_res_blocks": Argument("depth", REQUIRED, WHOLE),
        "dropout": Argument("dropout", 0, DROPOUT),
        "use_context": Argument("class_conditional", False, FLAG),
        "context_channels": Argument(None, 512, WHOLE),
    },
)
COND_STAGE = Constructor(
    "ClassEmbedder",
    REPOSITORY,
    {
        "embed_dim": Argument("class_embedding_size", REQUIRED, WHOLE),
        "n_classes": Argument("num_classes", 1000, WHOLE),
        "key": Argument(None, "class_label", ANY),
    },
)
SCHEDULE = Constructor(
    "DDPM",
    REPOSITORY,
    {
        "linear_start": Argument(None, 1e-4, NUMBER),
        "linear_end": Argument(None, 2e-2, NUMBER),
        "timesteps": Argument(None, 1000, POSITIVE),
        "cosine_s": Argument(None, COSINE_OFFSET, NUMBER),
    },
)
BETA_SCHEDULES = MappingProxyType(
    {"linear": "linear", "linear (in sqrt space)": "linear", "cosine": "cosine", "sqrt_linear": "sqrt_linear", "sqrt": "sqrt"}
)
RDM = Constructor(
    "RDM",
    REPOSITORY,
    {
        "unet": Argument(None, REQUIRED, ANY),
        "cond_stage": Argument(None, REQUIRED, ANY),
        "class_cond": Argument(None, False, FLAG),
        "parameterization": Argument(None, "x0", one_of({"x0": "sample", "eps": "epsilon"})),
        "schedule": Argument(None, MappingProxyType({"linear_start": 0.0015, "linear_end": 0.0195}), ANY),
        "beta_schedule": Argument(None, "linear", one_of(BETA_SCHEDULES)),
        "input_scale": Argument(None, 1.0, one_of((1.0,))),
        "ddim_steps": Argument(None, SAMPLING_STEPS, POSITIVE),
        "eta": Argument(None, SAMPLING_ETA, NUMBER),
    },
)


def official_betas(name: str, num_steps: int, first: float, last: float, offset: float) -> Tensor:
    """Betas (T,) float64 of an official schedule that diffusers has under no name."""
    if name == "sqrt":
        return torch.linspace(first, last, num_steps, dtype=torch.float64).sqrt()
    times = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps + offset
    kept = (times / (1 + offset) * math.pi / 2).cos().square()
    return (1 - kept[1:] / kept[:-1]).clamp(0, LARGEST_BETA)


def formulation(config: Mapping[str, Any]) -> GaussianDiffusion:
    """The official noise schedule, and what is predicted.

    Args:
        config: Official options; ``schedule``, ``beta_schedule`` and ``parameterization`` are read.

    Raises:
        UserError: If an option is unknown or of the wrong kind.
    """
    values = RDM.values(config)
    schedule = SCHEDULE.values(values["schedule"])
    steps, first, last = schedule["timesteps"], schedule["linear_start"], schedule["linear_end"]
    shared = {"num_train_timesteps": steps, "prediction_type": values["parameterization"]}
    if values["beta_schedule"] in ("linear", "sqrt_linear"):
        # Officially "linear" is linear in the roots of the betas, and "sqrt_linear" in the betas.
        named = "scaled_linear" if values["beta_schedule"] == "linear" else "linear"
        return GaussianDiffusion(beta_schedule=named, beta_start=first, beta_end=last, **shared)
    betas = official_betas(values["beta_schedule"], steps, first, last, schedule["cosine_s"])
    return GaussianDiffusion(trained_betas=betas.tolist(), **shared)


class RCGSource(OfficialSource):
    """RCG's ``RDM``: its SimpleMLP and the table of classes, without the encoder, whose representations it learnt."""

    name = "rcg"
    repository = REPOSITORY
    modules = ("unet", "cond_stage")

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our network from official arguments.

        Args:
            config: ``unet`` and ``cond_stage``, arguments of the official classes, and options of the chain and of sampling,
                which are checked.

        Returns:
            ``{"model": SimpleMLP}``.

        Raises:
            UserError: If an option is unknown, of the wrong kind, or has no equal here.
        """
        values = RDM.values(config)
        unet, classes = UNET.values(values["unet"]), COND_STAGE.values(values["cond_stage"])
        if unet["out_channels"] != unet["in_channels"]:
            raise UserError(
                f"SimpleMLP option out_channels={unet['out_channels']} of {REPOSITORY} must be in_channels "
                f"{unet['in_channels']}: a representation is made of one"
            )
        if unet["use_context"] and unet["context_channels"] != classes["embed_dim"]:
            raise UserError(
                f"context_channels {unet['context_channels']} of {REPOSITORY} must be embed_dim {classes['embed_dim']}, the "
                "width of the embedded class"
            )
        formulation(config)
        return {"model": SimpleMLP(**UNET.read(values["unet"]), **COND_STAGE.read(values["cond_stage"]))}

    def rekey(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the network's averaged weights and the classes, as its authors sample with, out of a whole ``RDM``."""
        prefix = "model.diffusion_model."
        if not any(key.startswith(prefix) for key in state):
            return dict(state)
        taken = {}
        for key, value in state.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                average = "model_ema.diffusion_model" + name.replace(".", "")
                taken[f"unet/{name}"] = state.get(average, value)
            elif key.startswith("cond_stage_model."):
                taken[f"cond_stage/{key.removeprefix('cond_stage_model.')}"] = value
        return taken

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict, of both modules.

        Args:
            module: ``model``.
            state: Official tensors.
            network: Our network.

        Raises:
            UnknownKeysError: If a key is unknown.
        """
        names = names_of("RDM", state, partial(rename_by, KEY_PATTERNS))
        return {name: state[key] for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes; the schedule is the published one.

        Args:
            state: Official tensors, ``unet/<key>`` and ``cond_stage/<key>``.
        """
        if any(key not in state for key in OWN_KEYS):
            return None
        bottleneck, width = state["unet/res_blocks.0.in_layers.2.weight"].shape
        num_classes, embed_dim = state["cond_stage/embedding.weight"].shape
        channels = state["unet/input_proj.weight"].shape[1]
        blocks = [int(match[1]) for match in (re.match(BLOCK, key) for key in state) if match]
        use_context = "unet/res_blocks.0.context_layers.1.weight" in state
        return {
            "unet": {
                "in_channels": channels,
                "time_embed_dim": state["unet/time_embed.0.weight"].shape[0],
                "model_channels": width,
                "bottleneck_channels": bottleneck,
                "out_channels": channels,
                "num_res_blocks": max(blocks) + 1,
                "use_context": use_context,
                **({"context_channels": embed_dim} if use_context else {}),
            },
            "cond_stage": {"embed_dim": embed_dim, "n_classes": num_classes},
            "class_cond": use_context,
        }

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> RepresentationPipeline:
        """Pipeline with the official sampler; give it to a generator's.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.representation import RepresentationPipeline

        values = RDM.values(config)
        return RepresentationPipeline(
            networks["model"],
            LDMDDIMSampler(eta=values["eta"]),
            formulation(config),
            sampling_defaults={"num_inference_steps": values["ddim_steps"]},
        )
