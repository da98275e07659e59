"""Checkpoints of the DiMR authors' code (qihao067/DiMR)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import (
    DROPOUT,
    FLAG,
    LIST,
    NUMBER,
    NUMBERS,
    POSITIVE,
    REQUIRED,
    Argument,
    Constructor,
    Kind,
    at_least,
    one_of,
    optional,
)
from generative.convert.base import OfficialSource
from generative.convert.keys import names_of, rename_by
from generative.core.errors import UserError
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.dimr import DiMR
from generative.diffusion.samplers.dpm_solver import DPMSolverSampler

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

REPOSITORY = "qihao067/DiMR"
# Heads of the published branches of transformers by width: a checkpoint does not tell.
HEADS = MappingProxyType({960: 16, 1152: 16})
BETAS = re.compile(r"sqrt-linear ([\d.e-]+)\.\.([\d.e-]+), (\d+)")
# The network is told n / 1000 * 8 - 4 of the step n, which is counted from 1.
TIME_SCALE, TIME_START = 8 / 1000, -4.0
SAMPLING_STEPS, GUIDANCE = 250, 0.4
SHARED: dict[str, Argument] = {
    "block_type": Argument("block_types", REQUIRED, one_of({"TransformerBlock": "transformer", "ConvNeXtBlock": "convnext"})),
    "dim": Argument("hidden_sizes", REQUIRED, POSITIVE),
    "hidden_dim": Argument("mlp_sizes", REQUIRED, POSITIVE),
    "num_blocks": Argument("num_blocks", REQUIRED, POSITIVE),
    "max_height": Argument(None, REQUIRED, POSITIVE, untold='"stage_configs" with "max_height"'),
    "max_width": Argument(None, REQUIRED, POSITIVE, untold='"stage_configs" with "max_width"'),
    "image_input_ratio": Argument("downsamplings", REQUIRED, POSITIVE),
    "input_feature_ratio": Argument("patch_sizes", REQUIRED, POSITIVE),
    "final_kernel_size": Argument("final_kernel_sizes", REQUIRED, POSITIVE),
    "dropout_prob": Argument("dropouts", REQUIRED, DROPOUT),
}
HEAD_COUNT = Argument("num_heads", REQUIRED, POSITIVE, untold='"stage_configs" with "num_attention_heads"')
# Of each kind of block; what only the other kind has may be given and means nothing.
TRANSFORMER = SHARED | {"num_attention_heads": HEAD_COUNT, "kernel_size": Argument("kernel_sizes", 7, POSITIVE)}
CONVNEXT = SHARED | {
    "num_attention_heads": Argument("num_heads", 1, POSITIVE),
    "kernel_size": Argument("kernel_sizes", REQUIRED, POSITIVE),
}
STAGES = MappingProxyType(
    {
        "TransformerBlock": Constructor("transformer stage", REPOSITORY, TRANSFORMER),
        "ConvNeXtBlock": Constructor("ConvNeXt stage", REPOSITORY, CONVNEXT),
    }
)
BETA_TEXT = "sqrt-linear 0.00085..0.0120, 1000"
BETA_KIND = Kind(f"text such as {BETA_TEXT!r}", lambda value: isinstance(value, str) and BETAS.fullmatch(value) is not None)
NORMS = one_of({"LN": "td_layer_norm", "RMSN": "rms_norm", "TDRMSN": "td_rms_norm", "ADARMSN": "ada_rms_norm"})
CONSTRUCTOR = Constructor(
    "MRModel",
    REPOSITORY,
    {
        "channels": Argument("in_channels", REQUIRED, POSITIVE),
        "num_classes": Argument(None, None, optional(at_least(2))),
        "block_grad_to_lowres": Argument("detach_lower", REQUIRED, FLAG),
        "norm_type": Argument("norm", "LN", NORMS),
        "pe_type": Argument("positions", "APE", one_of({"APE": "learned", "Axial_RoPE": "axial_rope"})),
        "stage_configs": Argument(None, REQUIRED, LIST),
        # Of the training and sampling scripts.
        "loss_coeffs": Argument(None, None, optional(NUMBERS)),
        "guidance_scale": Argument(None, GUIDANCE, NUMBER),
        "sample_steps": Argument(None, SAMPLING_STEPS, POSITIVE),
        "beta_schedule": Argument(None, BETA_TEXT, BETA_KIND),
    },
)
TIMED = {"param0": "high", "param1": "low", "nodecay_weight": "gate_weight", "nodecay_bias": "gate_bias"}
# Official key -> ours, first match wins; what a norm or a layer holds is renamed after.
KEY_PATTERNS = (
    (r"^(stages\.\d+)\.input_layer\.1\.", r"\1.patch_embedding."),
    (r"^(stages\.\d+)\.input_layer\.3\.position_embeddings\.weight$", r"\1.position_embedding.weight"),
    (r"^(stages\.\d+)\.class_embeds\.", r"\1.label_embedding."),
    (r"^(stages\.\d+)\.upsample\.0\.weight\.", r"\1.upsample.norm_in.scale."),
    (r"^(stages\.\d+)\.upsample\.0\.bias\.", r"\1.upsample.norm_in.shift."),
    (r"^(stages\.\d+)\.upsample\.1\.kernel\.", r"\1.upsample.linear."),
    (r"^(stages\.\d+)\.upsample\.2\.weight\.", r"\1.upsample.norm_out.scale."),
    (r"^(stages\.\d+)\.upsample\.2\.bias\.", r"\1.upsample.norm_out.shift."),
    (r"^(stages\.\d+)\.output_layer\.0\.weight\.", r"\1.norm_out.scale."),
    (r"^(stages\.\d+)\.output_layer\.0\.bias\.", r"\1.norm_out.shift."),
    (r"^(stages\.\d+)\.output_layer\.2\.", r"\1.conv_out."),
    (r"^(stages\.\d+)\.skip_denses\.(\d+)\.", r"\1.skip_linears.\2."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block1\.1\.", r"\1.conv."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block1\.query_key_value\.", r"\1.attention.qkv."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block1\.dense\.", r"\1.attention.out."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block1\.qk_norm\.", r"\1.attention.qk_norm."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block1\.pos_emb\.freqs_h$", r"\1.attention.rope.row_frequencies"),
    (r"^(stages\.\d+\.blocks\.\d+)\.block1\.pos_emb\.freqs_w$", r"\1.attention.rope.column_frequencies"),
    (r"^(stages\.\d+\.blocks\.\d+)\.block1\.norm\.weight\.", r"\1.attention.norm.scale."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block1\.norm\.bias\.", r"\1.attention.norm.shift."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block1\.norm\.", r"\1.attention.norm."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block2\.norm\.weight\.", r"\1.mlp.norm.scale."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block2\.norm\.bias\.", r"\1.mlp.norm.shift."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block2\.norm\.", r"\1.mlp.norm."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block2\.w0\.", r"\1.mlp.gate."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block2\.w1\.", r"\1.mlp.up."),
    (r"^(stages\.\d+\.blocks\.\d+)\.block2\.w2\.", r"\1.mlp.down."),
)
# Frequencies of a branch as a whole, which the official code makes beside those of its blocks and never reads.
UNREAD = re.compile(r"^stages\.\d+\.pos_emb\.freqs_[hw]$")
OWN_KEYS = ("stages.0.input_layer.1.weight", "stages.0.blocks.0.block2.w0.weight", "stages.0.output_layer.2.weight")


def rename(key: str) -> str | None:
    """Our name of an official key, None if it has none."""
    name = rename_by(KEY_PATTERNS, key)
    if name is None:
        return None
    head, _, last = name.rpartition(".")
    return f"{head}.{TIMED[last]}" if last in TIMED else name


def stage_arguments(config: Mapping[str, Any]) -> tuple[dict[str, list[Any]], int]:
    """Our network's arguments that have a value for each branch, and the size of the samples.

    Args:
        config: Official options of the whole.

    Raises:
        UserError: If an option of a stage is unknown or has no equal here.
    """
    ours: dict[str, list[Any]] = {}
    sample_size = 0
    for stage in CONSTRUCTOR.values(config)["stage_configs"]:
        kind = stage.get("block_type") if isinstance(stage, Mapping) else None
        constructor = STAGES.get(str(kind), STAGES["TransformerBlock"])
        values = constructor.values(stage)
        if values["max_height"] != values["max_width"]:
            told = f"{values['max_height']} and {values['max_width']}"
            raise UserError(f"max_height and max_width of {REPOSITORY} must be equal, since samples are square here, got {told}")
        for name, value in constructor.read(stage).items():
            ours.setdefault(name, []).append(value)
        sample_size = values["max_height"] * values["image_input_ratio"] * values["input_feature_ratio"]
    if not ours:
        raise UserError(f"stage_configs of {REPOSITORY} must have one stage at least, got none")
    return ours, sample_size


def network_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our network's arguments.

    Args:
        config: Official options.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    branches, sample_size = stage_arguments(config)
    arguments = CONSTRUCTOR.read(config) | {"sample_size": sample_size} | {name: tuple(each) for name, each in branches.items()}
    rows = CONSTRUCTOR.values(config)["num_classes"]
    if rows is None or "transformer" not in branches["block_types"]:
        return arguments | {"class_conditional": False, "class_dropout_prob": 0.0}
    return arguments | {"num_classes": rows - 1}  # the last row is the null class


def loss_coefficients(config: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Weights of the losses of all branches, None where the options do not tell.

    Args:
        config: Official options.
    """
    found: tuple[float, ...] | None = CONSTRUCTOR.values(config)["loss_coeffs"]
    return found


