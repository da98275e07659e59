"""What a set of images is: finite, ordered, readable from any place in it, with labels where it has them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

_DIGEST_BATCH = 64


class NoImagesError(ValueError):
    """A folder or file without images."""


@dataclass(frozen=True)
class ImageBatch:
    """Some images of a source.

    Args:
        indices: Place of each image in the source; a gap is an image that was skipped as corrupt.
        images: uint8 (3, H, W) each, of any sizes.
        labels: Class of each image as the source stores it ("n01440764", "3"; ``ImageSource.named`` gives its name); None where
            the source has no labels.
        contents: sha256 of the encoded bytes that each image was decoded from, or None where there are none but its pixels.
    """

    indices: list[int]
    images: list[Tensor]
    labels: list[str] | None = None
    contents: list[bytes] | None = None

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
    #: Class of every image in order, where it is known before an image is read.
    labels: list[str] | None = None
    #: Whether labels are numbers, places in an order of classes; digits in the name of a folder are a name.
    has_class_numbers: bool = False
    #: Names of the classes in the order of their numbers, where they are known.
    class_names: list[str] | None = None
    #: Whether reading takes so long that it must not be repeated for nothing (a generator that samples).
    is_costly: ClassVar[bool] = False

    def __init__(self, path: Path, skip_corrupt: bool = False) -> None:
        self.path = path
        self.skip_corrupt = skip_corrupt
        #: Names of the images that could not be read and were skipped, in order of their discovery.
        self.skipped: list[str] = []
        #: Place -> digest of what could not be decoded, of those images.
        self.skipped_contents: dict[int, bytes] = {}
        #: Why there are no labels: what was expected and what was found.
        self.label_hint = ""
        #: What a score of the images should say about them, one sentence each.
        self.notes: list[str] = []

    def lack_of_labels(self) -> str:
        """Return what to say where labels are needed and ``has_labels`` is False, from the path on."""
        hint = f" ({self.label_hint})" if self.label_hint else ""
        return f"{self.path} has none{hint}: put images into one folder per class, or give a parquet, tar or npz with labels."

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images, readable or not."""

    @abstractmethod
    def identity(self) -> str:
        """Return a cheap fingerprint of names, sizes and times of change: where to look in a cache.

        It proves nothing: files of the same names, sizes and times may hold other images. ``contents`` proves. Of a source
        that is costly (``is_costly``) it does decide every image.
        """

    @abstractmethod
    def batches(self, batch_size: int, num_workers: int = 1, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        """Yield the images of places ``start`` to ``stop`` in order, at most ``batch_size`` at a time.

        Args:
            batch_size: Images per batch.
            num_workers: Threads that decode ahead; 0 decodes in this one.
            start: First place.
            stop: One past the last place; None reads to the end.

        Raises:
            ValueError: If an image can't be read and ``skip_corrupt`` is off; the message names it.
        """

    def named(self, labels: Sequence[str]) -> list[str]:
        """Return the names of classes given as the source stores them: themselves where numbers have no names."""
        names = self.class_names
        return list(labels) if names is None else [names[int(label)] if label.isdigit() else label for label in labels]

    def contents(self, start: int, stop: int, num_workers: int = 1) -> Iterator[tuple[int, bytes]]:
        """Yield place and digest (32 bytes) of what decides each image's pixels, in order, reading it but decoding nothing.

        Equal digests mean equal pixels: these are sha256 of the encoded bytes; of the pixels where nothing is encoded, as
        here; and of the identity where images are made rather than read.

        Args:
            start: First place.
            stop: One past the last place.
            num_workers: Threads that read.
        """
        if self.is_costly:
            yield from zip(range(start, stop), self._made_contents(stop - start), strict=True)
            return
        for batch in self.batches(_DIGEST_BATCH, num_workers, start, stop):
            yield from zip(batch.indices, self.contents_of(batch), strict=True)

    def contents_of(self, batch: ImageBatch) -> list[bytes]:
        """Return the digests that ``contents`` gives for the images of a batch that this source yielded."""
        if batch.contents is not None:
            return batch.contents
        return self._made_contents(len(batch)) if self.is_costly else [pixel_digest(image) for image in batch.images]

    def _made_contents(self, count: int) -> list[bytes]:
        return [hashlib.sha256(self.identity().encode()).digest()] * count if count else []


def pixel_digest(image: Tensor) -> bytes:
    """Return the sha256 of an image's size and pixels, uint8 (3, H, W)."""
    digest = hashlib.sha256(str(tuple(image.shape)).encode())
    digest.update(image.contiguous().numpy().data)
    return digest.digest()


def check_range(count: int, batch_size: int, num_workers: int, start: int, stop: int | None) -> int:
    """Check the arguments of ``ImageSource.batches`` against the number of images.

    Returns:
        ``stop``, or ``count`` where it is None.

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


def checked_class_names(names: object, labels: Sequence[str], path: Path) -> list[str]:
    """Return class names that a file states, fit to be compared: numbers as ``normalize_label`` has them, no name twice.

    Args:
        names: What the file holds.
        labels: Its labels, numbers.
        path: The file, for messages.

    Raises:
        ValueError: If they are no list of texts, or a label has no name.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{path} holds class names that are no list of texts: write it again.")
    beyond = [label for label in sorted(set(labels)) if not (label.isdigit() and int(label) < len(names))]
    if beyond:
        raise ValueError(f"{path} holds the class label {beyond[0]} and {len(names)} class names: write it again.")
    result = [normalize_label(name) for name in names]
    # ImageNet has two cranes: they are told apart by their number.
    return [f"{name} ({number})" if result.count(name) > 1 else name for number, name in enumerate(result)]


def fingerprint(parts: Iterable[object]) -> str:
    """Return the sha256 (hex) of a sequence of texts and numbers; how they are split counts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part!r}\n".encode())
    return digest.hexdigest()
