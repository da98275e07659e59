"""A pipeline as a slim folder: weights in a precision of storage and files of bounded size, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from generative.core.errors import UserError
from pipelines.base import ImagePipeline

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_SHARD_SIZE = "5GB"
"""Files of weights are at most so large unless another size is given: what hubs and file systems take without ado."""
_SIZE = re.compile(r"(\d+)(KB|MB|GB)")


def save_slim(pipeline: ImagePipeline, folder: Path, dtype: str = "float32", max_shard_size: str = MAX_SHARD_SIZE) -> None:
    """Write a pipeline for others to sample from; ``from_pretrained`` reads it like any other, in float32.

    Args:
        pipeline: On the CPU; its float32 weights are put into the precision, in place. Others (counters, float64 tables) stay.
        folder: Where to; see ``generative.core.checkpoint.write_folder``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        max_shard_size: Most bytes of a file of weights, such as ``5GB`` or ``500MB``.

    Raises:
        UserError: If there is no such precision, a size cannot be read, or a weight is beyond what float16 holds.
    """
    check_storage(dtype, max_shard_size)
    for name, network in networks_of(pipeline):
        store_as(network, DTYPES[dtype], name)
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=max_shard_size)


def check_storage(dtype: str, max_shard_size: str) -> None:
    """Refuse a precision or a size of files, see ``save_slim``, before anything is loaded.

    Raises:
        UserError: If there is no such precision, or the size cannot be read.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype '{dtype}' is none that weights are stored in; choose one of {', '.join(DTYPES)}")
    found = _SIZE.fullmatch(max_shard_size)
    if found is None or int(found[1]) == 0:
        raise UserError(f"max_shard_size '{max_shard_size}' is no size of a file; write it like 5GB or 500MB")


def networks_of(pipeline: ImagePipeline, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Networks of a pipeline and of those within it, by the folder that they are saved in."""
    for name, component in pipeline.components.items():
        if isinstance(component, ImagePipeline):
            yield from networks_of(component, f"{prefix}{name}/")
        elif isinstance(component, nn.Module):
            yield f"{prefix}{name}", component


def store_as(network: nn.Module, dtype: torch.dtype, name: str) -> None:
    """Put a network's float32 weights and buffers into a precision, in place.

    Raises:
        UserError: If a finite value becomes infinite.
    """
    for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.dtype != torch.float32 or dtype == torch.float32:
            continue
        stored = tensor.data.to(dtype)
        if bool((torch.isinf(stored) & torch.isfinite(tensor.data)).any()):
            raise UserError(
                f"'{name}' holds a value that float16 has no room for ({key}, up to {float(tensor.data.abs().max()):.3g}); take "
                "--dtype bfloat16"
            )
        tensor.data = stored
