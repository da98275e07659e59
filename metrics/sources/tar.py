"""A tar file of images, as WebDataset writes them."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from metrics.files.arrays import READ_ERRORS, brief
from metrics.files.images import EMPTY, ImageError, printable
from metrics.sources.base import NoImagesError, fingerprint
from metrics.sources.encoded import EncodedImage, LoaderSource
from metrics.sources.labels import pair_members
from metrics.sources.listing import count_folders, count_left_out, is_hidden, is_image_name, no_images_message

_GZIP_MAGIC = b"\x1f\x8b"
_OTHER_COMPRESSIONS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAGIC_BYTES = 6
_CHUNK = 1 << 20
_MAX_LABEL_BYTES = 1 << 20  # A member larger than this is no label.
#: What walking a damaged tar raises.
TAR_ERRORS = (*READ_ERRORS, tarfile.TarError)


class RefusedTarError(ValueError):
    """What is no damage but is not read; the text is a predicate."""


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


class _CheckedInfo(tarfile.TarInfo):
    """A header whose size is not negative; tarfile itself would read such an archive in a loop (CVE-2025-8194)."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _CheckedInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0:
            raise tarfile.ReadError(f"a member has size {info.size}")
        return info


class TarSource(LoaderSource):
    """The images of a tar file, in the archive's order, uncompressed or gzipped.

    Labels: members that share a key, the path up to the first dot of the file name (WebDataset's rule), are one sample of
    one image; its class is the text of the ``.cls`` member, else "label" of the ``.json`` member. They count if every image has
    one. Without any, folders in the archive are classes as for ``FolderSource``, a folder that holds all others passed over.

    An uncompressed archive is indexed when it is opened and then read from any place; a gzipped one is decompressed once to
    count its images and once more to read them.

    Raises:
        ValueError: If it is no tar file, is truncated, holds more behind its end, no images or several in one sample, or
            images are empty and ``skip_corrupt`` is off.
    """

    kind = "tar of images"

    def __init__(self, path: Path, skip_corrupt: bool = False) -> None:
        super().__init__(path, skip_corrupt)
        self._members: list[_Member] = []
        labels: dict[str, str] = {}
        left_out: Counter[str] = Counter()
        try:
            with path.open("rb") as file:
                head = file.read(_MAGIC_BYTES)
                _refuse_compression(head)
                self._is_compressed = head.startswith(_GZIP_MAGIC)
                file.seek(0)
                for info, archive in walk_tar(file, self._is_compressed):
                    if is_image_name(info.name):
                        self._members.append(_Member(info.name, info.offset_data, info.size))
                        continue
                    left_out += count_left_out([info.name])
                    if info.name.endswith((".cls", ".json")) and info.size <= _MAX_LABEL_BYTES and not is_hidden(info.name):
                        label = _parse_label(info.name, _content(archive, info))
                        if label is not None:
                            labels[info.name] = label
        except RefusedTarError as error:
            raise ValueError(f"tar file {path} {error}.") from error
        except TAR_ERRORS as error:
            raise ValueError(f"{path} is not a tar file, or is truncated ({brief(error)}): write it again.") from error
        if not self._members:
            raise NoImagesError(no_images_message(f"tar file {path}", left_out))
        self.set_left_out(left_out)
        self.report_listed([(index, member.name, EMPTY) for index, member in enumerate(self._members) if member.size == 0])
        names = [member.name for member in self._members]
        try:
            self.set_labels(pair_members(names, labels))
        except ValueError as error:
            raise ValueError(f"tar file {path} {error}.") from error
        self.set_folders(count_folders(names))

    def __len__(self) -> int:
        return len(self._members)

    def identity(self) -> str:
        """Return a fingerprint of the file's size and time of change, and of names, sizes and labels."""
        status = os.stat(self.path)
        return fingerprint(["tar", status.st_size, status.st_mtime_ns, *map(tuple, self._members), *(self.labels or [])])

    def items(self, start: int, stop: int) -> Iterator[EncodedImage]:
        """Yield one reader per member."""
        if self._is_compressed:
            yield from self._stream(start, stop)
            return
        for index in range(start, stop):
            member = self._members[index]
            name = self.full_name(member.name)
            yield EncodedImage(index, member.name, name, partial(self._read, member, name))

    def _read(self, member: _Member, name: str) -> bytes:
        try:
            # A file of its own for each read: threads share none, and thousands of shards don't stay open.
            with self.path.open("rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise ImageError(name, "can't be read", "write the tar again", brief(error)) from error

    def _stream(self, start: int, stop: int) -> Iterator[EncodedImage]:
        index = 0
        try:
            with self.path.open("rb") as file, closing(walk_tar(file, True)) as walk:
                for info, archive in walk:
                    if index == stop:
                        return
                    if not is_image_name(info.name):
                        continue
                    if index >= start:
                        data = _content(archive, info)
                        yield EncodedImage(index, info.name, self.full_name(info.name), partial(bytes, data), len(data))
                    index += 1
        except TAR_ERRORS as error:
            raise ValueError(f"{self.path} is corrupt ({brief(error)}): write it again.") from error


def _refuse_compression(head: bytes) -> None:
    for magic, name in _OTHER_COMPRESSIONS.items():
        if head.startswith(magic):
            raise RefusedTarError(f"is compressed with {name}, which is not read: unpack it, or compress it by gzip")


def walk_tar(
    file: IO[bytes], is_compressed: bool, num_bytes: int | None = None
) -> Generator[tuple[tarfile.TarInfo, tarfile.TarFile], None, None]:
    """Yield the regular files of a tar, and refuse one without its end mark, or with more behind it, which tarfile lets pass.

    Args:
        file: The archive, at its start.
        is_compressed: Whether it is gzipped.
        num_bytes: Its size where it is part of a file; None for that of the whole file.

    Raises:
        ValueError: If it holds what is not read; the text is a predicate.
        tarfile.TarError: On damage, or others of ``TAR_ERRORS``.
    """
    size = num_bytes
    if size is None and not is_compressed:
        size = os.fstat(file.fileno()).st_size
    # TarFile is made by ``open`` only, whose stubs do not know that ``tarinfo`` may be given.
    with tarfile.open(fileobj=file, mode="r:gz" if is_compressed else "r:", tarinfo=_CheckedInfo) as archive:
        position = -1
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # It would keep every header.
            if archive.offset <= position or (size is not None and info.isreg() and info.offset_data + info.size > size):
                raise tarfile.ReadError(f"member {info.name} reaches beyond the end")
            position = archive.offset
            if info.isreg() and not info.issparse():
                yield info, archive
            elif not info.isdir() and is_image_name(info.name):
                raise RefusedTarError(
                    f"holds {printable(info.name)} as a link or sparse file, which is not read: write it again without --sparse, "
                    "with tar --dereference --hard-dereference"
                )
        archive.fileobj.seek(archive.offset)  # type: ignore[union-attr]
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # type: ignore[union-attr]
            raise tarfile.ReadError("it has no end mark")
        while chunk := archive.fileobj.read(_CHUNK):  # type: ignore[union-attr]
            if chunk.count(0) != len(chunk):
                raise RefusedTarError(
                    f"holds more behind its end mark (byte {archive.offset:,}), as archives joined by cat do, which would not be "
                    "read: give the parts as files in one folder, or join them by tar --concatenate"
                )


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(info)
    assert stream is not None, "only regular files come here"
    data = stream.read()
    if len(data) != info.size:
        raise tarfile.ReadError(f"member {info.name} is cut off")
    return data


def _parse_label(name: str, content: bytes) -> str | None:
    """Return the class that a ``.cls`` or ``.json`` member states, None if it states none."""
    try:
        if name.endswith(".cls"):
            return content.decode().strip() or None
        label = json.loads(content).get("label")
    except (ValueError, AttributeError, RecursionError):
        return None
    return str(label) if isinstance(label, (int, str)) and not isinstance(label, bool) else None
