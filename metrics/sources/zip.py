"""A zip file of images."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

from metrics.files.arrays import READ_ERRORS, brief
from metrics.files.images import EMPTY, ImageError, printable
from metrics.files.zips import JoinedZipError, open_zip
from metrics.sources.base import NoImagesError, fingerprint
from metrics.sources.encoded import EncodedImage, LoaderSource
from metrics.sources.labels import LABEL_TABLES, find_labels
from metrics.sources.listing import count_folders, count_left_out, is_image_name, no_images_message


class ZipSource(LoaderSource):
    """The images of a zip file, sorted by name; labels as for ``FolderSource``, a folder that holds all
    others passed over.

    Raises:
        ValueError: If it is no zip file, shares its file with something else, holds no images or one twice, or images are
            empty and ``skip_corrupt`` is off.
    """

    kind = "zip of images"

    def __init__(self, path: Path, skip_corrupt: bool = False) -> None:
        super().__init__(path, skip_corrupt)
        try:
            self._archive = open_zip(path)
        except JoinedZipError as error:
            raise ValueError(f"zip file {path} {error}.") from error
        except READ_ERRORS as error:
            raise ValueError(f"{path} is not a zip file, or is truncated: write it again.") from error
        files = [member for member in self._archive.infolist() if not member.is_dir()]
        listed = (member for member in files if is_image_name(member.filename))
        self._members = sorted(listed, key=lambda member: member.filename)
        left_out = count_left_out(member.filename for member in files)
        if not self._members:
            raise NoImagesError(no_images_message(f"zip file {path}", left_out))
        twice = next((left.filename for left, right in pairwise(self._members) if left.filename == right.filename), None)
        if twice is not None:
            raise ValueError(f"zip file {path} holds {printable(twice)} twice: keep one of them.")
        self.set_left_out(left_out)
        self._lock = threading.Lock()  # zipfile counts its open members without one.
        names = [member.filename for member in self._members]
        self.report_listed([(index, names[index], EMPTY) for index, member in enumerate(self._members) if member.file_size == 0])
        tables = {name: content for name in LABEL_TABLES if (content := self._read_table(name)) is not None}
        self.set_labels(find_labels(names, tables, in_archive=True))
        self.set_folders(count_folders(names))

    def __len__(self) -> int:
        return len(self._members)

    def identity(self) -> str:
        """Return a fingerprint of names, sizes and check sums, all from the archive's directory; the file may move."""
        listing = [(member.filename, member.file_size, member.CRC) for member in self._members]
        return fingerprint(["zip", *listing, *(self.labels or [])])

    def items(self, start: int, stop: int) -> Iterator[EncodedImage]:
        """Yield one reader per member."""
        for index in range(start, stop):
            member = self._members[index]
            name = self.full_name(member.filename)
            yield EncodedImage(index, member.filename, name, partial(self._read, member, name))

    def _read(self, member: zipfile.ZipInfo, name: str) -> bytes:
        try:
            with self._lock:
                return self._archive.read(member)
        except READ_ERRORS as error:
            raise ImageError(name, "can't be read", "write the zip again", brief(error)) from error

    def _read_table(self, name: str) -> bytes | None:
        try:
            return self._archive.read(name)
        except KeyError:
            return None
        except READ_ERRORS as error:
            raise ValueError(f"{name} in {self.path} can't be read ({brief(error)}): write the zip again.") from error
