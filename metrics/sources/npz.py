"""Images as one array, in an npz or npy file."""

from __future__ import annotations

import os
import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from metrics.files.arrays import (
    ArrayHeader,
    npy_header,
    npz_checksums,
    npz_header,
    npz_keys,
    read_npy,
    read_npy_header,
    read_npz,
    reading,
    stored_offset,
)
from metrics.sources.base import ImageBatch, ImageSource, NoImagesError, check_range, checked_class_names, fingerprint

_IMAGES_KEY = "arr_0"
_LABELS_KEY = "arr_1"
_NAMES_KEY = "class_names"
#: An array in Fortran order has each image spread over all of it, so that it is read into memory whole.
_MAX_FORTRAN_BYTES = 4 << 30


class ArraySource(ImageSource):
    """Images of an array uint8 (N, H, W, 3), read piece by piece; one in Fortran order is read whole."""

    shape: tuple[int, ...]
    labels: list[str] | None = None
    _whole: np.ndarray | None = None
    _is_fortran = False

    def take_header(self, header: ArrayHeader, what: str) -> None:
        """Check what the array is.

        Args:
            header: Its header.
            what: Where it is, for messages ("x.npz holds arr_0").

        Raises:
            NoImagesError: If it has no images.
            ValueError: If it is of another shape or type.
        """
        shape, dtype, self._is_fortran = header
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:3]:
            raise ValueError(f"{what} of dtype {dtype} and shape {shape}: expected uint8 (N, H, W, 3).")
        if shape[0] == 0:
            raise NoImagesError(f"{self.path} holds no images: {what.rpartition(' ')[2]} has shape {shape}.")
        if self._is_fortran and header.num_bytes > _MAX_FORTRAN_BYTES:
            raise ValueError(
                f"{what} in Fortran order, which must be read into memory whole, of {header.num_bytes:,} bytes: save "
                "np.ascontiguousarray of it."
            )
        self.shape = shape

    @abstractmethod
    def open_array(self, is_whole: bool) -> AbstractContextManager[BinaryIO]:
        """Open the array at the beginning of its .npy; ``is_whole`` says that it is read to its end."""

    @abstractmethod
    def read_array(self) -> np.ndarray:
        """Read the array into memory."""

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, batch_size: int, num_workers: int = 1, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        """Yield the images of places ``start`` to ``stop``; ``num_workers`` has no use here, the file is one stream."""
        end = check_range(len(self), batch_size, num_workers, start, stop)
        if self._is_fortran:
            if self._whole is None:
                self._whole = self.read_array()
            for first in range(start, end, batch_size):
                piece = self._whole[first : min(first + batch_size, end)]
                yield self._batch(first, torch.from_numpy(np.ascontiguousarray(piece)))
            return
        with self.open_array(end - start == len(self)) as stream:
            yield from self._read(stream, batch_size, start, end)

    def _read(self, stream: BinaryIO, batch_size: int, start: int, end: int) -> Iterator[ImageBatch]:
        """Yield batches from a stream at the beginning of the .npy."""
        _, height, width, channels = self.shape
        image_bytes = height * width * channels
        with reading(self.path, self.kind):
            read_npy_header(stream)
            stream.seek(start * image_bytes, 1)
        for first in range(start, end, batch_size):
            count = min(batch_size, end - first)
            with reading(self.path, self.kind):
                data = bytearray(stream.read(count * image_bytes))
            if len(data) != count * image_bytes:
                raise ValueError(f"{self.path} is truncated: it ends before image {first + count}, write it again.")
            yield self._batch(first, torch.frombuffer(data, dtype=torch.uint8).view(count, height, width, channels))

    def _batch(self, first: int, pixels: torch.Tensor) -> ImageBatch:
        """Return the batch of images (B, H, W, 3) uint8 from place ``first`` on."""
        indices = list(range(first, first + len(pixels)))
        labels = None if self.labels is None else [self.labels[index] for index in indices]
        return ImageBatch(indices, list(pixels.permute(0, 3, 1, 2).contiguous()), labels)


