"""Snapshots of EDM2 (NVlabs/edm2): the magnitude-preserving U-Net, on pixels or on latents of Stability's autoencoder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor, nn

from generative.convert.base import OfficialSource
from generative.convert.diffusion.edm2_options import (
    ENCODER_CLASS,
    IMAGE_RANGE,
    LOSS,
    OPTIONS,
    PRECOND,
    REPOSITORY,
    build_network,
    constructor,
    formulation,
    latent_scaling,
    num_steps,
    sampler,
)
from generative.convert.keys import names_of, rename_by
from generative.diffusion.networks.edm2 import EDM2UNet
from generative.diffusion.networks.edm2_blocks import EDM2Block, MPAttention
from generative.tokenizers.latents import set_latent_scaling

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

# Options of ``Precond`` that no name or shape tells.
NUMBERS = ("label_balance", "concat_balance", "dropout", "res_balance", "attn_balance", "clip_act")
# Keys that every EDM2 snapshot has, and no other layout together.
OWN_KEYS = ("unet.emb_fourier.freqs", "unet.emb_noise.weight", "unet.out_gain", "unet.out_conv.weight", "logvar_linear.weight")
BLOCK = re.compile(r"^unet\.(enc|dec)\.(\d+)x\2_(\w+?)\.")
# Official key -> ours, of what is in no block.
KEY_PATTERNS = (
    (r"^unet\.enc\.\d+x\d+_conv\.", "conv_in."),
    (r"^unet\.out_conv\.", "conv_out."),
    (r"^unet\.(emb_fourier|emb_noise|emb_label)\.", r"\1."),
    (r"^unet\.out_gain$", "out_gain"),
    (r"^(logvar_fourier|logvar_linear)\.", r"\1."),
)
# The same within a block.
BLOCK_PATTERNS = (
    (r"^attn_qkv\.", "attention.qkv."),
    (r"^attn_proj\.", "attention.out."),
    (r"^(conv_res[01]|conv_skip|emb_linear)\.", r"\1."),
    (r"^emb_gain$", "emb_gain"),
)


def block_names(network: EDM2UNet) -> dict[str, tuple[str, EDM2Block]]:
    """Our names of blocks, and the blocks, by the official name."""
    names: dict[str, tuple[str, EDM2Block]] = {}
    for short, side in (("enc", "encoder"), ("dec", "decoder")):
        counts: dict[str, int] = {}
        for index, block in enumerate(getattr(network, side)):
            place = block.place
            size = network.config.sample_size >> place.level
            kind = "block" if place.reads_skip or side == "encoder" else "in"
            if place.resampling is not None:
                name = f"{size}x{size}_{place.resampling}"
            else:
                name = f"{size}x{size}_{kind}"
                counts[name] = counts.get(name, -1) + 1
                name += str(counts[name])
            names[f"unet.{short}.{name}."] = (f"{side}.{index}.", block)
    return names


def our_name(blocks: Mapping[str, tuple[str, nn.Module]], key: str) -> str | None:
    """Our name of an official key, None if it has none."""
    match = BLOCK.match(key)
    if match is None or match[0] not in blocks:
        return rename_by(KEY_PATTERNS, key)
    inner = rename_by(BLOCK_PATTERNS, key.removeprefix(match[0]))
    return None if inner is None else blocks[match[0]][0] + inner


def as_ours(name: str, value: Tensor, network: nn.Module) -> Tensor:
    """An official tensor as ours: attention's 1x1 convolutions as maps, and q, k and v one behind the other, not interleaved."""
    if ".attention." not in name or value.dim() != 4:
        return value
    weight = value.flatten(1)
    if ".qkv." not in name:
        return weight
    attention = network.get_submodule(name.partition(".qkv.")[0])
    assert isinstance(attention, MPAttention)
    return weight.unflatten(0, (attention.num_heads, -1, 3)).permute(2, 0, 1, 3).flatten(0, 2)


def as_official(name: str, value: Tensor, network: nn.Module) -> Tensor:
    """The inverse of ``as_ours``, for tensors of any of our weights: gradients, weights after a step."""
    if ".attention." not in name:
        return value
    if ".qkv." in name:
        attention = network.get_submodule(name.partition(".qkv.")[0])
        assert isinstance(attention, MPAttention)
        value = value.unflatten(0, (3, attention.num_heads, -1)).permute(1, 2, 0, 3).flatten(0, 2)
    return value[:, :, None, None]


