"""An image folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from metrics.files.images import EMPTY, read_file
from metrics.sources.base import NoImagesError, fingerprint
from metrics.sources.encoded import EncodedImage, LoaderSource
from metrics.sources.labels import LABEL_TABLES, find_labels
from metrics.sources.listing import count_folders, list_images, no_images_message


class FolderSource(LoaderSource):
    """The images of a folder and its subfolders, sorted by path; which files count, ``metrics.sources.listing`` says.

    Labels are the first-level subfolders if each image lies in one of two or more; or those of EDM's ``dataset.json``, which goes
    first (in that layout the subfolders only keep listings short), or of the ``manifest.json`` of ``generative sample``.

    Raises:
        FileNotFoundError: If the folder does not exist.
        NoImagesError: If it holds no images.
        ValueError: If a subfolder can't be read, or images are empty and ``skip_corrupt`` is off.
    """

    kind = "image folder"

    def __init__(self, path: Path, skip_corrupt: bool = False) -> None:
        super().__init__(path, skip_corrupt)
        listing = list_images(path)
        self.names = listing.names
        if not self.names:
            raise NoImagesError(no_images_message(f"folder {path}", listing.left_out))
        self.set_left_out(listing.left_out)
        self._stats: list[tuple[int, int]] = []  # Size and time of change (ns) of each.
        bad: list[tuple[int, str, str]] = []
        for index, name in enumerate(self.names):
            try:
                status = os.stat(os.path.join(path, name))
            except OSError as error:  # A dangling link, for example.
                bad.append((index, name, f"can't be read ({error.strerror})"))
                self._stats.append((0, 0))
                continue
            if status.st_size == 0:
                bad.append((index, name, EMPTY))
            self._stats.append((status.st_size, status.st_mtime_ns))
        self.report_listed(bad)
        tables = {name: (path / name).read_bytes() for name in LABEL_TABLES if (path / name).is_file()}
        self.set_labels(find_labels(self.names, tables))
        self.set_folders(count_folders(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def full_name(self, name: str) -> str:
        """Return the image's path."""
        return str(self.path / name)

    def identity(self) -> str:
        """Return a fingerprint of names, sizes, times of change and labels; the folder may move."""
        listing = [(name, *status) for name, status in zip(self.names, self._stats, strict=True)]
        return fingerprint(["folder", *listing, *(self.labels or [])])

    def items(self, start: int, stop: int) -> Iterator[EncodedImage]:
        """Yield one reader per file."""
        for index in range(start, stop):
            name = self.full_name(self.names[index])
            yield EncodedImage(index, self.names[index], name, partial(read_file, Path(name), name))