class NpySource(ArraySource):
    """An npy file of one array uint8 (N, H, W, 3), without labels.

    Raises:
        ValueError: If it is damaged, or an array of another shape or type.
    """

    kind = "npy of images"

    def __init__(self, path: Path, skip_corrupt: bool = False) -> None:
        super().__init__(path, skip_corrupt)
        self.take_header(npy_header(path), f"{path} holds an array")
        self.label_hint = "an npy file holds one array; labels go into an npz with arr_0 and arr_1"

    def identity(self) -> str:
        """Return a fingerprint of the file's shape, size and time of change; it may move."""
        status = os.stat(self.path)
        return fingerprint(["npy", *self.shape, status.st_size, status.st_mtime_ns])

    def open_array(self, is_whole: bool) -> AbstractContextManager[BinaryIO]:
        """Open the file."""
        return self.path.open("rb")

    def read_array(self) -> np.ndarray:
        """Read the array into memory."""
        return read_npy(self.path)


class NpzSource(ArraySource):
    """An npz batch in the layout of the ADM suite: ``arr_0`` uint8 (N, H, W, 3), read piece by piece.

    Labels are ``arr_1``, integers (N,), as ADM's class-conditional samplers write it; ``class_names``, texts (K,), name them.
    A file read from its first image to its last is checked against its check sum; one read in parts is not, since the sum is over
    the whole.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no npz file, or an array is of another shape or type.
    """

    kind = "npz of images"

    def __init__(self, path: Path, skip_corrupt: bool = False) -> None:
        super().__init__(path, skip_corrupt)
        keys = npz_keys(path)
        if _IMAGES_KEY not in keys:
            raise ValueError(
                f"{path} holds {', '.join(keys) or 'nothing'}: expected arr_0 (images, uint8 (N, H, W, 3)) or mu and sigma."
            )
        self.take_header(npz_header(path, _IMAGES_KEY), f"{path} holds arr_0")
        self.labels = self._read_labels(keys)
        self.has_labels = self.has_class_numbers = self.labels is not None
        if self.labels is not None and _NAMES_KEY in keys:
            self.class_names = checked_class_names(read_npz(path, _NAMES_KEY).tolist(), self.labels, path)

    def identity(self) -> str:
        """Return a fingerprint of the arrays' check sums in the archive's directory; the file may move."""
        keys = [_IMAGES_KEY, *([_LABELS_KEY] if self.labels is not None else [])]
        return fingerprint(["npz", *self.shape, *npz_checksums(self.path, keys)])

    @contextmanager
    def open_array(self, is_whole: bool) -> Iterator[BinaryIO]:
        """Open ``arr_0``, in a file of its own where it is stored uncompressed and read in parts."""
        offset = None if is_whole else stored_offset(self.path, _IMAGES_KEY)
        if offset is not None:
            with self.path.open("rb") as file:
                file.seek(offset)
                yield file
            return
        with reading(self.path):
            archive = zipfile.ZipFile(self.path)
        with archive, archive.open(f"{_IMAGES_KEY}.npy") as stream:
            yield cast(BinaryIO, stream)

    def read_array(self) -> np.ndarray:
        """Read ``arr_0`` into memory."""
        return read_npz(self.path, _IMAGES_KEY)

    def _read_labels(self, keys: list[str]) -> list[str] | None:
        """Return ``arr_1`` as text, None if it is no list of integers."""
        if _LABELS_KEY not in keys:
            self.label_hint = f"labels are {_LABELS_KEY}, integers (N,), and it holds {', '.join(keys)}"
            return None
        shape, dtype, _ = npz_header(self.path, _LABELS_KEY)
        if dtype.kind not in "iu" or len(shape) != 1:
            self.label_hint = f"labels are {_LABELS_KEY}, integers (N,), and it is {dtype} {shape}"
            return None
        if shape != self.shape[:1]:
            raise ValueError(f"{self.path} holds {shape[0]} labels in arr_1 for {self.shape[0]} images in arr_0: write it again.")
        return [str(label) for label in read_npz(self.path, _LABELS_KEY).tolist()]
