"""A folder of shards that ``generative data prepare`` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from metrics.files.images import ImageError
from metrics.files.shards import ShardIndex, ShardReader, read_index
from metrics.sources.base import ImageBatch, ImageSource, check_range, checked_class_names, fingerprint
from metrics.sources.encoded import EncodedImage, LoaderSource
from metrics.sources.labels import FoundLabels


def open_prepared(folder: Path, skip_corrupt: bool = False) -> ImageSource:
    """Open a folder of shards, in which classes are numbers with names.

    Raises:
        ValueError: If its index is damaged, or a shard is missing or of another size.
    """
    index = read_index(folder)
    source = (PreparedArrays if index.encoding == "raw" else PreparedFiles)(folder, index, skip_corrupt)
    if count := len(index.left_out):
        images = "1 image" if count == 1 else f"{count} images"
        source.notes.append(f"of {folder}, {images} that could not be read when the shards were made were left out.")
    return source


def _identity(index: ShardIndex) -> str:
    return fingerprint(["shards", index.arrays_sha256, *(shard.sha256 for shard in index.shards)])


class PreparedFiles(LoaderSource):
    """Shards of image files; each is read at its offset."""

    kind = "prepared shards"

    def __init__(self, path: Path, index: ShardIndex, skip_corrupt: bool = False) -> None:
        super().__init__(path, skip_corrupt)
        self._index, self._reader = index, ShardReader(path, index)
        labels = [str(label) for label in index.labels]
        self.set_labels(FoundLabels(stated=labels, are_numbers=True, class_names=index.class_names))

    def __len__(self) -> int:
        return len(self._index)

    def identity(self) -> str:
        """Return a fingerprint of the shards' check sums; the folder may move."""
        return _identity(self._index)

    def full_name(self, name: str) -> str:
        """Return the name itself: it states the shard."""
        return name

    def items(self, start: int, stop: int) -> Iterator[EncodedImage]:
        """Yield one reader per image."""
        for place in range(start, stop):
            name = self._reader.name(place)
            yield EncodedImage(place, name, name, partial(self._read, place, name))

    def _read(self, place: int, name: str) -> bytes:
        try:
            return self._reader.read(place)
        except ValueError as error:
            raise ImageError(name, "can't be read", "restore its shard", str(error)) from error


class PreparedArrays(ImageSource):
    """Shards of pixels, uint8 (n, 3, H, W)."""

    kind = "prepared shards of pixels"
    has_labels = True
    has_class_numbers = True

    def __init__(self, path: Path, index: ShardIndex, skip_corrupt: bool = False) -> None:
        super().__init__(path, skip_corrupt)
        self._index, self._reader = index, ShardReader(path, index)
        self.labels = [str(label) for label in index.labels]
        self.class_names = checked_class_names(index.class_names, self.labels, path)

    def __len__(self) -> int:
        return len(self._index)

    def identity(self) -> str:
        """Return a fingerprint of the shards' check sums; the folder may move."""
        return _identity(self._index)

    def batches(self, batch_size: int, num_workers: int = 1, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        """Yield the images of places ``start`` to ``stop``; nothing is decoded, ``num_workers`` has no use here."""
        end = check_range(len(self), batch_size, num_workers, start, stop)
        side = self._index.image_size
        assert side is not None, "pixels are of one size"
        for first in range(start, end, batch_size):
            places = list(range(first, min(first + batch_size, end)))
            images = torch.empty(len(places), 3, side, side, dtype=torch.uint8)
            for row, place in enumerate(places):
                self._reader.read_into(place, images[row].numpy().data)
            labels = [str(self._index.labels[place]) for place in places]
            yield ImageBatch(places, list(images), labels)
