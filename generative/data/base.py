"""The base class of every image dataset: labels, exact images by index, an optional cache in memory, and checks."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from generative.core.errors import UserError
from generative.core.types import Batch
from generative.data.decode import decode_image
from generative.data.finish import image_batch

VERIFY_BELOW_IMAGES = 20_000
"""Sets smaller than this are checked image by image at start unless ``verify`` says otherwise (a minute or so at most)."""

MAX_FULL_HASH_BYTES = 2 * 1024**3
"""Source files up to this total size enter a fingerprint with all their bytes, larger ones by size and both ends."""

MAX_CLASSES = 2**20
"""A larger label is a mistake, and names for as many classes would fill the memory."""

HASH_END_BYTES = 1024**2
"""Bytes hashed at each end of a file that is too large to hash whole."""

CHUNK_IMAGES = 256
"""Images handed to a thread at a time while caching and checking."""


@dataclass(frozen=True, slots=True)
class BadImage:
    """An image that cannot be used.

    Attributes:
        index: Its index in the dataset.
        name: Its file, or file and row.
        reason: One sentence.
    """

    index: int
    name: str
    reason: str


class ImageDataset(Dataset[tuple[Tensor, int]], ABC):
    """Class-labelled images of one size, by index.

    Subclasses implement ``load_image`` and ``source_name`` and end their constructor with ``self.prepare(...)``.

    Args:
        labels: (N,) int64, each in [0, num_classes).
        num_classes: Number of classes.
        image_size: Side of the square images in pixels.
        fingerprint: Hash of the source (``hash_parts``, ``hash_files``).
        class_names: Names in class order; missing ones at the end become their number.

    Attributes:
        labels: (N,) int64.
        num_classes: Number of classes.
        image_size: Side of the square images in pixels.
        fingerprint: Stable hash of the source, for provenance; equal sources give equal fingerprints on any machine.
        class_names: ``num_classes`` names.
        class_ids: What the classes are called where they come from, if they were given other names (WordNet ids); None if not.
        left_out: Number of files that are left out, by extension (of image formats that are not read) or reason.
        num_turned: Number of images that EXIF says are not upright, and which are turned; None where that was not checked.
        notices: What the user should know of the data before training, one sentence each.
        image_path: The file or folder that ``fid-score`` reads the same images from; None where there is none.
        encoder_fingerprint: Of the tokenizer or autoencoder whose ids or latents ``examples`` gives; None for images.
        representation_fingerprint: Of the encoder whose representations ``examples`` gives beside them; None without.
        usual_classes: Classes of all data of this kind, known before any is read; None where only the data tell.
        brings: What encoders made of the images that ``examples`` gives, by its names in ``Batch``.

    Raises:
        UserError: If there are no images, a number is not positive, or a label is out of range (named).
    """

    encoder_fingerprint: str | None = None
    representation_fingerprint: str | None = None
    image_path: Path | None = None
    usual_classes: int | None = None
    brings: tuple[str, ...] = ()

    def __init__(
        self,
        labels: Tensor,
        num_classes: int,
        image_size: int,
        fingerprint: str,
        class_names: Sequence[str] = (),
    ) -> None:
        if image_size < 1:
            raise UserError(f"image_size must be at least 1 pixel, got {image_size}")
        if num_classes < 1:
            raise UserError(f"num_classes must be at least 1, got {num_classes}")
        if num_classes > MAX_CLASSES:
            raise UserError(f"num_classes must be at most {MAX_CLASSES:,}, got {num_classes:,}; check the largest class label")
        self.labels = labels.to(torch.int64)
        self.num_classes = num_classes
        self.image_size = image_size
        self.fingerprint = fingerprint
        self.class_names = list(class_names) + [str(label) for label in range(len(class_names), num_classes)]
        self.class_ids: list[str] | None = None
        self.left_out: dict[str, int] = {}
        self.num_turned: int | None = None
        self.notices: list[str] = []
        self._cached: Tensor | None = None
        if len(self) == 0:
            raise UserError("the dataset has no images; check its path")
        outside = ((self.labels < 0) | (self.labels >= num_classes)).nonzero().flatten()
        if len(outside):
            index = int(outside[0])
            raise UserError(
                f"{self.source_name(index)} has class label {int(self.labels[index])}, but num_classes is {num_classes} "
                f"(labels 0 to {num_classes - 1}); correct the label or num_classes"
            )

    @property
    def has_class_names(self) -> bool:
        """Whether the classes are called anything but their numbers."""
        return self.class_names != [str(label) for label in range(self.num_classes)]

    def renumber_classes(self, new_labels: Sequence[int], class_names: Sequence[str]) -> None:
        """Give the classes other labels.

        Args:
            new_labels: The new label of each class that has images.
            class_names: Names in the order of the new labels.
        """
        if list(new_labels) != list(range(self.num_classes)):
            self.class_ids = None
        self.labels = torch.tensor(list(new_labels), dtype=torch.int64)[self.labels]
        self.class_names = list(class_names)
        self.num_classes = len(self.class_names)

    @abstractmethod
    def load_image(self, index: int) -> Tensor:
        """Read and decode one image, (3, H, W) uint8 at ``image_size``; called with an index in [0, N)."""

    @abstractmethod
    def source_name(self, index: int) -> str:
        """Say where an image comes from (file, or file and row), for error messages."""

    def read_encoded(self, index: int) -> bytes | None:
        """The content of an image's file, of any size and format; None, by default, where there are no files but pixels.

        Raises:
            UserError: If it cannot be read.
        """
        return None

    def load_picture(self, index: int) -> Image.Image:
        """The whole picture before any crop, RGB of any size and upright; of data sets without files the square image.

        Raises:
            UserError: If the image is truncated or corrupt.
        """
        content = self.read_encoded(index)
        if content is None:
            return Image.fromarray(self.image(index).permute(1, 2, 0).contiguous().numpy())
        return decode_image(content, self.source_name(index))

    def verify_image(self, index: int) -> bool:
        """Raise ``UserError`` if an image cannot be read; subclasses may do it more cheaply than by loading it.

        Returns:
            Whether the image is turned upright, its EXIF orientation being another.
        """
        self.load_image(index)
        return False

    def prepare(self, cache: bool, verify: bool | None) -> None:
        """Fill the cache and check the images, as asked; the last line of every constructor.

        Args:
            cache: Decode all images now and keep them in memory as uint8.
            verify: Check that every image can be read; None means for sets below ``VERIFY_BELOW_IMAGES`` images.

        Raises:
            UserError: Naming the first image that cannot be read, and how many cannot.
        """
        if verify is None:
            verify = len(self) < VERIFY_BELOW_IMAGES
        if verify:
            bad = check_images(self)
            if bad:
                more = f" (and {len(bad) - 1} more of {len(self)} images cannot be used)" if len(bad) > 1 else ""
                raise UserError(bad[0].reason + more)
        if cache:  # also names the first image that cannot be decoded, whatever was verified
            self._cached = self._decode_all()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, (3, H, W) uint8, and its class label."""
        return self.image(index), self.label(index)

    def image(self, index: int) -> Tensor:
        """One exact image before any augmentation.

        Args:
            index: In [0, N).

        Returns:
            (3, H, W) uint8 with H = W = ``image_size``.

        Raises:
            IndexError: If the index is out of range.
            UserError: If the image is truncated or corrupt.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        return self._cached[index].clone() if self._cached is not None else self.load_image(index)

    def label(self, index: int) -> int:
        """The class label of one image, in [0, num_classes)."""
        return int(self.labels[index])

    def images(self, indices: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Several exact images at once.

        Args:
            indices: B integers in [0, N).

        Returns:
            (B, 3, H, W) uint8, a copy.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        if self._cached is not None:
            return self._cached[index]  # (B, 3, H, W)
        images = torch.empty(len(index), 3, self.image_size, self.image_size, dtype=torch.uint8)  # (B, 3, H, W)
        for row, place in enumerate(index.tolist()):
            images[row] = self.image(place)  # one at a time, while it lies in the processor's cache
        return images

    def examples(self, indices: Tensor, draws: np.ndarray, flip: bool) -> Batch:
        """Training examples: by default images, to be mirrored where asked.

        Args:
            indices: (B,) int64 in [0, N).
            draws: (B,) uint64 random words, one per position of the endless order, for whatever an example draws; the top bit
                says whether it is mirrored.
            flip: Mirror the examples whose top bit is set.

        Returns:
            ``images`` (B, 3, H, W) uint8 with, if ``flip``, ``mirrored`` (B,) bool, which ``finish_batch`` makes float32 in
            [-1, 1] on the training device, or float32 in [-1, 1]; or ``tokens`` or ``latents`` of a cache; and ``class_labels``
            (B,) int64.
        """
        return image_batch(self.images(indices), self.labels[indices], draws, flip)

    @classmethod
    def blank_batch(cls, size: int, image_size: int, arguments: Mapping[str, Any]) -> Batch:
        """A batch without content, shaped as ``examples`` gives them, for whoever asks what training costs.

        Args:
            size: Number of examples B.
            image_size: Height and width in pixels.
            arguments: The data set's constructor arguments.

        Returns:
            ``images`` (B, 3, H, W) of zeros, and ``class_labels`` (B,) of zeros.
        """
        return {"images": torch.zeros(size, 3, image_size, image_size), "class_labels": torch.zeros(size, dtype=torch.int64)}

    def indices_with_images(self) -> Tensor:
        """(M,) int64, ascending: the examples whose images ``images`` can give; all, unless a cache keeps only some."""
        return torch.arange(len(self))

    def images_uint8(self) -> Tensor:
        """All images, (N, 3, H, W) uint8: the cache itself where there is one (do not write to it), else decoded anew."""
        return self._cached if self._cached is not None else self._decode_all()

    def _decode_all(self) -> Tensor:
        images = torch.empty(len(self), 3, self.image_size, self.image_size, dtype=torch.uint8)  # (N, 3, H, W)

        def decode_chunk(start: int) -> None:
            chunk = range(start, min(start + CHUNK_IMAGES, len(self)))
            torch.stack([self.load_image(index) for index in chunk], out=images[start : chunk.stop])

        with ThreadPoolExecutor(_num_threads()) as pool:
            for _ in pool.map(decode_chunk, range(0, len(self), CHUNK_IMAGES)):
                pass  # re-raises what a thread raised
        return images


def check_images(dataset: ImageDataset, workers: int | None = None) -> list[BadImage]:
    """Read every image and list those that cannot be used.

    Args:
        dataset: The images; their ``num_turned`` is counted on the way.
        workers: Number of threads; None means one per core, at most 16.

    Returns:
        The bad images in index order; empty if all are well.
    """

    def check_chunk(start: int) -> list[BadImage]:
        bad = []
        for index in range(start, min(start + CHUNK_IMAGES, len(dataset))):
            try:
                turned[index] = dataset.verify_image(index)
            except UserError as error:
                bad.append(BadImage(index, dataset.source_name(index), str(error)))
        return bad

    turned = np.zeros(len(dataset), dtype=bool)
    with ThreadPoolExecutor(workers or _num_threads()) as pool:
        bad = [image for chunk in pool.map(check_chunk, range(0, len(dataset), CHUNK_IMAGES)) for image in chunk]
    dataset.num_turned = int(turned.sum())
    return bad


def _num_threads() -> int:
    return min(16, os.cpu_count() or 1)


def hash_parts(*parts: str | int | bytes) -> str:
    """Hash a sequence of values to 32 hexadecimal digits (SHA-256, cut), the same on every platform."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)  # the length keeps ("ab", "c") apart from ("a", "bc")
    return digest.hexdigest()[:32]


