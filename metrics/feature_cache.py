"""Features on disk, so that the same images are never run twice and an interrupted run goes on where it stopped.

Images are numbered; a tile is a fixed range of numbers, and one file holds one feature of one tile. A file is
written under a temporary name and renamed: it is whole or absent. What decides a feature's values (the images,
the rules that decode them, the network and its weights, the resizer, the precision) decides the folder, so nothing
stale is ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metrics.cache import cache_dir
from metrics.files import whole_file
from metrics.images import DECODER_VERSION

TILE_IMAGES = 256  # A few seconds of work on a CPU: what an interruption costs at most.
_FORMAT = "2"
_KEY_DIGITS = 32
_LIMIT_BYTES = 20 * 2**30  # 50,000 images of one 2048-d feature take 0.4 GB.


@dataclass(frozen=True)
class Tile:
    """What was learnt of a range of images.

    Args:
        indices: Places of the images that could be read.
        features: Feature name -> (n, D) float32, rows as `indices`.
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
    """Return where features are kept: `features` under `$TRIPTYCH_CACHE` or `~/.cache/triptych`."""
    return cache_dir() / "features"


class FeatureCache:
    """Tiles of features by image set and protocol.

    Args:
        root: Folder of the cache; made when first written to.
        limit_bytes: What `prune` leaves on disk, the least recently used going first.
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

    def has(self, folders: Mapping[str, Path], tile: int) -> bool:
        """Return whether every feature of a tile is there, not whether it can be read."""
        return all(_tile_path(folder, tile).is_file() for folder in folders.values())

    def read(self, folders: Mapping[str, Path], tile: int) -> Tile | None:
        """Return a tile, or None unless every feature of it is there.

        Args:
            folders: Feature name -> its folder.
            tile: Number of the tile.
        """
        features: dict[str, Tensor] = {}
        indices, record = torch.empty(0, dtype=torch.int64), {}
        try:
            for name, folder in folders.items():
                with safe_open(_tile_path(folder, tile), framework="pt") as stored:
                    features[name] = stored.get_tensor("features")
                    indices = stored.get_tensor("indices")
                    record = json.loads(stored.metadata()["record"])
                os.utime(folder)  # The time of last use, for `prune`.
            return Tile(indices.tolist(), features, record["labels"], record["digests"], record["sizes"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None  # Absent, or damaged: it is computed again and overwritten.

    def write(self, folders: Mapping[str, Path], number: int, tile: Tile) -> None:
        """Store a tile; a disk that refuses ends caching, not the run."""
        if self.failure is not None:
            return
        record = {"labels": tile.labels, "digests": tile.digests, "sizes": tile.sizes}
        try:
            for name, folder in folders.items():
                tensors = {"features": tile.features[name].contiguous(), "indices": torch.tensor(tile.indices, dtype=torch.int64)}
                with whole_file(_tile_path(folder, number)) as stream:
                    stream.write(save(tensors, metadata={"record": json.dumps(record)}))
        except OSError as error:
            self.failure = f"features could not be cached in {self.root} ({error.strerror}); the score is not affected."

    def prune(self) -> None:
        """Delete the least recently used image sets until the cache fits its limit."""
        if not self.root.is_dir():
            return
        found = []
        for folder in self.root.iterdir():
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


def _tile_path(folder: Path, tile: int) -> Path:
    return folder / f"{tile:08d}.safetensors"
