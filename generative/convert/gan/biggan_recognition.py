"""What names and shapes of a BigGAN-PyTorch checkpoint tell of the options that BigGAN.py was called with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from generative.convert.base import split_by_module
from generative.gan.residual import DISCRIMINATOR_WIDTHS, GENERATOR_WIDTHS, discriminator_stages, generator_stages

State = Mapping[str, Tensor]

# Resolutions that G_arch and D_arch of BigGAN.py have; our networks have others too.
GENERATOR_RESOLUTIONS = (32, 64, 128, 256, 512)
DISCRIMINATOR_RESOLUTIONS = (32, 64, 128, 256)

# Keys that every checkpoint of the two networks has, and no other layout together.
GENERATOR_KEYS = {"linear.weight", "output_layer.0.gain", "output_layer.2.weight", "blocks.0.0.bn1.gain.weight"}
DISCRIMINATOR_KEYS = {"linear.weight", "embed.weight", "blocks.0.0.conv2.weight", "blocks.0.0.conv_sc.weight"}
# Keys of BigGANdeep.py's networks, which have the others' too.
DEEP_KEYS = {"blocks.0.0.conv3.weight", "input_conv.weight"}


def split_prefixes(state: State) -> dict[str, dict[str, Tensor]]:
    """Sort a checkpoint's tensors by network.

    Args:
        state: Tensors by ``generator/<key>`` and ``discriminator/<key>``, or those of one network by ``<key>``.

    Returns:
        Tensors by key, by ``generator`` or ``discriminator``; empty for another layout.
    """
    parts = split_by_module(state)
    if "" in parts and len(parts) == 1:
        bare = parts[""]
        return {"generator" if bare.keys() >= GENERATOR_KEYS else "discriminator": bare}
    return parts if parts.keys() <= {"generator", "discriminator"} else {}


def count_blocks(state: State) -> int:
    """Number of stages of residual blocks."""
    indices = [int(match[1]) for match in (re.match(r"^blocks\.(\d+)\.0\.", key) for key in state) if match]
    return max(indices, default=-1) + 1


def count_singular_values(state: State) -> int:
    """Number of spectral vectors that each weight keeps; 0 without spectral norm."""
    return sum(re.fullmatch(r"linear\.u\d+", key) is not None for key in state)


def attention_string(state: State, stages: list[int]) -> str:
    """Sizes that self-attention stands at, as the official option has them: ``64_16``, and ``0`` for none."""
    sizes = dict.fromkeys(size for index, size in enumerate(stages) if f"blocks.{index}.1.theta.weight" in state)
    return "_".join(map(str, sizes)) or "0"


def norm_options(state: State) -> dict[str, Any]:
    """Which of the official batch norms holds the statistics; ``in`` has the same names and shapes as ``bn``."""
    norm = "blocks.0.0.bn1"
    return {
        "mybn": f"{norm}.bn.stored_mean" in state,
        "cross_replica": f"{norm}.bn.running_mean" in state,
        "norm_style": "nonorm" if not any(key.startswith(f"{norm}.") and key.endswith("_mean") for key in state) else "bn",
    }


def read_generator(state: State) -> dict[str, Any] | None:
    """Options of the official ``Generator`` as far as a checkpoint tells, defaults where it does not; None for another layout."""
    layouts = {len(GENERATOR_WIDTHS[resolution]) - 1: resolution for resolution in GENERATOR_RESOLUTIONS}
    resolution = layouts.get(count_blocks(state))
    if resolution is None or not state.keys() >= GENERATOR_KEYS or state.keys() & DEEP_KEYS:
        return None
    num_chunks = len(GENERATOR_WIDTHS[resolution])  # one for each block and one for the first layer
    channels = state["output_layer.0.gain"].shape[0] // GENERATOR_WIDTHS[resolution][-1]
    rows, first_dim = state["linear.weight"].shape
    affine = state["blocks.0.0.bn1.gain.weight"]
    is_shared = "shared.weight" in state
    shared_dim = state["shared.weight"].shape[1] if is_shared else 0
    is_hierarchical = is_shared and affine.shape[1] > shared_dim
    num_singular_values = count_singular_values(state)
    return {
        "resolution": resolution,
        "G_ch": channels,
        "dim_z": first_dim * num_chunks if is_hierarchical else first_dim,
        "bottom_width": math.isqrt(rows // max(channels * GENERATOR_WIDTHS[resolution][0], 1)),
        "n_classes": (state["shared.weight"] if is_shared else affine).shape[0],
        "G_attn": attention_string(state, generator_stages(resolution)),
        "G_shared": is_shared,
        "shared_dim": shared_dim,
        "hier": is_hierarchical,
        "G_param": "SN" if num_singular_values else "None",
        "num_G_SVs": max(num_singular_values, 1),
        "num_G_SV_itrs": 1,
        "BN_eps": 1e-5,
        **norm_options(state),
    }


def read_discriminator(state: State) -> dict[str, Any] | None:
    """Options of the official ``Discriminator``, as those of the generator; None for another layout."""
    layouts = {len(DISCRIMINATOR_WIDTHS[resolution][0]): resolution for resolution in DISCRIMINATOR_RESOLUTIONS}
    resolution = layouts.get(count_blocks(state))
    num_singular_values = count_singular_values(state)
    if resolution is None or not state.keys() >= DISCRIMINATOR_KEYS or state.keys() & DEEP_KEYS or not num_singular_values:
        return None
    # The official table calls the output of every block 16 x 16 at resolution 32, so attention is after all or none.
    stages = [16] * 4 if resolution == 32 else discriminator_stages(resolution)
    narrow = any(
        state[key].shape[0] != state[key.replace("conv1", "conv2")].shape[0]
        for key in state
        if key.endswith(".conv1.weight") and key.replace("conv1", "conv2") in state
    )
    return {
        "resolution": resolution,
        "D_ch": state["blocks.0.0.conv2.weight"].shape[0] // DISCRIMINATOR_WIDTHS[resolution][0][0],
        "n_classes": state["embed.weight"].shape[0],
        "D_attn": attention_string(state, stages),
        "D_wide": not narrow,
        "output_dim": state["linear.weight"].shape[0],
        "num_D_SVs": num_singular_values,
        "num_D_SV_itrs": 1,
    }


def recognise_networks(state: State) -> dict[str, dict[str, Any]] | None:
    """Read the options of the networks that a checkpoint holds.

    Args:
        state: See ``split_prefixes``.

    Returns:
        Official options by ``generator`` and ``discriminator``, whichever are there; None if one is of another layout.
    """
    readers = {"generator": read_generator, "discriminator": read_discriminator}
    config: dict[str, dict[str, Any]] = {}
    for module, tensors in split_prefixes(state).items():
        options = readers[module](tensors)
        if options is None:
            return None
        config[module] = options
    return config or None
