"""Checkpoints of the BigGAN authors' PyTorch code (ajbrock/BigGAN-PyTorch) from its BigGANdeep.py."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import FLAG, WHOLE, Argument, one_of
from generative.convert.gan.biggan_keys import MODULE_NAMES, KeyMap, Names
from generative.convert.gan.biggan_options import (
    discriminator_arguments,
    discriminator_constructor,
    generator_arguments,
    generator_constructor,
)
from generative.convert.gan.biggan_pytorch import SAGANSource
from generative.convert.gan.biggan_recognition import count_singular_values, norm_options, split_prefixes
from generative.core.errors import UserError
from generative.gan.biggan_deep import (
    DISCRIMINATOR_WIDTHS,
    BigGANDeepDiscriminator,
    BigGANDeepGenerator,
    discriminator_stages,
    generator_blocks,
)
from generative.gan.residual import check_resolution, generator_stages

# Resolutions that G_arch and D_arch of BigGANdeep.py have; our networks have others too.
RESOLUTIONS = (32, 64, 128, 256)
# The official generator's first block of a stage puts out the stage's input width, and every other block takes it: that fits for
# two blocks, or where the width never changes, at 32.
OFFICIAL_DEPTH, ANY_DEPTH_RESOLUTION = 2, 32
# What leaves no trace in a checkpoint, from scripts/launch_BigGAN_deep.sh.
LAUNCH_SN_EPS, LAUNCH_BN_EPS = 1e-6, 1e-5

# Submodules of BigGANdeep.py. The generator's list has one entry per block, the discriminator's one per stage; both put attention
# behind the last block of an entry.
DEEP_MODULE_NAMES: Mapping[str, Names] = {
    "generator": MODULE_NAMES["generator"],
    "discriminator": [
        (r"^input_conv$", r"conv_in"),
        (r"^blocks\.(\d+)\.(\d+)\.conv([1-4])$", r"blocks.\1.\2.conv\3"),
        (r"^blocks\.(\d+)\.(\d+)\.conv_sc$", r"blocks.\1.\2.shortcut"),
        (r"^embed$", r"class_embedding"),
    ],
}
our_key = KeyMap(DEEP_MODULE_NAMES).our_key


def stage_numbers(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    """Numbers that a pattern's group finds in a checkpoint's keys, each once, in order."""
    return sorted({int(match[1]) for key in state if (match := re.match(pattern, key))})


def attention_string(stages: Sequence[int], attended: Sequence[int]) -> str:
    """Official way to write at which sizes attention stands."""
    return "_".join(map(str, dict.fromkeys(stages[index] for index in attended))) or "0"


def recognise_generator(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Official options of a generator from its tensors' names and shapes, None if it is not one of BigGANdeep.py."""
    blocks = stage_numbers(state, r"^blocks\.(\d+)\.0\.conv4\.weight$")
    needed = ("shared.weight", "linear.weight", "output_layer.0.gain", "blocks.0.0.bn4.gain.weight")
    if not blocks or any(name not in state for name in [*needed, *(f"blocks.{i}.0.conv1.weight" for i in blocks)]):
        return None
    widths = [(state[f"blocks.{i}.0.conv1.weight"].shape[1], state[f"blocks.{i}.0.conv4.weight"].shape[0]) for i in blocks]
    for resolution in RESOLUTIONS:
        stages = generator_stages(resolution)
        depth = len(blocks) // len(stages)
        official = generator_blocks(resolution, max(depth, 1))
        channels = widths[0][0] // official[0][1]
        if widths == [(width_in * channels, width_out * channels) for _, width_in, width_out in official]:
            break
    else:
        return None
    (num_classes, shared_dim), (rows, condition_dim) = state["shared.weight"].shape, state["linear.weight"].shape
    attended = [index // depth for index in stage_numbers(state, r"^blocks\.(\d+)\.1\.gamma$")]
    singular = count_singular_values(state)
    return {
        "resolution": resolution,
        "G_ch": channels,
        "G_depth": depth,
        "dim_z": condition_dim - shared_dim,
        "shared_dim": shared_dim,
        "n_classes": num_classes,
        "bottom_width": math.isqrt(rows // widths[0][0]),
        "G_attn": attention_string(stages, attended),
        "G_shared": True,
        "hier": True,
        "G_param": "SN" if singular else None,
        "num_G_SVs": max(singular, 1),
        "SN_eps": LAUNCH_SN_EPS,
        "BN_eps": LAUNCH_BN_EPS,
        **norm_options(state),
    }


def recognise_discriminator(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Official options of a discriminator from its tensors' names and shapes, None if it is not one of BigGANdeep.py."""
    numbers = stage_numbers(state, r"^blocks\.(\d+)\.0\.conv4\.weight$")
    if not numbers or any(name not in state for name in ("input_conv.weight", "embed.weight", "linear.weight")):
        return None
    widths = [state["input_conv.weight"].shape[0], *(state[f"blocks.{i}.0.conv4.weight"].shape[0] for i in numbers)]
    for resolution in RESOLUTIONS:
        multipliers = DISCRIMINATOR_WIDTHS[resolution][0]
        channels = widths[0] // multipliers[0]
        if widths == [channels * multiplier for multiplier in multipliers]:
            break
    else:
        return None
    stages = discriminator_stages(resolution)
    if resolution == ANY_DEPTH_RESOLUTION:  # the official table calls every output 16 x 16
        stages = [stages[0]] * len(stages)
    return {
        "resolution": resolution,
        "D_ch": channels,
        "D_depth": len(stage_numbers(state, r"^blocks\.0\.(\d+)\.conv1\.weight$")),
        "n_classes": state["embed.weight"].shape[0],
        "output_dim": state["linear.weight"].shape[0],
        "D_attn": attention_string(stages, stage_numbers(state, r"^blocks\.(\d+)\.\d+\.gamma$")),
        "num_D_SVs": count_singular_values(state),
        "SN_eps": LAUNCH_SN_EPS,
    }


class BigGANDeepSource(SAGANSource):
    """BigGAN-deep as ``BigGANdeep.py`` of BigGAN-PyTorch builds it, generator and discriminator."""

    name = "biggan-deep"
    keys = KeyMap(DEEP_MODULE_NAMES)
    generator = generator_constructor(
        {
            # Its first linear layer takes embedding and noise, which reach it with these two options alone.
            "hier": Argument(None, False, one_of((True,))),
            "G_shared": Argument(None, True, one_of((True,))),
            "G_depth": Argument("depth", OFFICIAL_DEPTH, WHOLE),
        }
    )
    discriminator = discriminator_constructor(
        {
            "D_depth": Argument("depth", OFFICIAL_DEPTH, WHOLE),
            "D_wide": Argument(None, True, FLAG),  # taken by the official blocks, and not looked at
        }
    )

    def build_generator(self, config: Mapping[str, Any]) -> ModelMixin:
        """Build our generator from the official ``Generator``'s arguments.

        Raises:
            UserError: If an option is unknown, or is one with which the official generator cannot run.
        """
        values = self.generator.values(config)
        depth, resolution = values["G_depth"], values["resolution"]
        check_resolution(resolution, dict.fromkeys(RESOLUTIONS))
        if depth != OFFICIAL_DEPTH and resolution != ANY_DEPTH_RESOLUTION:
            raise UserError(
                f"generator option G_depth={depth} of BigGAN-PyTorch runs at resolution {ANY_DEPTH_RESOLUTION} only, "
                f"got {resolution}; use {OFFICIAL_DEPTH}"
            )
        return BigGANDeepGenerator(**generator_arguments(self.generator, config))

    def build_discriminator(self, config: Mapping[str, Any]) -> ModelMixin:
        """Build our discriminator from the official ``Discriminator``'s arguments.

        Raises:
            UserError: If an option is unknown or unsupported.
        """
        return BigGANDeepDiscriminator(**discriminator_arguments(self.discriminator, config))

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        Args:
            state: Tensors of one network by official key, or of one or two by ``<module>/<key>``.

        Returns:
            What ``build`` takes; None if the layout is not BigGAN-deep's. What leaves no trace in a checkpoint (the epsilons,
            ``in`` rather than ``bn``) is as the launch script has it.
        """
        recognisers = {"generator": recognise_generator, "discriminator": recognise_discriminator}
        states = split_prefixes(state)
        if not states:
            return None
        found = {module: recognisers[module](tensors) for module, tensors in states.items()}
        return None if None in found.values() else found