class EDM2Source(OfficialSource):
    """EDM2 as ``training/networks_edm2.py`` of NVlabs/edm2 builds it."""

    name = "edm2"
    repository = REPOSITORY
    modules = ("net",)
    autoencoder_file = "stabilityai/sd-vae-ft-mse, a folder"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our network, and the one that guides it where its options are given.

        Args:
            config: Arguments of the official ``Precond``; those of a guiding one as ``gnet_config``, of the sampler as
                ``sampler``, of the loss as ``loss`` and of ``StabilityVAEEncoder`` as ``encoder``.

        Returns:
            ``{"net": EDM2UNet}``, and ``gnet`` with ``gnet_config``.

        Raises:
            UserError: If an option is unknown or out of range.
        """
        own = constructor("Precond", OPTIONS).values(config)
        formulation(config)
        sampler(config)
        latent_scaling(config.get("encoder", {}))
        networks: dict[str, ModelMixin] = {"net": build_network("Precond", {name: own[name] for name in PRECOND})}
        if config.get("gnet_config"):
            networks["gnet"] = build_network("gnet_config", config["gnet_config"])
        return networks

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict, and order the rows of attention's weights as ours are.

        Args:
            module: ``net`` or ``gnet``.
            state: Official tensors.
            network: Our network.

        Raises:
            UnknownKeysError: If a key is unknown.
        """
        assert isinstance(network, EDM2UNet)
        blocks = block_names(network)
        names = names_of("EDM2", state, lambda key: our_name(blocks, key))
        known = network.state_dict()
        return {name: as_ours(name, state[key], network) if name in known else state[key] for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes; balances, filters and heads are the official defaults.

        Args:
            state: Official tensors by key.
        """
        if any(key not in state for key in OWN_KEYS):
            return None
        matches = [(key, match) for key in state if (match := BLOCK.match(key)) is not None]
        widths = {
            int(m[2]): state[key].shape[0] for key, m in matches if m[1] == "dec" and key.endswith("block0.conv_res1.weight")
        }
        sizes = sorted(widths, reverse=True)
        noise_width, embedding_width = state["unet.emb_noise.weight"].shape[1], state["unet.emb_noise.weight"].shape[0]
        model_channels = math.gcd(*widths.values(), noise_width, embedding_width)
        attended = {int(m[2]) for key, m in matches if m[1] == "enc" and key.endswith("attn_qkv.weight")}
        label = state.get("unet.emb_label.weight")
        return {
            "img_resolution": sizes[0],
            "img_channels": state["unet.out_conv.weight"].shape[0],
            "label_dim": 0 if label is None else label.shape[1],
            "use_fp16": True,
            "sigma_data": 0.5,
            "logvar_channels": state["logvar_linear.weight"].shape[1],
            "model_channels": model_channels,
            "channel_mult": [widths[size] // model_channels for size in sizes],
            "channel_mult_noise": noise_width // model_channels,
            "channel_mult_emb": embedding_width // model_channels,
            "num_blocks": len({m[3] for _, m in matches if m[1] == "enc" and m[3].startswith("block")}),
            "attn_resolutions": sorted(attended, reverse=True),
            **{name: float(PRECOND[name].default) for name in NUMBERS},
            "resample_filter": [1, 1],
            "channels_per_head": PRECOND["channels_per_head"].default,
        }

    def options_beside(self, beside: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Scaling of the latents and noise levels of training, from the snapshot's encoder and loss.

        Args:
            beside: What lies beside the network in its file, by name.
        """
        told: dict[str, Any] = {}
        encoder, loss = beside.get("encoder", {}), beside.get("loss_fn", {})
        if encoder.get("class_name") == ENCODER_CLASS:
            scale, bias = ([float(value) for value in encoder[name]] for name in ("scale", "bias"))
            told["encoder"] = {
                "raw_mean": [round(-shift / factor, 5) + 0.0 for shift, factor in zip(bias, scale, strict=True)],
                "raw_std": [round(0.5 / factor, 5) for factor in scale],
            }
        levels = {name: float(loss[name]) for name in LOSS if isinstance(loss.get(name), int | float)}
        return told | ({"loss": levels} if levels else {})

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline with the official sampler; the autoencoder, which no snapshot holds, is the caller's to add.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        defaults = {"num_inference_steps": num_steps(config)}
        return DiffusionImagePipeline(networks["net"], sampler(config), None, defaults, formulation=formulation(config))

    def fit_autoencoder(self, autoencoder: ModelMixin, config: Mapping[str, Any]) -> None:
        """Scale the autoencoder's latents channel by channel, and give it images in [0, 1], as the snapshot's encoder does."""
        set_latent_scaling(autoencoder, **latent_scaling(config.get("encoder", {})), image_range=IMAGE_RANGE)
