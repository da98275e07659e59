"""Folders of prepared images: shard files beside an index, from which any image is read at its offset.

Such a folder holds

- ``index.json``: what the images are, names of classes, and size and sha256 of every shard;
- ``index.npz``: ``labels``, ``offsets`` (in its shard) and ``lengths`` (bytes) of every image, each (N,) int64;
- ``shard-00000.tar``, ...: image files ``000000.jpg`` or ``.webp``, each with its class in ``000000.cls``, as WebDataset reads
  them; or ``shard-00000.npy``, ...: pixels, uint8 (n, 3, H, W).

Images are read by ``pread``: nothing is kept in memory but the index, 24 bytes an image, and processes share what the operating
system caches.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metrics.files.arrays import brief, read_npz
from metrics.files.random_reads import RandomReader

INDEX_FILE = "index.json"
ARRAYS_FILE = "index.npz"
FORMAT = "triptych shards"
FORMAT_VERSION = 1

#: Encoding -> extension of shards, and of the images in them.
ENCODINGS = {"jpeg": (".tar", ".jpg"), "webp-lossless": (".tar", ".webp"), "raw": (".npy", "")}
#: Bytes of a shard's .npy before the first pixel: NumPy pads the header to a multiple of 64, and one of four sizes takes two.
NPY_HEADER_BYTES = 128
_ADVICE = "prepare the images anew, or restore it from a copy"


@dataclass(frozen=True)
class Shard:
    """One shard file.

    Attributes:
        file: Its name.
        images: Images in it.
        bytes: Its size.
        sha256: Of its content, hexadecimal.
    """

    file: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """What a folder of shards holds.

    Attributes:
        encoding: A key of ``ENCODINGS``.
        image_size: Side of the images in pixels; None where they are of many sizes.
        class_names: Names in the order of the labels.
        settings: How the images were made.
        source: What they were made from.
        left_out: Images that could not be read: name and reason.
        shards: The files, in order.
        arrays_sha256: Of ``index.npz``.
        labels: (N,) int64.
        offsets: (N,) int64, where an image begins in its shard.
        lengths: (N,) int64, its bytes.
    """

    encoding: str
    image_size: int | None
    class_names: list[str]
    settings: dict[str, Any]
    source: dict[str, Any]
    left_out: list[dict[str, str]]
    shards: list[Shard]
    arrays_sha256: str
    labels: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ends(self) -> np.ndarray:
        """(S,) int64: one past the last image of each shard."""
        return np.cumsum([shard.images for shard in self.shards], dtype=np.int64)


def read_description(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's ``index.json``; None if it has none of ours."""
    path = folder / INDEX_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def read_index(folder: Path) -> ShardIndex:
    """Read what a folder of shards holds, and look whether its files are there in their sizes.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no prepared images, a file is missing or of another size, or the index is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist.")
    content = read_description(folder)
    if content is None:
        raise ValueError(f"{folder} holds no prepared images (no {INDEX_FILE} of `generative data prepare`).")
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format version {content.get('format_version')}, this version reads {FORMAT_VERSION}: prepare the "
            "images anew."
        )
    arrays_path = folder / ARRAYS_FILE
    if not arrays_path.is_file():
        raise ValueError(f"{arrays_path} is missing: {_ADVICE}.")
    try:
        fields = {name: content[name] for name in ("encoding", "image_size", "settings", "source", "left_out", "arrays_sha256")}
        index = ShardIndex(
            **fields,
            class_names=[str(name) for name in content["class_names"]],
            shards=[Shard(str(s["file"]), int(s["images"]), int(s["bytes"]), str(s["sha256"])) for s in content["shards"]],
            labels=read_npz(arrays_path, "labels"),
            offsets=read_npz(arrays_path, "offsets"),
            lengths=read_npz(arrays_path, "lengths"),
        )
        _check_index(index)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"the index of {folder} is damaged ({brief(error)}): {_ADVICE}.") from error
    for shard in index.shards:
        path = folder / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise ValueError(f"shard {path} is missing: {_ADVICE}.")
        if size != shard.bytes:
            raise ValueError(f"shard {path} has {size:,} bytes and the index says {shard.bytes:,}: {_ADVICE}.")
    return index


def _check_index(index: ShardIndex) -> None:
    """Raise ``ValueError`` unless every number of an index fits the others: an image read beyond its shard is another's."""
    has_size = type(index.image_size) is int and index.image_size > 0
    if index.encoding not in ENCODINGS or not (has_size or (index.image_size is None and index.encoding != "raw")):
        raise ValueError(f"encoding {index.encoding!r}, image size {index.image_size!r}")
    if not isinstance(index.left_out, list):
        raise ValueError("images left out that are no list")
    for name in ("labels", "offsets", "lengths"):
        array: np.ndarray = getattr(index, name)
        if array.dtype != np.int64 or array.shape != index.labels.shape or array.ndim != 1:
            raise ValueError(f"{name} of dtype {array.dtype} and shape {array.shape}")
    if not len(index) or len(index) != index.ends[-1]:
        raise ValueError(f"{len(index)} labels for {int(index.ends[-1]) if index.shards else 0} images in shards")
    if index.labels.min() < 0 or index.labels.max() >= len(index.class_names):
        raise ValueError(f"a class label outside 0..{len(index.class_names) - 1}")
    if any(os.path.basename(shard.file) != shard.file for shard in index.shards):
        raise ValueError("a shard outside the folder")
    sizes = np.repeat([shard.bytes for shard in index.shards], [shard.images for shard in index.shards])
    # No sum of two of the file's numbers: it could be beyond int64, and then negative.
    if (index.offsets < 0).any() or (index.lengths <= 0).any() or (index.lengths > sizes - index.offsets).any():
        raise ValueError("an image reaches beyond its shard")
    if index.encoding == "raw" and (index.lengths != 3 * (index.image_size or 0) ** 2).any():
        raise ValueError(f"pixels of another number than images of side {index.image_size} have")


