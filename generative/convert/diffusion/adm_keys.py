"""Names and shapes of openai/guided-diffusion's U-Nets: our names of their tensors, and what the shapes tell of the options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from generative.convert.keys import rename_by

BLOCK = re.compile(r"^(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)$|^middle_block\.(\d+)\.(.+)$")
# Within a block; official -> ours.
BLOCK_PATTERNS = (
    (r"^in_layers\.0\.", "norm1."),
    (r"^in_layers\.2\.", "conv1."),
    (r"^emb_layers\.1\.", "modulation."),
    (r"^out_layers\.0\.", "norm2."),
    (r"^out_layers\.3\.", "conv2."),
    (r"^skip_connection\.", "skip."),
    (r"^(norm|qkv)\.", r"\1."),
    (r"^proj_out\.", "out."),
    (r"^(op|conv)\.", "conv."),
)
OUTER_PATTERNS = (
    (r"^time_embed\.0\.", "timestep_embedder.linear_1."),
    (r"^time_embed\.2\.", "timestep_embedder.linear_2."),
    (r"^label_emb\.", "label_embedding."),
    (r"^input_blocks\.0\.0\.", "conv_in."),
)
UNET_PATTERNS = ((r"^out\.0\.", "norm_out."), (r"^out\.2\.", "conv_out."))
# The head of a classifier by its pool.
POOL_PATTERNS = MappingProxyType(
    {
        "attention": (
            (r"^out\.0\.", "norm_out."),
            (r"^out\.2\.positional_embedding$", "head.position_embedding"),
            (r"^out\.2\.qkv_proj\.", "head.qkv."),
            (r"^out\.2\.c_proj\.", "head.out."),
        ),
        "adaptive": ((r"^out\.0\.", "norm_out."), (r"^out\.3\.", "head.")),
        "spatial": ((r"^out\.(0|2)\.", r"head.\1."),),
        "spatial_v2": ((r"^out\.(0|1|3)\.", r"head.\1."),),
    }
)
# Linear layers of ours that are convolutions of one pixel there.
POINTWISE = re.compile(r"(?:^|\.)(?:qkv|proj_out|qkv_proj|c_proj)\.weight$|^out\.3\.weight$")
POSITIONS = "out.2.positional_embedding"
"""(C, 1 + HW) there, (1 + HW, C) here."""
# Keys that both kinds of networks have.
TRUNK_KEYS = (
    "time_embed.0.weight",
    "time_embed.2.weight",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.in_layers.2.weight",
    "middle_block.1.qkv.weight",
    "middle_block.2.in_layers.2.weight",
    "out.0.weight",
)


def our_key(key: str, head: tuple[tuple[str, str], ...]) -> str | None:
    """Our name of an official key, None if it has none.

    Args:
        key: Official.
        head: Patterns of what lies behind the last block: ``UNET_PATTERNS``, or one of ``POOL_PATTERNS``.
    """
    outer = rename_by((*OUTER_PATTERNS, *head), key)
    match = BLOCK.match(key)
    if outer is not None or match is None:
        return outer
    kind, stage, place, rest, middle_place, middle_rest = match.groups()
    name = rename_by(BLOCK_PATTERNS, rest or middle_rest)
    if name is None:
        return None
    if kind is None:
        return f"middle.{middle_place}.{name}"
    return f"decoder.{stage}.{place}.{name}" if kind == "output_blocks" else f"encoder.{int(stage) - 1}.{place}.{name}"


def our_tensor(key: str, value: Tensor) -> Tensor:
    """An official tensor in our shape."""
    if key == POSITIONS:
        return value.T.contiguous() if value.ndim == 2 else value
    if POINTWISE.search(key) and value.ndim > 2 and set(value.shape[2:]) == {1}:
        return value.flatten(1)
    return value


def official_tensor(key: str, value: Tensor) -> Tensor:
    """A tensor of ours, such as a gradient, in the official shape of attention's; the inverse of ``our_tensor``."""
    if key == POSITIONS:
        return value.T
    return value[..., None] if POINTWISE.search(key) and not key.startswith("out.3.") else value


