"""What a set of images is: finite, ordered, readable from any place in it, with labels where it has them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor


class NoImagesError(ValueError):
    """A folder or file without images."""


@dataclass(frozen=True)
class ImageBatch:
    """Some images of a source.

    Args:
        indices: Place of each image in the source; a gap is an image that was skipped as corrupt.
        images: uint8 (3, H, W) each, of any sizes.
        labels: Class of each image by name ("n01440764", "3"), or None where the source has no labels.
    """

    indices: list[int]
    images: list[Tensor]
    labels: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)


class ImageSource(ABC):
    """A finite, ordered set of images."""

    #: What the source is, for the printed protocol ("image folder").
    kind: str
    #: Where it is.
    path: Path
    #: Whether images carry class labels.
    has_labels: bool = False
    #: Whether reading takes so long that it must not be repeated for nothing (a generator that samples).
    is_costly: ClassVar[bool] = False

    def __init__(self, path: Path, skip_corrupt: bool = False) -> None:
        self.path = path
        self.skip_corrupt = skip_corrupt
        #: Names of the images that could not be read and were skipped, in order of their discovery.
        self.skipped: list[str] = []
        #: What a score of the images should say about them, one sentence each.
        self.notes: list[str] = []

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images, readable or not."""

    @abstractmethod
    def identity(self) -> str:
        """Return a cheap fingerprint that changes when the content does (names, sizes, times of change): a cache's key."""

    @abstractmethod
    def batches(self, batch_size: int, num_workers: int = 1, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        """Yield the images of places `start` to `stop` in order, at most `batch_size` at a time.

        Args:
            batch_size: Images per batch.
            num_workers: Threads that decode ahead; 0 decodes in this one.
            start: First place.
            stop: One past the last place; None reads to the end.

        Raises:
            ValueError: If an image can't be read and `skip_corrupt` is off; the message names it.
        """


def check_range(count: int, batch_size: int, num_workers: int, start: int, stop: int | None) -> int:
    """Check the arguments of `ImageSource.batches` against the number of images.

    Returns:
        `stop`, or `count` where it is None.

    Raises:
        ValueError: If one is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if num_workers < 0:
        raise ValueError(f"num_workers must be at least 0, got {num_workers}.")
    end = count if stop is None else stop
    if not 0 <= start <= end <= count:
        raise ValueError(f"start and stop must satisfy 0 <= start <= stop <= {count}, got {start} and {end}.")
    return end


def normalize_label(name: str) -> str:
    """Return a class's name, a number without leading zeros: "007" and "7" are one class."""
    name = name.strip()
    return str(int(name)) if name.isascii() and name.isdigit() else name


def fingerprint(parts: Iterable[object]) -> str:
    """Return the sha256 (hex) of a sequence of texts and numbers; how they are split counts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part!r}\n".encode())
    return digest.hexdigest()
