"""Images that lie in a large tar file, of which a list says where each begins: read from any place, without unpacking."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from torch import Tensor

from generative.core.errors import UserError
from generative.data.base import ImageDataset, hash_files, hash_parts
from generative.data.decode import image_to_tensor, verify_image
from generative.data.packed_strings import PackedStrings
from generative.data.transforms import center_crop
from metrics.files.arrays import brief
from metrics.files.random_reads import RandomReader
from metrics.sources.tar import TAR_ERRORS, RefusedTarError, walk_tar


class Member(NamedTuple):
    """A regular file in a tar file: its name, where its content begins in that file, and its bytes."""

    name: str
    offset: int
    size: int


class TarMembersDataset(ImageDataset):
    """Images at known places of one tar file.

    Args:
        path: The tar file, not compressed.
        members: The images in it, in order; names are those of messages.
        labels: (N,) int64, their classes.
        class_names: Names in the order of the labels.
        kind: What it is, a part of the fingerprint.
        image_size: Side of the square images in pixels, by ADM's resize and centre crop.
        cache: Decode all images at start and keep them in memory.
        verify: Read every image at start; None means below 20,000 images.

    Raises:
        UserError: If an image is empty or (if verified) corrupt.
    """

    def __init__(
        self,
        path: Path,
        members: Sequence[Member],
        labels: Tensor,
        class_names: Sequence[str],
        kind: str,
        image_size: int,
        cache: bool,
        verify: bool | None,
    ) -> None:
        self.path = path
        self._names = PackedStrings([member.name for member in members])
        self._offsets = np.array([member.offset for member in members], dtype=np.int64)
        self._sizes = np.array([member.size for member in members], dtype=np.int64)
        self._files = RandomReader()
        super().__init__(
            labels=labels,
            num_classes=len(class_names),
            image_size=image_size,
            fingerprint=hash_parts(kind, image_size, labels.numpy().tobytes(), hash_files([path])),
            class_names=class_names,
        )
        self.prepare(cache=cache, verify=verify)

    def load_image(self, index: int) -> Tensor:
        """Read, resize and crop one image, (3, H, W) uint8."""
        return image_to_tensor(center_crop(self.load_picture(index), self.image_size))

    def read_encoded(self, index: int) -> bytes:
        """The content of an image's file."""
        buffer = bytearray(int(self._sizes[index]))
        try:
            done = self._files.read_into(self.path, int(self._offsets[index]), memoryview(buffer))
        except OSError as error:
            raise UserError(f"'{self.path}' cannot be read ({error.strerror}); check the file and its permissions") from error
        if done < len(buffer):
            raise UserError(f"'{self.path}' was cut short; fetch it again")
        return bytes(buffer)

    def verify_image(self, index: int) -> bool:
        """Whether EXIF turns an image; raises ``UserError`` if it cannot be read to its end."""
        return verify_image(self.read_encoded(index), self.source_name(index))

    def source_name(self, index: int) -> str:
        """Name of an image, and the archive."""
        return f"{self._names[index]} in {self.path}"


def list_members(path: Path, inside: Member | None = None) -> Iterator[Member]:
    """The regular files of a tar file, or of one that lies in another.

    Args:
        path: The tar file, not compressed.
        inside: A tar file in it, to be listed instead.

    Yields:
        Them in order, with offsets in ``path``.

    Raises:
        UserError: If it is no tar file, is truncated or compressed.
    """
    title = f"'{path}'" if inside is None else f"'{inside.name}' in '{path}'"
    start = 0 if inside is None else inside.offset
    try:
        with path.open("rb") as file:
            part = file if inside is None else cast("IO[bytes]", _Part(file, inside))
            for info, _ in walk_tar(part, False, None if inside is None else inside.size):
                yield Member(info.name, start + info.offset_data, info.size)
    except RefusedTarError as error:
        raise UserError(f"{title} {error}") from error
    except TAR_ERRORS as error:
        raise UserError(f"{title} is not a tar file, or is truncated ({brief(error)}); fetch it again") from error


class _Part(io.RawIOBase):
    """A range of a file, as a file of its own."""

    def __init__(self, file: IO[bytes], member: Member) -> None:
        self._file, self._start, self._size, self._position = file, member.offset, member.size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data