def formulation(config: Mapping[str, Any]) -> GaussianDiffusion:
    """The discrete schedule that the official code trains by.

    Args:
        config: Official options; ``beta_schedule`` is read.
    """
    match = BETAS.fullmatch(CONSTRUCTOR.values(config)["beta_schedule"])
    assert match is not None
    return GaussianDiffusion(
        num_train_timesteps=int(match[3]),
        beta_schedule="scaled_linear",
        beta_start=float(match[1]),
        beta_end=float(match[2]),
        time_scale=TIME_SCALE,
        time_offset=TIME_START + TIME_SCALE,
        interpolation="log_alpha",
    )


def dpm_solver() -> DPMSolverSampler:
    """The official DPM-Solver, that of U-ViT's latent models."""
    return DPMSolverSampler(3, "time_uniform", "dpmsolver++")


class DiMRSource(OfficialSource):
    """DiMR as ``libs/core/blocks.py`` builds it."""

    name = "dimr"
    repository = REPOSITORY

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our DiMR.

        Args:
            config: Arguments of the official network. Beside them ``loss_coeffs``, ``guidance_scale`` s of
                cond + s (cond - uncond), ``sample_steps`` and ``beta_schedule``.

        Returns:
            ``{"model": DiMR}``.

        Raises:
            UserError: If an option is unknown or has no equal here.
        """
        network = DiMR(**network_arguments(config))
        coefficients = loss_coefficients(config)
        if coefficients is not None and len(coefficients) != network.pyramid_levels:
            told = f"each of {network.pyramid_levels} stages, got {len(coefficients)}"
            raise UserError(f"loss_coeffs of {REPOSITORY} must be one number for {told}")
        return {"model": network}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; see ``OfficialSource``."""
        names = names_of("MRModel", (key for key in state if not UNREAD.match(key)), rename)
        ours = {name: state[key] for key, name in names.items()}
        for name, value in network.state_dict().items():
            is_table = name.endswith("position_embedding.weight") and name in ours
            if is_table and ours[name].shape == value.flatten(0, 1).shape:
                ours[name] = ours[name].reshape(value.shape)
        return ours

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the options off names and shapes; the last row of the label table is the null class."""
        if any(key not in state for key in OWN_KEYS):
            return None
        count = 1 + max(int(match[1]) for match in (re.match(r"^stages\.(\d+)\.", key) for key in state) if match)
        stages = [read_stage(state, f"stages.{index}.") for index in range(count)]
        labels = [len(value) for key, value in state.items() if key.endswith(".class_embeds.weight")]
        norm = "stages.0.blocks.0.block2.norm."
        kinds = {"weight.param0": "LN", "scale": "RMSN", "scale.param0": "TDRMSN", "linear.weight": "ADARMSN"}
        found = {
            "channels": state["stages.0.input_layer.1.weight"].shape[1],
            "block_grad_to_lowres": False,
            "norm_type": next((kind for name, kind in kinds.items() if norm + name in state), "LN"),
            "pe_type": "Axial_RoPE" if any(UNREAD.match(key) for key in state) else "APE",
            "stage_configs": stages,
        }
        return found | ({"num_classes": labels[0]} if labels else {})

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline that samples as the published figures were; the autoencoder is the caller's to add.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        network = networks["model"]
        assert isinstance(network, DiMR)
        values = CONSTRUCTOR.values(config)
        defaults: dict[str, Any] = {"num_inference_steps": values["sample_steps"]}
        if network.null_label is not None:
            # cond + s (cond - uncond) = uncond + (1 + s) (cond - uncond)
            defaults["guidance_scale"] = 1 + values["guidance_scale"]
        return DiffusionImagePipeline(network, dpm_solver(), sampling_defaults=defaults, formulation=formulation(config))


def read_stage(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Official options of one stage from a checkpoint's names and shapes; the sample is not averaged down in published models.

    Args:
        state: Official tensors by key.
        prefix: Of the stage's keys.
    """
    width, _, patch, _ = state[f"{prefix}input_layer.1.weight"].shape
    blocks = 1 + max(int(key[len(f"{prefix}blocks.") :].split(".")[0]) for key in state if key.startswith(f"{prefix}blocks."))
    table = state.get(f"{prefix}input_layer.3.position_embeddings.weight")
    size = None if table is None else math.isqrt(len(table))
    stage: dict[str, Any] = {
        "dim": width,
        "hidden_dim": state[f"{prefix}blocks.0.block2.w0.weight"].shape[0],
        "num_blocks": blocks,
        "max_height": size,
        "max_width": size,
        "image_input_ratio": 1,
        "input_feature_ratio": patch,
        "final_kernel_size": state[f"{prefix}output_layer.2.weight"].shape[-1],
        "dropout_prob": 0,
    }
    if f"{prefix}blocks.0.block1.1.weight" in state:
        return stage | {"block_type": "ConvNeXtBlock", "kernel_size": state[f"{prefix}blocks.0.block1.1.weight"].shape[-1]}
    return stage | {"block_type": "TransformerBlock", "num_attention_heads": HEADS.get(width)}
