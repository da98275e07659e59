"""The released BigGAN-deep generators: huggingface/pytorch-pretrained-BigGAN, and the TF-Hub modules they were made from.

Tensors of a TF-Hub module are brought into the Hugging Face layout first, see ``pretrained_biggan_hub``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import ANY, POSITIVE, WHOLE, Argument, Constructor, Kind, at_least
from generative.convert.base import OfficialSource
from generative.convert.gan.pretrained_biggan_hub import (
    PUBLISHED_ATTENTION_POSITION,
    Shapes,
    attention_position,
    from_hub,
    hub_shapes,
    is_hub,
)
from generative.convert.gan.spectral import add_singular_values
from generative.convert.keys import names_of
from generative.core.errors import UserError
from generative.gan.biggan_deep import BigGANDeepGenerator, BlockWidths

if TYPE_CHECKING:
    from pipelines.gan import GANImagePipeline

RGB = 3  # the last convolution puts out channel_width channels, the first three of which are the image
# The official configuration of 128 pixels, its constructor's defaults.
DEFAULT_LAYERS = (
    *((False, 16, 16), (True, 16, 16), (False, 16, 16), (True, 16, 8), (False, 8, 8), (True, 8, 4)),
    *((False, 4, 4), (True, 4, 2), (False, 2, 2), (True, 2, 1)),
)
CONSTRUCTOR = Constructor(
    "generator",
    "pretrained-biggan",
    {
        "output_dim": Argument(
            None, 128
        ),  # this and the next are not read, as in the official code: ``layers`` and ``z_dim`` decide
        "class_embed_dim": Argument(None, 128),
        "z_dim": Argument("z_dim", 128, POSITIVE),
        "channel_width": Argument("channels", 128, at_least(RGB)),
        "num_classes": Argument("num_classes", 1000, WHOLE),
        "layers": Argument(None, DEFAULT_LAYERS, ANY),  # see ``read_layers``
        "attention_layer_position": Argument(None, PUBLISHED_ATTENTION_POSITION, WHOLE),
        "eps": Argument("batch_norm_eps", 1e-4, Kind("a positive number", lambda value: isinstance(value, float) and value > 0)),
        "n_stats": Argument("num_statistics", 51, at_least(2)),
    },
)
# Of the official first linear layer and of its last norm, whatever ``layers`` says.
FIRST_WIDTH, BOTTOM_WIDTH, LAST_WIDTH = 16, 4, 1
LAYER_FIELDS = 3  # upsample, width in, width out

# Hugging Face submodule -> ours; ``layers`` are numbered with the attention among them.
MODULE_NAMES = (
    (r"^generator\.gen_z$", r"linear"),
    (r"^generator\.bn$", r"norm_out"),
    (r"^generator\.conv_to_rgb$", r"conv_out"),
    (r"^(blocks\.\d+)\.bn_(\d)\.scale$", r"\1.norm\2.gain"),
    (r"^(blocks\.\d+)\.bn_(\d)\.offset$", r"\1.norm\2.bias"),
    (r"^(blocks\.\d+)\.bn_(\d)$", r"\1.norm\2.norm"),
    (r"^(blocks\.\d+)\.conv_(\d)$", r"\1.conv\2"),
    (r"^(attentions\.-?\d+)$", r"\1"),
    (r"^(attentions\.-?\d+)\.snconv1x1_theta$", r"\1.query"),
    (r"^(attentions\.-?\d+)\.snconv1x1_phi$", r"\1.key"),
    (r"^(attentions\.-?\d+)\.snconv1x1_g$", r"\1.value"),
    (r"^(attentions\.-?\d+)\.snconv1x1_o_conv$", r"\1.out"),
)
TENSOR_NAMES = {
    "weight_orig": "weight",
    "bias": "bias",
    "gamma": "gamma",
    "weight_u": "spectral_norm.u",
    "weight_v": "spectral_norm.v",
    "running_means": "running_mean",
    "running_vars": "running_var",
}


def read_layers(layers: Any, channel_width: int) -> tuple[BlockWidths, ...]:
    """Validate the official list of blocks.

    Raises:
        UserError: If it is none, or one that the official generator cannot run.
    """
    is_list = isinstance(layers, Sequence) and len(layers) > 0 and not isinstance(layers, str)
    if not is_list or not all(isinstance(layer, Sequence) and len(layer) == LAYER_FIELDS for layer in layers):
        raise UserError(f"layers of pretrained-biggan must be triples (upsample, width in, width out), got {layers!r}")
    blocks = tuple((bool(up), int(width_in), int(width_out)) for up, width_in, width_out in layers)
    if blocks[0][1] != FIRST_WIDTH or blocks[-1][2] != LAST_WIDTH:
        raise UserError(
            f"layers of pretrained-biggan must start at width {FIRST_WIDTH} and end at {LAST_WIDTH}, "
            f"got {blocks[0][1]} and {blocks[-1][2]}"
        )
    for _, width_in, width_out in blocks:
        if width_in != width_out and channel_width * width_in // 2 != channel_width * width_out:
            raise UserError(f"layers of pretrained-biggan keep or halve their width, got {width_in} in and {width_out} out")
    return blocks


def to_our_rows(tensor: Tensor) -> Tensor:
    """Outputs of the first linear layer from (height, width, channels) to (channels, height, width), along the first axis."""
    return tensor.unflatten(0, (BOTTOM_WIDTH, BOTTOM_WIDTH, -1)).movedim(2, 0).flatten(0, 2)


def to_our_columns(tensor: Tensor, z_dim: int) -> Tensor:
    """Inputs [z, embedding] to [embedding, z], along the last axis."""
    return torch.cat([tensor[..., z_dim:], tensor[..., :z_dim]], dim=-1)


def our_path(path: str, position: int | None) -> str | None:
    """Our name for a Hugging Face submodule, None if it has none."""
    layer = re.match(r"^generator\.layers\.(\d+)", path)
    if layer:
        index = int(layer[1])
        if index == position:
            ours = f"attentions.{index - 1}"
        else:
            ours = f"blocks.{index - (position is not None and index > position)}"
        # Norms and convolutions of a block are numbered from 0 there, from 1 here.
        rest = re.sub(r"_(\d)", lambda number: f"_{int(number[1]) + 1}", path[layer.end() :])
        path = ours + rest
    for pattern, replacement in MODULE_NAMES:
        if re.match(pattern, path):
            return re.sub(pattern, replacement, path)
    return None


def our_key(key: str, position: int | None) -> str | None:
    """Our name for a Hugging Face tensor, None if it has none."""
    if key == "embeddings.weight":
        return "class_embedding.weight"
    path, _, tensor = key.rpartition(".")
    ours = our_path(path, position)
    if path == "generator.bn" and tensor == "weight":
        return f"{ours}.gain"
    return f"{ours}.{TENSOR_NAMES[tensor]}" if ours is not None and tensor in TENSOR_NAMES else None


def torch_shapes(state: Mapping[str, Tensor]) -> Shapes | None:
    """What the shapes of a Hugging Face checkpoint tell, None if it is none."""
    needed = ("embeddings.weight", "generator.gen_z.weight_orig", "generator.bn.running_means")
    if any(name not in state for name in needed):
        return None
    widths, attended, index = [], -1, 0
    while True:
        path = f"generator.layers.{index}"
        if f"{path}.conv_0.weight_orig" in state and f"{path}.conv_3.weight_orig" in state:
            widths.append((state[f"{path}.conv_0.weight_orig"].shape[1], state[f"{path}.conv_3.weight_orig"].shape[0]))
        elif f"{path}.gamma" in state:
            attended = index
        else:
            break
        index += 1
    z_dim, num_classes = state["embeddings.weight"].shape
    num_statistics, channels = state["generator.bn.running_means"].shape
    return widths, attended, (num_classes, z_dim), (num_statistics, channels)


class PretrainedBigGANSource(OfficialSource):
    """BigGAN-deep generators as pytorch-pretrained-BigGAN and TF-Hub publish them; there are no discriminators."""

    name = "pretrained-biggan"
    repository = "huggingface/pytorch-pretrained-BigGAN"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our generator from the official configuration.

        Args:
            config: Contents of the official ``config.json``; what is missing is as for 128 pixels.

        Returns:
            ``{"model": generator}``.

        Raises:
            UserError: If an option is unknown, or is one with which the official generator cannot run.
        """
        values = CONSTRUCTOR.values(config)
        blocks = read_layers(values["layers"], values["channel_width"])
        position = values["attention_layer_position"]
        generator = BigGANDeepGenerator(
            **CONSTRUCTOR.read(config),
            shared_embedding_dim=values["z_dim"],
            bottom_width=BOTTOM_WIDTH,
            spectral_norm_eps=values["eps"],
            right_vectors=True,
            output_channels=values["channel_width"],
            block_widths=blocks,
            attention_after=(position - 1,) if 0 <= position < len(blocks) else (),
        )
        return {"model": generator}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename official tensors of either layout, and put their axes in our order.

        Args:
            module: ``model``.
            state: Official tensors by name.
            network: Our generator, from ``build``.

        Returns:
            Our state dict.

        Raises:
            UserError: If a key is unknown.
        """
        if is_hub(state):
            state = from_hub(state, network)
        position, z_dim = attention_position(network), network.config.z_dim
        names = names_of(self.name, state, partial(our_key, position=position))
        converted: dict[str, Tensor] = {}
        for key, name in names.items():
            path, _, tensor = key.rpartition(".")
            value = state[key]
            if key == "embeddings.weight":
                value = value.T
            if tensor == "gamma":
                value = value.reshape(())
            if path == "generator.gen_z" and tensor != "weight_v":
                value = to_our_rows(value)
            if path.endswith((".gen_z", ".scale", ".offset")) and tensor in ("weight_orig", "weight_v"):
                value = to_our_columns(value, z_dim)
            converted[name] = value[None] if tensor in ("weight_u", "weight_v") else value
        add_singular_values(converted)
        return converted

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        Args:
            state: Tensors by official name of either layout.

        Returns:
            What ``build`` takes; None for another layout. Where blocks upsample and what the epsilon is leaves no trace: every
            second block, and 1e-4, as in all published generators.
        """
        state = {key.removeprefix("model/"): value for key, value in state.items()}
        shapes = hub_shapes(state) if is_hub(state) else torch_shapes(state)
        if shapes is None:
            return None
        widths, attended, (num_classes, z_dim), (num_statistics, channels) = shapes
        if not widths or channels == 0 or widths[0][0] != FIRST_WIDTH * channels:
            return None
        layers = [[bool(i % 2), width_in // channels, width_out // channels] for i, (width_in, width_out) in enumerate(widths)]
        return {
            "output_dim": BOTTOM_WIDTH << sum(up for up, _, _ in layers),
            "z_dim": z_dim,
            "class_embed_dim": z_dim,
            "channel_width": channels,
            "num_classes": num_classes,
            "layers": layers,
            "attention_layer_position": attended,
            "eps": CONSTRUCTOR.arguments["eps"].default,
            "n_stats": num_statistics,
        }

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> GANImagePipeline:
        """Pipeline whose truncation scales noise truncated at +-2, as the official samples are drawn.

        Samplers start from truncation 1.0, the default of the official ``truncated_noise_sample``: the batch norms have rows of
        statistics for truncations up to 1, and none for noise that is not truncated.

        Args:
            networks: From ``build``.
            config: What they were built from.
        """
        from pipelines.gan import GANImagePipeline

        return GANImagePipeline(
            generator=networks["model"], sampling_defaults={"truncation": 1.0}, truncation_law="scaled_truncated"
        )