def hash_image_files(paths: Sequence[Path], sizes: Sequence[int]) -> str:
    """Hash the contents of image files up to 2 GiB together, which takes a second or two; of more, their sizes.

    Files of equal names and sizes need not be equal images: a cache of tokens made from others would train on those.

    Args:
        paths: Files.
        sizes: Bytes of each.

    Returns:
        32 hexadecimal digits.

    Raises:
        UserError: If a file cannot be read.
    """
    if sum(sizes) > MAX_FULL_HASH_BYTES:
        return hash_parts("sizes", *sizes)
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise UserError(f"image '{path}' cannot be read ({error.strerror}); remove or replace it") from error
    return digest.hexdigest()[:32]


def hash_files(paths: Sequence[Path]) -> str:
    """Hash the contents of files, in order; very large sets are hashed by size and both ends of each file.

    Args:
        paths: Files; where they lie and what they are called does not enter the hash.

    Returns:
        32 hexadecimal digits.
    """
    sizes = [path.stat().st_size for path in paths]
    whole = sum(sizes) <= MAX_FULL_HASH_BYTES
    digests: list[bytes] = []
    for path, size in zip(paths, sizes, strict=True):
        with path.open("rb") as file:
            if whole:
                digests.append(hashlib.file_digest(file, "sha256").digest())
            else:
                head = file.read(HASH_END_BYTES)
                file.seek(max(0, size - HASH_END_BYTES))
                digests.append(hashlib.sha256(head + file.read()).digest())
    return hash_parts("whole" if whole else "ends", *sizes, *digests)
