"""Writes a token cache: shard by shard, resumable after a kill, shared by several processes, and whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from safetensors.numpy import save
from torch import Tensor

from generative.core.checkpoint import flush_to_disk
from generative.core.errors import UserError
from generative.core.full_disk import explain_full
from generative.core.images import images_to_float
from generative.core.lock import hold_folder, release_folder
from generative.core.logging import whole_file, write_json
from generative.data.base import ImageDataset
from generative.data.cache_check import sum_files
from generative.data.cache_files import (
    CACHE_FILE,
    FILES,
    LABELS_FILE,
    NUMPY_TYPES,
    PREVIEWS_FILE,
    CacheSpec,
    ShardReader,
    read_spec,
    shard_name,
)
from generative.data.cache_statistics import cache_statistics, preview_indices
from generative.data.token_cache import check_ids
from generative.tokenizers.base import ImageTokenizer
from generative.tokenizers.latents import latent_moments, latent_scaling, scale_latents

PLAN_FILE = "plan.json"
"""Specification of an unfinished cache, under the name ``.NAME.partial``."""

SHARD_IMAGES = 1024
"""Images to a shard: what a kill costs at most, and the unit that processes share."""


def partial_folder(output: Path) -> Path:
    """Where a cache lies until it is complete."""
    return output.with_name(f".{output.name}.partial")


def check_output(output: Path, spec: CacheSpec, overwrite: bool) -> bool:
    """Look at what lies where a cache is to be written; nothing is changed.

    Args:
        output: The cache's folder.
        spec: What it will hold.
        overwrite: Replace another cache.

    Returns:
        Whether that very cache is there, complete.

    Raises:
        UserError: If the place is taken: by a file, a folder that is no cache, or another cache without ``overwrite``.
    """
    if output.exists():
        if not (output / CACHE_FILE).is_file():
            if output.is_dir() and not any(output.iterdir()):
                return False
            raise UserError(f"output '{output}' exists and is no cache of ours; choose another folder")
        found, _ = read_spec(output / CACHE_FILE)
        if found == spec and not overwrite:
            return True
        if not overwrite:
            raise UserError(f"'{output}' already holds a cache {_difference(found, spec)}; choose another folder, or --overwrite")
        return False
    plan = partial_folder(output) / PLAN_FILE
    if plan.is_file() and not overwrite:
        found, _ = read_spec(plan)
        if found != spec:
            raise UserError(
                f"'{plan.parent}' holds an unfinished cache {_difference(found, spec)}; choose another folder, or --overwrite"
            )
    return False


def _difference(found: CacheSpec, wanted: CacheSpec) -> str:
    """In what two caches differ first, of what matters most."""
    if found.encoder_fingerprint != wanted.encoder_fingerprint:
        return (
            f"of another tokenizer or autoencoder ({found.encoder_class} {found.encoder_fingerprint[:12]}, this one is "
            f"{wanted.encoder_class} {wanted.encoder_fingerprint[:12]})"
        )
    if found.data_fingerprint != wanted.data_fingerprint:
        return f"of other images ({found.data_class} {found.data_fingerprint[:12]})"
    old, new = found.to_json(), wanted.to_json()
    name = next(name for name in new if old[name] != new[name])
    return f"with {name} {old[name]}, this one would have {new[name]}"


def start_cache(output: Path, spec: CacheSpec) -> None:
    """Make the folder of an unfinished cache, or keep the one that is there if it is of the same specification."""
    folder = partial_folder(output)
    if folder.exists():
        hold_folder(folder)
    if folder.exists() and not _is_unfinished(folder, spec):
        shutil.rmtree(folder)  # check_output has let it go: --overwrite, or a start that was killed before its plan was written
    folder.mkdir(parents=True, exist_ok=True)
    hold_folder(folder)
    for leftover in folder.glob(".*.partial"):
        leftover.unlink()
    write_json(folder / PLAN_FILE, spec.to_json())


def _is_unfinished(folder: Path, spec: CacheSpec) -> bool:
    """Whether a folder is an unfinished cache of this specification."""
    try:
        return read_spec(folder / PLAN_FILE)[0] == spec
    except UserError:
        return False


class CacheEncoder:
    """Turns images into what a cache stores.

    Args:
        encoder: A tokenizer or an autoencoder, in eval mode, on its device.
        dtype: Stored type, a key of ``NUMPY_TYPES``.
        batch_size: Images (views) to a forward pass.
        autocast: Makes the context of the forward pass (mixed precision).
    """

    def __init__(self, encoder: ModelMixin, dtype: str, batch_size: int, autocast: Callable[[], Any]) -> None:
        self.encoder = encoder
        self.dtype: np.dtype[Any] = NUMPY_TYPES[dtype]
        self.batch_size = batch_size
        self.autocast = autocast

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, np.ndarray]:
        """Encode views.

        Args:
            images: (N, views, 3, H, W) uint8.

        Returns:
            ``tokens`` (N, views, L), or ``mean`` and perhaps ``std`` (N, views, C, h, w), in the stored type.

        Raises:
            UserError: If an id is out of range, or a latent is not finite.
        """
        parts: list[dict[str, np.ndarray]] = []
        for batch in images.flatten(0, 1).split(self.batch_size):
            with self.autocast():
                outputs = self._encode(images_to_float(batch.to(self.encoder.device)))
            parts.append({name: value.cpu().numpy() for name, value in outputs.items()})
        results: dict[str, np.ndarray] = {}
        for name in parts[0]:
            values = np.concatenate([part[name] for part in parts])
            if isinstance(self.encoder, ImageTokenizer):
                check_ids(values, self.encoder.num_codes, f"what {type(self.encoder).__name__} makes of the images")
            values = values.astype(self.dtype)
            if not np.isfinite(values).all():
                raise UserError(
                    f"{type(self.encoder).__name__} makes latents that are NaN, infinite or too large for {self.dtype}; encode "
                    "in float32 (--mixed-precision no --dtype float32), or check its weights"
                )
            results[name] = values.reshape(*images.shape[:2], *values.shape[1:])
        return results

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        if isinstance(self.encoder, ImageTokenizer):
            return {"tokens": self.encoder.encode(images)}  # (B, L)
        mean, std = scaled_moments(self.encoder, images)
        return {"mean": mean} if std is None else {"mean": mean, "std": std}


def scaled_moments(autoencoder: ModelMixin, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation of the latents that ``generative.tokenizers.latents.encode_images`` draws.

    Args:
        autoencoder: An ``AutoencoderKL`` or an ``AutoencoderDC``.
        images: (B, 3, H, W) float32 in [-1, 1].

    Returns:
        Both (B, C, h, w) float32; None for the deviation of a deterministic autoencoder.
    """
    mean, std = latent_moments(autoencoder, images)
    _, factor = latent_scaling(autoencoder, images.device)
    return scale_latents(autoencoder, mean), None if std is None else std * factor


