"""DiT as diffusers keeps it: the transformer of a ``DiTPipeline`` (facebook/DiT-XL-2-256)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import POSITIVE, UNUSED, Argument, Constructor, Kind, one_of, optional
from generative.convert.base import OfficialSource
from generative.convert.keys import names_of, rename_by
from generative.core.errors import UserError
from generative.diffusion.networks.dit import DiT
from generative.diffusion.samplers.fit import SCHEDULERS, formulation_of

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

OPTIONS = Kind("options by name", lambda value: isinstance(value, Mapping))
# Of the scheduler that the published folders hold.
PUBLISHED_SCHEDULER = {"_class_name": "DDIMScheduler", "beta_start": 0.0001, "beta_end": 0.02, "clip_sample": False}
# Defaults of the pipeline's call.
SAMPLING_STEPS, GUIDANCE = 50, 4.0
# Those of the class before it had one of its own stand last; none of them builds a layer of DiT's.
CONSTRUCTOR = Constructor(
    "DiTTransformer2DModel",
    "huggingface/diffusers",
    {
        "num_attention_heads": Argument(None, 16, POSITIVE, untold='{"num_attention_heads": N}'),
        "attention_head_dim": Argument(None, 72, optional(POSITIVE)),
        "inner_dim": Argument(None, None, optional(POSITIVE)),  # both together, as a checkpoint's shapes tell it
        "in_channels": Argument("in_channels", 4, POSITIVE),
        "out_channels": Argument(None, None, optional(POSITIVE)),
        "num_layers": Argument("depth", 28, POSITIVE),
        "dropout": Argument(None, 0.0, one_of((0, 0.0), " (training alone has a use for it)")),
        "attention_bias": Argument(None, True, one_of((True,))),
        "sample_size": Argument("sample_size", 32, POSITIVE),
        "patch_size": Argument("patch_size", 2, POSITIVE),
        "activation_fn": Argument(None, "gelu-approximate", one_of(("gelu-approximate",))),
        "num_embeds_ada_norm": Argument("num_classes", 1000, POSITIVE),
        "norm_type": Argument(None, "ada_norm_zero", one_of(("ada_norm_zero",))),
        "norm_elementwise_affine": Argument(None, False, one_of((False,))),
        "norm_eps": Argument("mlp_norm_eps", 1e-5, one_of((1e-5, 1e-6))),  # of that norm alone; the others have 1e-6
        "frequency_shift": Argument("frequency_shift", 1, one_of((0, 1))),  # ours: 0 takes the official frequencies
        "scheduler": Argument(None, PUBLISHED_SCHEDULER, OPTIONS),
        **dict.fromkeys(("norm_num_groups", "upcast_attention", "_class_name", "_diffusers_version", "_name_or_path"), UNUSED),
        **dict.fromkeys(("attention_type", "caption_channels", "cross_attention_dim", "double_self_attention"), UNUSED),
        **dict.fromkeys(("interpolation_scale", "num_vector_embeds", "only_cross_attention"), UNUSED),
        **dict.fromkeys(("use_linear_projection", "use_additional_conditions"), UNUSED),
    },
)
KEY_PATTERNS = (
    (r"^pos_embed\.proj\.", "patch_embedding."),
    (r"^transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.(linear_[12])\.", r"timestep_embedder.\1."),
    (r"^transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table\.", "label_embedding."),
    (r"^transformer_blocks\.(\d+)\.norm1\.linear\.", r"blocks.\1.modulation."),
    (r"^transformer_blocks\.(\d+)\.attn1\.to_out\.0\.", r"blocks.\1.attention.out."),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"blocks.\1.mlp.fc1."),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.2\.", r"blocks.\1.mlp.fc2."),
    (r"^proj_out_1\.", "final_layer.modulation."),
    (r"^proj_out_2\.", "final_layer.linear."),
)
EMBEDDER = re.compile(r"^transformer_blocks\.\d+\.norm1\.emb\.")
QUERY = re.compile(r"^transformer_blocks\.(\d+)\.attn1\.to_q\.(weight|bias)$")
TABLE = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"


class DiTPipelineSource(OfficialSource):
    """The transformer of a ``DiTPipeline``, in whose blocks each has a copy of the embedders that ours has once."""

    name = "dit-pipeline"
    repository = "huggingface/diffusers"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our DiT from the transformer's config.

        Args:
            config: Of ``transformer/config.json``; the ``scheduler``'s may be among it.

        Raises:
            UserError: If an option is unknown or has no equal here.
        """
        values = CONSTRUCTOR.values(config)
        channels, out_channels = values["in_channels"], values["out_channels"] or values["in_channels"]
        if out_channels not in (channels, 2 * channels):
            raise UserError(
                f"DiTTransformer2DModel option out_channels must be in_channels {channels} or twice, got {out_channels}"
            )
        scheduler_of(config)
        return {
            "model": DiT(
                **CONSTRUCTOR.read(config),
                hidden_size=width_of(values),
                num_heads=values["num_attention_heads"],
                learn_sigma=out_channels == 2 * channels,
            )
        }

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename a state dict; queries, keys and values become one map.

        Args:
            module: ``model``.
            state: Tensors of diffusers.
            network: Our DiT.

        Raises:
            UserError: If a key is unknown, or the copies of the embedders differ.
        """
        first = {
            EMBEDDER.sub("", key): value for key, value in state.items() if key.startswith("transformer_blocks.0.norm1.emb.")
        }
        rest = {}
        for key, value in state.items():
            kept = first.get(EMBEDDER.sub("", key)) if EMBEDDER.match(key) else None
            if kept is None or key.startswith("transformer_blocks.0."):
                rest[key] = value
            elif not torch.equal(kept, value):
                raise UserError(f"{key} differs from that of the first block; DiT has one embedder, which all blocks share")
        converted = {"position_embedding": network.position_embedding}
        for key in [key for key in rest if QUERY.match(key)]:
            parts = [rest.pop(key.replace("to_q", part)) for part in ("to_q", "to_k", "to_v")]
            converted[QUERY.sub(r"blocks.\1.attention.qkv.\2", key)] = torch.cat(parts)
        names = names_of("DiTTransformer2DModel", rest, partial(rename_by, KEY_PATTERNS))
        return converted | {name: rest[key] for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read options off names and shapes; ``num_attention_heads``, which none tells, is in the folder's config.json."""
        if TABLE not in state or "proj_out_2.weight" not in state or "pos_embed.proj.weight" not in state:
            return None
        width, in_channels, patch_size, _ = state["pos_embed.proj.weight"].shape
        return {
            "num_attention_heads": None,
            "attention_head_dim": None,
            "inner_dim": width,
            "in_channels": in_channels,
            "out_channels": state["proj_out_2.weight"].shape[0] // patch_size**2,
            "num_layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks.")),
            "patch_size": patch_size,
            "num_embeds_ada_norm": state[TABLE].shape[0] - 1,
        }

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline with the folder's scheduler and the defaults of ``DiTPipeline``'s call, which guides all channels.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        scheduler, network = scheduler_of(config), networks["model"]
        trained = formulation_of(scheduler, bool(network.config.learn_sigma))
        defaults = {"num_inference_steps": SAMPLING_STEPS, "guidance_scale": GUIDANCE}
        return DiffusionImagePipeline(network, scheduler, sampling_defaults=defaults, formulation=trained)


