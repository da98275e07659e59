"""An npz file of images."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from metrics.arrays import npz_checksums, npz_header, npz_keys, read_npy_header, read_npz, reading, stored_offset
from metrics.sources.base import ImageBatch, ImageSource, check_range, checked_class_names, fingerprint

_IMAGES_KEY = "arr_0"
_LABELS_KEY = "arr_1"
_NAMES_KEY = "class_names"


class NpzSource(ImageSource):
    """An npz batch in the layout of the ADM suite: `arr_0` uint8 (N, H, W, 3), read piece by piece.

    Labels are `arr_1`, integers (N,), as ADM's class-conditional samplers write it; `class_names`, texts (K,), are their names.
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
        shape, dtype, is_fortran = npz_header(path, _IMAGES_KEY)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:3] or is_fortran:
            raise ValueError(f"{path} holds arr_0 of dtype {dtype} and shape {shape}: expected uint8 (N, H, W, 3).")
        if shape[0] == 0:
            raise ValueError(f"{path} holds no images: arr_0 has shape {shape}.")
        self.shape = shape
        self.labels = self._read_labels(keys)
        self.has_labels = self.has_class_numbers = self.labels is not None
        if self.labels is not None and _NAMES_KEY in keys:
            self.class_names = checked_class_names(read_npz(path, _NAMES_KEY).tolist(), self.labels, path)

    def __len__(self) -> int:
        return self.shape[0]

    def identity(self) -> str:
        """Return a fingerprint of the arrays' check sums in the archive's directory; the file may move."""
        keys = [_IMAGES_KEY, *([_LABELS_KEY] if self.labels is not None else [])]
        return fingerprint(["npz", *self.shape, *npz_checksums(self.path, keys)])

    def batches(self, batch_size: int, num_workers: int = 1, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        """Yield the images of places `start` to `stop`; `num_workers` has no use here, the file is one stream."""
        end = check_range(len(self), batch_size, num_workers, start, stop)
        offset = None if end - start == len(self) else stored_offset(self.path, _IMAGES_KEY)
        if offset is not None:
            with self.path.open("rb") as file:
                file.seek(offset)
                yield from self._read(file, batch_size, start, end)
        else:
            with reading(self.path):
                archive = zipfile.ZipFile(self.path)
            with archive, archive.open(f"{_IMAGES_KEY}.npy") as stream:
                yield from self._read(cast(BinaryIO, stream), batch_size, start, end)

    def _read(self, stream: BinaryIO, batch_size: int, start: int, end: int) -> Iterator[ImageBatch]:
        """Yield batches from a stream at the beginning of the .npy."""
        _, height, width, channels = self.shape
        image_bytes = height * width * channels
        with reading(self.path):
            read_npy_header(stream)
            stream.seek(start * image_bytes, 1)
        for first in range(start, end, batch_size):
            count = min(batch_size, end - first)
            with reading(self.path):
                data = bytearray(stream.read(count * image_bytes))
            if len(data) != count * image_bytes:
                raise ValueError(f"npz file {self.path} is truncated: it ends before image {first + count}, write it again.")
            pixels = torch.frombuffer(data, dtype=torch.uint8).view(count, height, width, channels)
            indices = list(range(first, first + count))
            labels = None if self.labels is None else [self.labels[index] for index in indices]
            yield ImageBatch(indices, list(pixels.permute(0, 3, 1, 2).contiguous()), labels)

    def _read_labels(self, keys: list[str]) -> list[str] | None:
        """Return `arr_1` as text, None if it is no list of integers."""
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