class ShardReader:
    """Bytes of single images. May be used by several threads, forked and pickled: no position in a file is shared.

    Args:
        folder: Folder of the shards.
        index: What they hold.
    """

    def __init__(self, folder: Path, index: ShardIndex) -> None:
        self.folder = folder
        self.index = index
        self._ends = index.ends
        self._paths = [folder / shard.file for shard in index.shards]
        self._files = RandomReader()

    def shard_of(self, image: int) -> int:
        """Number of the shard that holds an image."""
        return int(np.searchsorted(self._ends, image, side="right"))

    def name(self, image: int) -> str:
        """What to call an image."""
        shard = self.shard_of(image)
        row = image - (int(self._ends[shard - 1]) if shard else 0)
        return f"image {row} of {self._paths[shard]}"

    def read(self, image: int) -> bytes:
        """Return an image's bytes: a file's content, or pixels.

        Raises:
            ValueError: If the shard can't be read.
        """
        buffer = bytearray(int(self.index.lengths[image]))
        self.read_into(image, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, image: int, buffer: memoryview) -> None:
        """Read an image's bytes into writable memory of just their size.

        Raises:
            ValueError: If the shard can't be read.
        """
        self._fill(self.shard_of(image), int(self.index.offsets[image]), buffer.cast("B"))

    def read_at(self, image: int, start: int, length: int) -> bytes:
        """Return bytes of the shard that holds an image.

        Args:
            image: The image.
            start: Place in the file.
            length: How many.

        Raises:
            ValueError: If the shard can't be read, or ends before.
        """
        buffer = bytearray(length)
        self._fill(self.shard_of(image), start, memoryview(buffer))
        return bytes(buffer)

    def _fill(self, shard: int, start: int, view: memoryview) -> None:
        path = self._paths[shard]
        try:
            done = self._files.read_into(path, start, view)
        except OSError as error:
            raise ValueError(f"shard {path} can't be read ({error.strerror}): {_ADVICE}.") from error
        if done < len(view):
            raise ValueError(f"shard {path} is cut short: {_ADVICE}.")


def describe(index: ShardIndex, shards: Sequence[Shard]) -> dict[str, Any]:
    """The content of ``index.json``."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "encoding": index.encoding,
        "image_size": index.image_size,
        "images": len(index),
        "settings": index.settings,
        "source": index.source,
        "class_names": index.class_names,
        "left_out": index.left_out,
        "arrays_sha256": index.arrays_sha256,
        "shards": [vars(shard) for shard in shards],
    }