def width_of(values: Mapping[str, Any]) -> int:
    """Width of the tokens.

    Args:
        values: Of the constructor's arguments.

    Raises:
        UserError: If heads and their size do not tell it, or tell another than the checkpoint.
    """
    heads, head_dim, width = (values[name] for name in ("num_attention_heads", "attention_head_dim", "inner_dim"))
    if width is None and head_dim is None:
        raise UserError("DiTTransformer2DModel option attention_head_dim must be a positive whole number, got None")
    if width is None:
        return int(heads * head_dim)
    if width % heads or head_dim not in (None, width // heads):
        raise UserError(
            f"DiTTransformer2DModel options num_attention_heads {heads} and attention_head_dim {head_dim} do not make the "
            f"checkpoint's width {width}; give heads that divide it and leave attention_head_dim out"
        )
    return int(width)


def scheduler_of(config: Mapping[str, Any]) -> Any:
    """The scheduler of a folder.

    Raises:
        UserError: If it is none that samples here.
    """
    options = CONSTRUCTOR.values(config)["scheduler"]
    name = options.get("_class_name")
    if name not in SCHEDULERS:
        raise UserError(f"the folder's scheduler is {name}; it must be one of {', '.join(SCHEDULERS)}")
    return getattr(diffusers, name).from_config(dict(options))
