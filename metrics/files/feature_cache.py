"""Features on disk, so that the same images are never run twice and an interrupted run goes on where it stopped.

Images are numbered; a tile is a fixed range of numbers, and one file holds one feature of one tile. A file is
written under a temporary name and renamed: it is whole or absent.

What else decides a feature's values (the network and its weights, the resizer, the precision, this software) decides the
folder, together with the names, sizes and times of the images. Those prove nothing: the file's own name carries a sha256
over the encoded bytes of its images, taken from the very bytes that were decoded, and a tile is read only by the digest of
the bytes that are there now. So a wrong hit takes a collision of sha256. It costs one reading of the images, without
decoding: on two cores 16,600 images/s of 32 px and 9,500 of 256 px (1.3 GB/s), of which 3,800 and 960 are decoded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metrics.files.images import DECODER_VERSION
from metrics.files.weights import cache_dir
from metrics.files.whole import whole_file

TILE_IMAGES = 256  # A few seconds of work on a CPU: what an interruption costs at most.
_FORMAT = "3"
_KEY_DIGITS = 32
_LIMIT_BYTES = 20 * 2**30  # 50,000 images of one 2048-d feature take 0.4 GB.


@dataclass(frozen=True)
class Tile:
    """What was learnt of a range of images.

    Args:
        indices: Places of the images that could be read.
        features: Feature name -> (n, D) float32, rows as ``indices``.
        labels: Class name of each, or None.
        digests: sha256 of each image's size and pixels.
        sizes: Each size that occurs ("256x256", width first) -> place of the first image that has it.
    """

    indices: list[int]
    features: dict[str, Tensor]
    labels: list[str] | None
    digests: list[str]
    sizes: dict[str, int]


def default_cache_root() -> Path:
    """Return where features are kept: ``features`` under ``$TRIPTYCH_CACHE`` or ``~/.cache/triptych``."""
    return cache_dir() / "features"


class FeatureCache:
    """Tiles of features by image set and protocol.

    Args:
        root: Folder of the cache; made when first written to.
        limit_bytes: What ``prune`` leaves on disk, the least recently used going first.
    """

    def __init__(self, root: Path, limit_bytes: int = _LIMIT_BYTES) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        #: Why writing stopped, if it did (a full disk must not cost the score).
        self.failure: str | None = None

    def folder(self, identity: str, protocol: Mapping[str, Any], tile_images: int) -> Path:
        """Return where the tiles of one feature of one image set lie."""
        text = json.dumps([_FORMAT, DECODER_VERSION, identity, protocol, tile_images], sort_keys=True)
        return self.root / hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]

    def tiles(self, folders: Mapping[str, Path]) -> set[int]:
        """Return the numbers of the tiles of which every feature may be there, of whichever images."""
        found = [_numbers(folder) for folder in folders.values()]
        return set.intersection(*found) if found else set()

    def read(self, folders: Mapping[str, Path], tile: int, content: str) -> Tile | None:
        """Return a tile, or None unless every feature of it is there and undamaged.

        Args:
            folders: Feature name -> its folder.
            tile: Number of the tile.
            content: ``tile_content`` of its images as they are now.
        """
        features: dict[str, Tensor] = {}
        indices, record = torch.empty(0, dtype=torch.int64), {}
        try:
            for name, folder in folders.items():
                with safe_open(_tile_path(folder, tile, content), framework="pt") as stored:
                    features[name] = stored.get_tensor("features")
                    indices = stored.get_tensor("indices")
                    text, checksum = stored.metadata()["record"], stored.metadata()["sha256"]
                if checksum != _checksum(features[name], indices, text):
                    return None
                record = json.loads(text)
                with suppress(OSError):  # Another's cache, or one that may only be read.
                    os.utime(folder)  # The time of last use, for ``prune``.
            return Tile(indices.tolist(), features, record["labels"], record["digests"], record["sizes"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None  # Absent, or damaged: it is computed again and overwritten.

    def write(self, folders: Mapping[str, Path], number: int, content: str, tile: Tile) -> None:
        """Store a tile of images of a content; a disk that refuses ends caching, not the run."""
        if self.failure is not None:
            return
        record = json.dumps({"labels": tile.labels, "digests": tile.digests, "sizes": tile.sizes})
        indices = torch.tensor(tile.indices, dtype=torch.int64)
        try:
            for name, folder in folders.items():
                features = tile.features[name].contiguous()
                metadata = {"record": record, "sha256": _checksum(features, indices, record)}
                with whole_file(_tile_path(folder, number, content)) as stream:
                    stream.write(save({"features": features, "indices": indices}, metadata=metadata))
        except OSError as error:
            self.failure = f"features could not be cached in {self.root} ({error.strerror}); the score is not affected."

    def prune(self) -> None:
        """Delete the least recently used image sets until the cache fits its limit, as far as this user may."""
        found = []
        try:
            folders = list(self.root.iterdir())
        except OSError:  # There is none, or it is not for this user to read.
            return
        for folder in folders:
            try:
                size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
                found.append((folder.stat().st_mtime, size, folder))
            except OSError:
                continue  # Another run prunes as well.
        excess = sum(size for _, size, _ in found) - self.limit_bytes
        for _, size, folder in sorted(found):
            if excess <= 0:
                return
            shutil.rmtree(folder, ignore_errors=True)
            excess -= size


def tile_content(images: Iterable[tuple[int, bytes]]) -> str:
    """Return the sha256 (hex) of images given as place and digest (32 bytes), in any order."""
    return hashlib.sha256(b"".join(index.to_bytes(8) + content for index, content in sorted(images))).hexdigest()


def _tile_path(folder: Path, tile: int, content: str) -> Path:
    return folder / f"{tile:08d}-{content}.safetensors"


def _numbers(folder: Path) -> set[int]:
    try:
        names = [file.name.partition("-")[0] for file in folder.glob("*.safetensors")]
    except OSError:
        return set()
    return {int(name) for name in names if name.isascii() and name.isdigit()}


def _checksum(features: Tensor, indices: Tensor, record: str) -> str:
    """Return the sha256 (hex) of all that a file says: a disk that fails must not move a score."""
    digest = hashlib.sha256(f"{features.dtype} {tuple(features.shape)} {record}".encode())
    digest.update(indices.numpy().data)
    digest.update(features.numpy().data)
    return digest.hexdigest()
