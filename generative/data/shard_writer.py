"""Writes shards of prepared images: by several processes, resumable after a kill, and whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch.utils.data import DataLoader, Dataset

from generative.core.checkpoint import flush_to_disk
from generative.core.errors import RunError, UserError
from generative.core.full_disk import explain_full
from generative.core.logging import whole_file, write_json
from generative.data.base import ImageDataset
from generative.data.shard_containers import start_shard
from generative.data.shard_folder import ShardFolder, ShardNotes
from generative.data.shard_images import ShardSettings, make_image
from metrics.files.shards import ARRAYS_FILE, INDEX_FILE, Shard, ShardIndex, describe
from metrics.files.weights import sha256_of

BATCH_IMAGES = 32
"""Images that a worker process makes at a time."""


def write_shards(folder: ShardFolder, missing: Sequence[int], workers: int) -> Iterator[int]:
    """Make and write shards.

    Args:
        folder: The folder, started.
        missing: Which, as ``ShardFolder.start`` gave them.
        workers: Processes that decode, crop and encode; 0 does it in this one.

    Yields:
        The number of images after each batch.

    Raises:
        RunError: If a worker process is killed, or the disk is full.
    """
    batches = [
        inside[start : start + BATCH_IMAGES]
        for inside in map(folder.images_of, missing)
        for start in range(0, len(inside), BATCH_IMAGES)
    ]
    loader = DataLoader(
        _ImageMaker(folder.images, folder.settings),
        batch_sampler=batches,  # type: ignore[arg-type] # ranges, which are as good as lists and take no memory
        num_workers=workers,
        collate_fn=_no_collation,
    )
    made = iter(loader)
    for number, shard in enumerate(missing):
        kept = folder.num_shards - len(missing) + number
        with _explained(folder, kept):
            yield from _write_shard(folder, shard, made)


@contextmanager
def _explained(folder: ShardFolder, count: int) -> Iterator[None]:
    """Say in a sentence that the disk is full, or that a worker is gone, and what is kept."""
    kept = f"{count} of {folder.num_shards} shards are whole and kept"
    try:
        yield
    except OSError as error:
        full = explain_full(error, folder.output, kept, "repeat the command")
        if full is None:
            raise
        raise full from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"a worker process was killed, by the system if memory ran out; {kept}: repeat the command, with fewer --workers "
            "if need be"
        ) from error


def _write_shard(folder: ShardFolder, shard: int, made: Iterator[list[bytes | str]]) -> Iterator[int]:
    """Write one shard and, once it is whole, its notes; yields the number of images after each batch."""
    notes = ShardNotes()
    path = folder.shard_path(shard)
    inside = folder.images_of(shard)
    with whole_file(path) as partial:
        with partial.open("wb") as file:
            container = start_shard(file, folder.settings)
            place = inside.start
            while place < inside.stop:
                batch = next(made)
                for offset, item in enumerate(batch):
                    if isinstance(item, str):
                        notes.left_out.append({"name": folder.images.source_name(place + offset), "reason": item})
                        continue
                    label = folder.images.label(place + offset)
                    notes.offsets.append(container.add(place + offset, item, label))
                    notes.labels.append(label)
                    notes.lengths.append(len(item))
                place += len(batch)
                yield len(batch)
            container.close()
        flush_to_disk(partial)
        if notes.labels:
            notes.shard = Shard(path.name, len(notes.labels), partial.stat().st_size, sha256_of(partial))
    if notes.shard is None:
        path.unlink()
    folder.write_notes(shard, notes)


def finish_shards(folder: ShardFolder) -> ShardIndex:
    """Add the index to the shards, and give the folder its name; an older one there is replaced.

    Raises:
        UserError: If no image could be read.
        RunError: If the disk is full.
    """
    all_notes = folder.all_notes()
    shards = [notes.shard for notes in all_notes if notes.shard is not None]
    if not shards:
        raise UserError(f"none of the {len(folder.images)} images can be read; check the source")
    arrays = {
        name: np.asarray([value for notes in all_notes for value in getattr(notes, name)], dtype=np.int64)
        for name in ("labels", "offsets", "lengths")
    }
    with _explained(folder, folder.num_shards):
        with whole_file(folder.partial / ARRAYS_FILE) as partial:
            with partial.open("wb") as file:
                np.savez(file, labels=arrays["labels"], offsets=arrays["offsets"], lengths=arrays["lengths"])
            flush_to_disk(partial)
        index = ShardIndex(
            encoding=folder.settings.encode,
            image_size=folder.settings.image_size,
            class_names=list(folder.images.class_names),
            settings=folder.plan["settings"],
            source=folder.plan["source"],
            left_out=[entry for notes in all_notes for entry in notes.left_out],
            shards=shards,
            arrays_sha256=sha256_of(folder.partial / ARRAYS_FILE),
            **arrays,
        )
        write_json(folder.partial / INDEX_FILE, describe(index, shards))
        flush_to_disk(folder.partial / INDEX_FILE)
    folder.publish()
    return index


class _ImageMaker(Dataset[list[bytes | str]]):
    """What shards store of each image, or why it could not be read; made in worker processes."""

    def __init__(self, images: ImageDataset, settings: ShardSettings) -> None:
        self.images, self.settings = images, settings

    def __getitems__(self, indices: range) -> list[bytes | str]:
        return [self._make(index) for index in indices]

    def _make(self, index: int) -> bytes | str:
        try:
            return make_image(self.images, index, self.settings)
        except UserError as error:
            return str(error)


def _no_collation(batch: list[bytes | str]) -> list[bytes | str]:
    return batch
