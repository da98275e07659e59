"""Names and shapes of the tensors of EDM's U-Nets, official and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from generative.convert.base import UnknownKeysError
from generative.convert.keys import rename_by
from generative.diffusion.networks.dhariwal_unet import DhariwalUNet
from generative.diffusion.networks.song_unet import SongUNet
from generative.layers.edm_unet import MapAttention

PREFIX = "model."
"""Of every tensor: the preconditioning holds the U-Net by this name and has no tensors of its own."""
FILTER = "resample_filter"
# Official keys behind the prefix -> ours; those that name a resolution are taken apart by ``rename``.
KEY_PATTERNS = (
    (r"^map_noise\.freqs$", "frequencies"),
    (r"^map_label\.weight$", "label_embedding.weight"),
    (r"^map_label\.bias$", "label_bias"),
    (r"^map_augment\.weight$", "augment_embedding.weight"),
    (r"^map_layer0\.(weight|bias)$", r"linear_1.\1"),
    (r"^map_layer1\.(weight|bias)$", r"linear_2.\1"),
    (r"^(out_norm|out_conv)\.(weight|bias)$", r"\1.\2"),
)
RESOLUTION_KEY = re.compile(r"^(enc|dec)\.(\d+)x\2_([a-z]+(?:_[a-z]+)?)(\d*)\.(.+)$")
BLOCK_PATTERNS = (
    (r"^conv0\.resample_filter$", "resampler.kernel"),
    (r"^skip\.resample_filter$", "skip_resampler.kernel"),
    (r"^norm0\.", "norm1."),
    (r"^norm1\.", "norm2."),
    (r"^conv0\.", "conv1."),
    (r"^conv1\.", "conv2."),
    (r"^(affine|skip)\.", r"\1."),
    (r"^norm2\.", "attention_norm."),
    (r"^qkv\.", "attention.qkv."),
    (r"^proj\.", "attention.out."),
)


def rename(key: str, sizes: tuple[int, ...], num_outs: int) -> str | None:
    """Our name of an official key without its prefix, None if there is none.

    Args:
        key: Official.
        sizes: Of the levels' maps, highest first.
        num_outs: Levels of the decoder that make an image.
    """
    match = RESOLUTION_KEY.match(key)
    if match is None:
        return rename_by(KEY_PATTERNS, key)
    side, size, part, number, rest = match.groups()
    if int(size) not in sizes:
        return None
    level, last = sizes.index(int(size)), len(sizes) - 1
    is_encoder = side == "enc"
    if part.startswith("aux") and rest == FILTER and not number:
        if is_encoder:
            return f"side_resamplers.{level - 1}.kernel" if part in ("aux_down", "aux_residual") and level else None
        return f"out_resamplers.{last - level - 1}.kernel" if part == "aux_up" and level < last else None
    if part in ("conv", "aux_skip", "aux_residual") and is_encoder and not number:
        if (part == "conv") != (level == 0):
            return None
        return f"input_conv.{rest}" if part == "conv" else f"side_convs.{level - 1}.{rest}"
    if part in ("aux_norm", "aux_conv") and not is_encoder and not number:
        place = last - level + num_outs - len(sizes)
        return f"out_{part.removeprefix('aux_')}s.{place}.{rest}" if place >= 0 else None
    inner = rename_by(BLOCK_PATTERNS, rest)
    if inner is None:
        return None
    name = f"encoder.{level}" if is_encoder else f"decoder.{last - level}"
    if part == "block" and number:
        return f"{name}.blocks.{number}.{inner}"
    if part == "in" and number and not is_encoder and level == last:
        return f"{name}.entry.{number}.{inner}"
    if part == ("down" if is_encoder else "up") and not number:
        return f"{name}.entry.0.{inner}"
    return None


def convert_tensors(state: Mapping[str, Tensor], network: SongUNet | DhariwalUNet) -> dict[str, Tensor]:
    """Official tensors by our names, shaped as ours are.

    Args:
        state: Official tensors.
        network: Ours.

    Raises:
        UnknownKeysError: If a key has no place.
    """
    num_outs = len(network.out_convs) if isinstance(network, SongUNet) else 0
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        bare = key.removeprefix(PREFIX)
        name = rename(bare, network.sizes, num_outs) if bare != key else None
        if name is None:
            unknown.append(key)
        else:
            converted[name] = arrange(name, value, network)
    if unknown:
        raise UnknownKeysError("EDM", unknown)
    return converted


def arrange(name: str, value: Tensor, network: SongUNet | DhariwalUNet) -> Tensor:
    """One tensor as ours is shaped: 1x1 convolutions of attention as linear maps, their outputs by query, key and value."""
    if name == "label_embedding.weight":
        return value.t()
    if name.endswith(".kernel") and value.dim() == 4:
        return value[0, 0]
    match = re.match(r"^(.+\.attention)\.(qkv|out)\.(weight|bias)$", name)
    if match is None or value.dim() not in (1, 4):
        return value
    value = value.flatten(1) if value.dim() == 4 else value  # (3C, C) or (3C,)
    try:
        attention = network.get_submodule(match[1])
    except AttributeError:
        return value  # of a block without attention: there is no place for it
    if match[2] == "out" or not isinstance(attention, MapAttention) or value.shape[0] % (3 * attention.num_heads):
        return value
    # The official order is (heads, C / heads, query key value).
    return value.unflatten(0, (attention.num_heads, -1, 3)).movedim(2, 0).flatten(0, 2)


def recognise(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Official options of a checkpoint, read off names and shapes; None for another layout."""
    if not {"model.map_layer0.weight", "model.map_layer1.weight"} <= state.keys():
        return None
    keys = [match for key in state if (match := RESOLUTION_KEY.match(key.removeprefix(PREFIX)))]
    encoder = {int(match[2]) for match in keys if match[1] == "enc"}
    if not encoder or f"model.enc.{max(encoder)}x{max(encoder)}_conv.weight" not in state:
        return None
    sizes = sorted(encoder, reverse=True)
    is_song = f"model.dec.{sizes[0]}x{sizes[0]}_aux_conv.weight" in state
    if not is_song and "model.out_conv.weight" not in state:
        return None
    widths = [state[f"model.enc.{size}x{size}_block0.conv1.weight"].shape[0] for size in sizes]
    embedding_channels, noise_channels = state["model.map_layer0.weight"].shape
    is_fourier = "model.map_noise.freqs" in state
    first = state[f"model.enc.{sizes[0]}x{sizes[0]}_conv.weight"]
    base = first.shape[0] if is_song else noise_channels
    label, augment = state.get("model.map_label.weight"), state.get("model.map_augment.weight")
    config: dict[str, Any] = {
        "img_resolution": sizes[0],
        "img_channels": first.shape[1],
        "label_dim": 0 if label is None else label.shape[1],
        "model_type": "SongUNet" if is_song else "DhariwalUNet",
        "augment_dim": 0 if augment is None else augment.shape[1],
        "model_channels": base,
        "channel_mult": [width // base for width in widths],
        "channel_mult_emb": embedding_channels // base,
        "num_blocks": len({match[4] for match in keys if match[1] == "enc" and match[3] == "block"}),
        "attn_resolutions": [size for size in sizes if f"model.enc.{size}x{size}_block0.qkv.weight" in state],
        "sigma_data": 0.5,
        "dropout": 0.0,
        "label_dropout": 0.0,
    }
    if is_song:
        parts = {match[3] for match in keys}
        encoder_types = {"aux_skip": "skip", "aux_residual": "residual"}
        config |= {
            "embedding_type": "fourier" if is_fourier else "positional",
            "channel_mult_noise": noise_channels // base,
            "encoder_type": next((kind for part, kind in encoder_types.items() if part in parts), "standard"),
            "decoder_type": "skip" if sum(match[3] == "aux_conv" and match[5] == "weight" for match in keys) > 1 else "standard",
            "resample_filter": read_taps(state),
        }
    return config


def read_taps(state: Mapping[str, Tensor]) -> list[float]:
    """Taps of the stored filter, the smallest 1; what is loaded is the filter itself, so their number decides."""
    kernel = next((value for key, value in state.items() if key.endswith(FILTER)), None)
    if kernel is None or kernel.dim() != 4:
        return [1, 1]
    line = torch.ones(kernel.shape[-1]) if kernel.is_meta else kernel[0, 0].float().sum(0)
    line = line if bool((line > 0).all()) else torch.ones_like(line)
    return [round(tap, 3) for tap in (line / line.min()).tolist()]