def missing_shards(output: Path, spec: CacheSpec) -> list[int]:
    """Shards of an unfinished cache that are still to be written; a file is there under its name only once it is whole."""
    return [shard for shard in range(spec.num_shards) if not (partial_folder(output) / shard_name(shard)).is_file()]


def write_shards(
    output: Path, spec: CacheSpec, shards: Sequence[int], sources: Sequence[ImageDataset], encoder: CacheEncoder
) -> Iterator[int]:
    """Encode and write some shards of an unfinished cache.

    Args:
        output: The cache's folder.
        spec: What it will hold.
        shards: Which of its shards.
        sources: The images at the sizes that the views are made from, see ``Views.make``.
        encoder: Makes what is stored.

    Yields:
        The number of images after each batch.

    Raises:
        RunError: If the disk is full.
    """
    views = spec.make_views()
    images_per_batch = max(1, encoder.batch_size // views.count)

    def load(images: range) -> Tensor:
        return views.make([_load_images(source, images, pool) for source in sources], spec.image_size)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool, ThreadPoolExecutor(1) as ahead:
        for shard in shards:
            inside = spec.images_of(shard)
            batches = [inside[start : start + images_per_batch] for start in range(0, len(inside), images_per_batch)]
            parts: list[dict[str, np.ndarray]] = []
            upcoming = ahead.submit(load, batches[0])
            for number, batch in enumerate(batches):
                images = upcoming.result()
                if number + 1 < len(batches):
                    upcoming = ahead.submit(load, batches[number + 1])  # read while the encoder works
                parts.append(encoder(images))
                yield len(batch)
            tensors = {name: np.concatenate([part[name] for part in parts]) for name in spec.tensors}
            with _explained(output, spec):
                write_tensors(partial_folder(output) / shard_name(shard), tensors)


@contextmanager
def _explained(output: Path, spec: CacheSpec) -> Iterator[None]:
    """Say in a sentence that the disk is full, and what is kept."""
    try:
        yield
    except OSError as error:
        kept = spec.num_shards - len(missing_shards(output, spec))
        told = f"{kept} of {spec.num_shards} shards are whole and kept"
        if (full := explain_full(error, output, told, "repeat the command")) is None:
            raise
        raise full from error


def _load_images(source: ImageDataset, images: range, pool: ThreadPoolExecutor) -> Tensor:
    """Exact images (B, 3, H, W) uint8, decoded on several threads."""
    return torch.stack(list(pool.map(source.image, images)))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file whole or not at all, and flush it to disk."""
    with whole_file(path) as partial:
        partial.write_bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))
        flush_to_disk(partial)


def finish_cache(output: Path, spec: CacheSpec, images: ImageDataset) -> dict[str, float]:
    """Add labels, previews and statistics to the shards, and give the cache its name.

    Args:
        output: The cache's folder; an older cache there is replaced.
        spec: What it holds; all shards are there.
        images: The images that were encoded.

    Returns:
        The statistics, see ``cache_statistics``.
    """
    folder = partial_folder(output)
    statistics = cache_statistics(ShardReader(folder, spec))
    with _explained(output, spec):
        write_tensors(folder / LABELS_FILE, {"labels": images.labels.numpy()})
        kept = preview_indices(images)
        write_tensors(folder / PREVIEWS_FILE, {"indices": kept.numpy(), "images": images.images(kept).numpy()})
        write_json(folder / CACHE_FILE, {**spec.to_json(), "statistics": statistics, FILES: sum_files(folder)})
        flush_to_disk(folder)
    if output.exists():
        shutil.rmtree(_previous_folder(output), ignore_errors=True)
        output.rename(_previous_folder(output))
    folder.rename(output)
    release_folder(folder)
    clean_up(output)
    return statistics


def _previous_folder(output: Path) -> Path:
    """What a cache that is replaced is called until the new one has its name."""
    return output.with_name(f".{output.name}.previous.partial")


def clean_up(output: Path) -> None:
    """Remove what only an unfinished cache needs, and the one that a whole cache replaced; a kill may have left them."""
    shutil.rmtree(_previous_folder(output), ignore_errors=True)
    (output / PLAN_FILE).unlink(missing_ok=True)
