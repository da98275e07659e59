"""RIN's official weights (google-research/pix2seq) by the names of their Keras variables, or by attributes in its checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.base import OfficialSource
from generative.convert.diffusion.rin_attributes import variable_name
from generative.convert.diffusion.rin_options import CONSTRUCTOR, formulation, network_arguments, sampler
from generative.convert.keys import names_of, rename_by
from generative.diffusion.networks.rin import RIN

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

# What official variables are named within, and what TensorFlow appends.
OWNER, SUFFIX = re.compile(r"^(?:model/)?(?:tape|denoiser|denoiser_ema)(?:_\d+)?/"), ":0"
NORM = (("gamma", "weight"), ("beta", "bias"))
LEAVES = (("kernel", "weight"), ("depthwise_kernel", "weight"), ("bias", "bias"), *NORM)
UNITS = {"read_unit_": "read", "read_cond_unit_": "read_condition", "write_unit_": "write"}
# Official name of a layer -> ours, first match wins; the kind of tensor comes after it.
LAYER_PATTERNS = (
    (r"^stem$", "stem"),
    (r"^stem_ln$", "stem_norm"),
    (r"^time_emb/dense0$", "time_embedder.linear_1"),
    (r"^time_emb/dense1$", "time_embedder.linear_2"),
    (r"^cond_proj$", "class_projection"),
    (r"^(latent|tape)_prev_proj/ffn/ln$", r"\1_memory.0.norm"),
    (r"^(latent|tape)_prev_proj/ffn/dense([12])$", r"\1_memory.0.fc\2"),
    (r"^(latent|tape)_prev_ln$", r"\1_memory.1"),
    *(
        (rf"^{official}(\d+)/transformer_decoder_layer/{layer}$", rf"blocks.\1.{ours}.{name}")
        for official, ours in UNITS.items()
        for layer, name in (
            ("cross_mha/ln", "norm"),
            ("cross_mha/enc_ln", "context_norm"),
            (r"cross_mha/(query|key|value)", r"attention.\2"),
            ("cross_mha/attention_output", "attention.out"),
            ("mlp/ffn/ln", "mlp.norm"),
            (r"mlp/ffn/dense([12])", r"mlp.fc\2"),
        )
    ),
    *(
        (rf"^latent_processing_unit(\d+)/transformer_encoder(?:_(\d+))?/{layer}$", rf"blocks.\1.process.<\2>.{name}")
        for layer, name in (
            ("mha/ln", "norm"),
            (r"mha/(query|key|value)", r"attention.\3"),
            ("mha/attention_output", "attention.out"),
            ("mlp/ffn/ln", "mlp.norm"),
            (r"mlp/ffn/dense([12])", r"mlp.fc\3"),
        )
    ),
    (r"^conv_units_(\d+)/depthwise_conv$", r"blocks.\1.convolution.depthwise"),
    (r"^conv_units_(\d+)/gn$", r"blocks.\1.convolution.norm"),
    (r"^conv_units_(\d+)/pointwise_conv$", r"blocks.\1.convolution.pointwise"),
    (r"^output_ln$", "norm_out"),
    (r"^output_linear$", "linear_out"),
)
POSITIONS = re.compile(r"^(latent|tape)_pos_emb(?:_res/kernel|/kernel/vis_pos_embedding)$")


def plain_name(key: str) -> str:
    """An official key as a variable is named, without its owner and suffix."""
    return variable_name(OWNER.sub("", key.removesuffix(SUFFIX)))


def rename(key: str) -> str | None:
    """Our name of an official key, None if it has none."""
    plain = plain_name(key)
    if match := POSITIONS.match(plain):
        return f"{match[1]}_positions.learned"
    layer, _, leaf = plain.rpartition("/")
    name, ending = rename_by(LAYER_PATTERNS, layer), dict(LEAVES).get(leaf)
    if name is None or ending is None:
        return None
    # The first encoder layer has no number.
    return re.sub(r"<(\d*)>", lambda match: match[1] or "0", f"{name}.{ending}")


def to_torch(name: str, value: Tensor) -> Tensor:
    """A Keras tensor in torch's order of axes.

    Args:
        name: Ours.
        value: Kernels have their outputs last; those of attention an axis of heads.
    """
    if name.endswith("positions.learned") or (value.ndim == 1 and ".attention." not in name):
        return value
    if ".attention." in name:
        if name.endswith("bias"):
            return value.flatten()
        return (value.flatten(0, 1) if ".out." in name else value.flatten(1)).t().contiguous()
    if name.endswith("depthwise.weight"):
        return value.permute(2, 3, 0, 1).contiguous()  # (k, k, D, 1)
    if value.ndim == 4 and name.startswith("stem"):
        return value.permute(3, 2, 0, 1).contiguous()  # (p, p, C, D)
    return value.flatten(0, -2).t().contiguous()


class RINSource(OfficialSource):
    """RIN as ``architectures/tape.py`` of google-research/pix2seq builds it."""

    name = "rin"
    repository = "google-research/pix2seq"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our RIN from official options.

        Args:
            config: Of the network; those of the model around it and of sampling may be among them and are checked.

        Returns:
            ``{"model": RIN}``.

        Raises:
            UserError: If an option is unknown, of the wrong kind or without an equal here.
        """
        arguments = network_arguments(config)
        formulation(config)
        sampler(config)
        return {"model": RIN(**arguments)}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename official variables and turn them to torch's order of axes.

        Args:
            module: ``model``.
            state: Official tensors.
            network: Our RIN.

        Raises:
            UserError: If a key is unknown.
        """
        names = names_of(CONSTRUCTOR.owner, state, rename)
        return {name: to_torch(name, state[key]) for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the options off names and shapes.

        What they do not tell: fixed positions, of which there is no tensor, hide the number of latents or the size of images;
        whether what is read of time and class is written to; and the schedules. Where latents and patches are equally wide, time
        and class are taken for latents, as in all official configurations of images.
        """
        shapes = {plain_name(key): tuple(value.shape) for key, value in state.items()}
        needed = ("stem/kernel", "time_emb/dense1/kernel", "output_linear/kernel")
        reads = "read_unit_0/transformer_decoder_layer/"
        if any(name not in shapes for name in (*needed, f"{reads}cross_mha/query/kernel")):
            return None
        patch_size, _, channels, tape_dim = shapes["stem/kernel"]
        latent_dim, rw_heads, _ = shapes[f"{reads}cross_mha/query/kernel"]
        layers = count_layers(shapes)
        process = "latent_processing_unit{}/transformer_encoder/mha/query/kernel"
        first = next((shapes[process.format(block)] for block, count in enumerate(layers) if count), (0, None, 0))
        writes = next((key for key in shapes if re.match(r"write_unit_\d+/.*/mlp/ffn/dense1/kernel", key)), None)
        time_dim = shapes["time_emb/dense1/kernel"][1]
        class_shape = shapes.get("cond_proj/kernel")
        on_latent = {"time": time_dim == latent_dim, "class": class_shape is not None and class_shape[1] == latent_dim}
        token_dims = {"time": time_dim, "class": class_shape[1] if class_shape else tape_dim}
        read_dims = [dim for kind, dim in token_dims.items() if not on_latent[kind]]
        latents, tape = (position_shape(shapes, kind) for kind in ("latent", "tape"))
        size = None if tape is None else math.isqrt(tape[0]) * patch_size
        kernel = next((shape[0] for key, shape in shapes.items() if key.endswith("depthwise_conv/depthwise_kernel")), 0)
        memories = [kind for kind in ("latent", "tape") if f"{kind}_prev_ln/gamma" in shapes]
        return {
            "num_layers": ",".join(map(str, layers)),
            "latent_slots": None if latents is None else latents[0] + sum(on_latent.values()),
            "latent_dim": latent_dim,
            "latent_mlp_ratio": shapes[f"{reads}mlp/ffn/dense1/kernel"][1] // latent_dim,
            "latent_num_heads": first[1],
            "tape_dim": tape_dim,
            "tape_mlp_ratio": shapes[writes][1] // tape_dim if writes else 0,
            "rw_num_heads": rw_heads,
            "image_height": size,
            "image_width": size,
            "image_channels": channels,
            "patch_size": patch_size,
            "conv_kernel_size": kernel,
            "latent_pos_encoding": position_kind(shapes, "latent"),
            "tape_pos_encoding": position_kind(shapes, "tape"),
            "time_scaling": 1000,
            "self_cond": "+".join(memories) or "none",
            "time_on_latent": on_latent["time"],
            "cond_on_latent": on_latent["class"],
            "cond_dim": next((dim for dim in read_dims if dim != tape_dim), 0),
            "cond_decoupled_read": any(key.startswith("read_cond_unit_") for key in shapes),
            "xattn_enc_ln": f"{reads}cross_mha/enc_ln/gamma" in shapes,
            "num_classes": class_shape[0] if class_shape else 1,
            "conditional": "class" if class_shape else "none",
        }

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline with the official sampler.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        values = CONSTRUCTOR.values(config)
        defaults: dict[str, Any] = {"num_inference_steps": values["infer_iterations"]}
        if values["cond_dropout"] > 0:
            defaults["guidance_scale"] = 1 + values["guidance"]
        return DiffusionImagePipeline(
            networks["model"], sampler(config), sampling_defaults=defaults, formulation=formulation(config)
        )


def count_layers(shapes: Mapping[str, Any]) -> list[int]:
    """Processing layers of each block."""
    found: dict[int, set[str]] = {}
    for key in shapes:
        if match := re.match(r"read_unit_(\d+)/", key):
            found.setdefault(int(match[1]), set())
        if match := re.match(r"latent_processing_unit(\d+)/(transformer_encoder(?:_\d+)?)/", key):
            found.setdefault(int(match[1]), set()).add(match[2])
    return [len(found.get(block, ())) for block in range(max(found) + 1)]


def position_shape(shapes: Mapping[str, Any], kind: str) -> tuple[int, int] | None:
    """Shape of learned positions, None where there are none."""
    names = (f"{kind}_pos_emb/kernel/vis_pos_embedding", f"{kind}_pos_emb_res/kernel")
    return next((shapes[name] for name in names if name in shapes), None)


def position_kind(shapes: Mapping[str, Any], kind: str) -> str:
    """How places are told."""
    if f"{kind}_pos_emb/kernel/vis_pos_embedding" in shapes:
        return "learned"
    return "sin_cos_plus_learned" if f"{kind}_pos_emb_res/kernel" in shapes else "sin_cos"
