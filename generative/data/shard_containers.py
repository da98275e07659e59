"""The two kinds of shard files: a tar of image files, which WebDataset reads, and an array of pixels, which NumPy maps."""

from __future__ import annotations

import io
import tarfile
from typing import BinaryIO

import numpy as np

from generative.data.shard_images import ShardSettings
from metrics.files.shards import ENCODINGS, NPY_HEADER_BYTES


class TarShard:
    """A tar of image files, each followed by its class, in the order of the source; alike in every bit each time."""

    def __init__(self, file: BinaryIO, settings: ShardSettings) -> None:
        self._file = file
        self._extension = ENCODINGS[settings.encode][1]
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, place: int, content: bytes, label: int) -> int:
        """Add an image; returns where its content begins."""
        key = f"{place:06d}"
        self._add(f"{key}{self._extension}", content)
        padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        offset = self._file.tell() - padded
        self._add(f"{key}.cls", str(label).encode())
        return offset

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        """Write the end mark."""
        self._tar.close()


class PixelShard:
    """An .npy of uint8 (n, 3, H, W); n is known at the end, and its place in the header is kept free."""

    def __init__(self, file: BinaryIO, settings: ShardSettings) -> None:
        assert settings.resolution is not None
        self._file, self._side, self._count = file, settings.resolution, 0
        file.write(bytes(NPY_HEADER_BYTES))

    def add(self, place: int, content: bytes, label: int) -> int:
        """Add an image; returns where its pixels begin."""
        offset = self._file.tell()
        self._file.write(content)
        self._count += 1
        return offset

    def close(self) -> None:
        """Write the header."""
        shape = (self._count, 3, self._side, self._side)
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        assert self._file.tell() == NPY_HEADER_BYTES, "pixels begin where the header ends"


def start_shard(file: BinaryIO, settings: ShardSettings) -> TarShard | PixelShard:
    """Begin a shard of the kind that the settings ask for."""
    return (PixelShard if settings.encode == "raw" else TarShard)(file, settings)