def numbers(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    """Numbers that a pattern's group finds in keys, ascending, each once."""
    found = (re.match(pattern, key) for key in state)
    return sorted({int(match[1]) for match in found if match})


def stages(state: Mapping[str, Tensor], kind: str) -> list[int]:
    """Numbers of the stages of a kind that have tensors, ascending."""
    return numbers(state, rf"^{kind}\.(\d+)\.")


def read_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options that the shapes of a trunk tell; attention resolutions as factors of downsampling.

    Raises:
        ValueError: If the stages are not those of a trunk.
        KeyError: If one of them lacks a tensor.
    """
    model_channels = state["time_embed.0.weight"].shape[1]
    num_res_blocks = count_res_blocks(state)
    starts = range(1, stages(state, "input_blocks")[-1] + 1, num_res_blocks + 1)
    widths = [width_of(state, start) for start in starts]
    multipliers = [width / model_channels for width in widths]
    modulation = state["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    has_residual = any(re.match(r"^output_blocks\.\d+\.[12]\.in_layers\.", key) for key in state)
    has_conv = any(re.match(r"^(?:input_blocks\.\d+\.0\.op|output_blocks\.\d+\.[12]\.conv)\.", key) for key in state)
    has_gap = stages(state, "input_blocks") != list(range(stages(state, "input_blocks")[-1] + 1))
    return {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "model_channels": model_channels,
        "num_res_blocks": num_res_blocks,
        "attention_resolutions": [2**level for level, start in enumerate(starts) if has_attention(state, start)],
        "channel_mult": [int(number) if number == int(number) else number for number in multipliers],
        "conv_resample": has_conv or not has_gap,
        "use_scale_shift_norm": modulation == 2 * widths[0],
        "resblock_updown": has_residual or not (has_conv or has_gap),
    }


def count_res_blocks(state: Mapping[str, Tensor]) -> int:
    """Residual blocks of each resolution.

    A decoder's stages that end in another resolution tell, or convolutions or gaps between the encoder's; of a classifier that
    changes its resolution in residual blocks only the widths and the places of attention do.

    Raises:
        ValueError: If no number fits.
    """
    length = stages(state, "input_blocks")[-1] + 1
    ends = numbers(state, r"^output_blocks\.(\d+)\.[12]\.(?:in_layers|conv)\.")
    changes = [stage - 1 for stage in numbers(state, r"^input_blocks\.(\d+)\.0\.op\.")]
    gaps = sorted(index - 1 for index in set(range(length)) - set(stages(state, "input_blocks")))
    if ends or changes or gaps:
        guesses = [(ends or changes or gaps)[0]]
    elif stages(state, "output_blocks"):
        guesses = [length - 1]
    else:
        guesses = list(range(1, length))
    for number in guesses:
        if number > 0 and length % (number + 1) == 0 and is_even(state, number, length):
            return number
    raise ValueError("no number of residual blocks fits the stages")


def is_even(state: Mapping[str, Tensor], num_res_blocks: int, length: int) -> bool:
    """Whether stages come in levels of so many residual blocks, alike in width and attention, and a change of resolution."""
    for start in range(1, length, num_res_blocks + 1):
        level = range(start, start + num_res_blocks)
        if len({(width_of(state, stage), has_attention(state, stage)) for stage in level}) > 1:
            return False
        change = start + num_res_blocks
        is_residual = f"input_blocks.{change}.0.in_layers.2.weight" in state
        if is_residual and (has_attention(state, change) or width_of(state, change) != width_of(state, start)):
            return False
    return True


def width_of(state: Mapping[str, Tensor], stage: int) -> int:
    """Channels that a stage of the encoder puts out."""
    return state[f"input_blocks.{stage}.0.in_layers.2.weight"].shape[0]


def has_attention(state: Mapping[str, Tensor], stage: int) -> bool:
    """Whether a stage of the encoder has attention."""
    return f"input_blocks.{stage}.1.qkv.weight" in state
