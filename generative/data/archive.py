"""Images in zip and tar files, and in folders of them, WebDataset's shards among them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.data.base import MAX_CLASSES, ImageDataset, hash_files, hash_parts
from generative.data.decode import image_to_tensor, verify_image
from generative.data.transforms import center_crop
from metrics.files.images import ImageError
from metrics.sources.encoded import LoaderSource
from metrics.sources.listing import is_hidden
from metrics.sources.open import open_source

GZIP_EXTENSIONS = (".tar.gz", ".tgz")


class ArchiveDataset(ImageDataset):
    """Images of a zip or tar file, or of a folder of such files, read from any place without unpacking.

    Classes are what the archive states, as for ``fid-score``: ``.cls`` or ``.json`` members beside the images (WebDataset),
    ``dataset.json`` (EDM), else folders. Folders and texts are numbered in the order of their sorted names.

    Args:
        path: A .zip or .tar file, or a folder of .zip or of .tar files.
        image_size: Side of the square images in pixels, by ADM's resize and centre crop.
        num_classes: Refuse another number of classes; None takes as many as there are.
        cache: Decode all images at start and keep them in memory.
        verify: Read every image at start, so that a corrupt one is named before training; None means below 20,000 images.

    Raises:
        UserError: If the path is no such archive, holds no images or no classes, or (if verified) an image is corrupt.
    """

    def __init__(
        self,
        path: str | Path,
        image_size: int,
        num_classes: int | None = None,
        cache: bool = False,
        verify: bool | None = None,
    ) -> None:
        self.path = self.image_path = Path(path).expanduser()
        source = open_archive(self.path)
        self._source: LoaderSource | None = source
        self._process = os.getpid()
        labels, names = number_classes(source)
        if num_classes is not None and len(names) != num_classes:
            raise UserError(
                f"'{self.path}' has {len(names)} classes, and num_classes of the data is {num_classes}; leave num_classes out to "
                "take as many as there are"
            )
        files = [self.path]
        if self.path.is_dir():
            files = sorted(file for file in self.path.rglob("*") if not is_hidden(file.relative_to(self.path).as_posix()))
        super().__init__(
            labels=torch.tensor(labels, dtype=torch.int64),
            num_classes=len(names),
            image_size=image_size,
            fingerprint=hash_parts("archive", image_size, hash_files([file for file in files if file.is_file()])),
            class_names=names,
        )
        self.left_out = dict(source.left_out)
        self.prepare(cache=cache, verify=verify)

    def load_image(self, index: int) -> Tensor:
        """Read, resize and crop one image, (3, H, W) uint8."""
        return image_to_tensor(center_crop(self.load_picture(index), self.image_size))

    def read_encoded(self, index: int) -> bytes:
        """The content of an image's file."""
        try:
            return next(self._opened().items(index, index + 1)).read()
        except ImageError as error:
            raise UserError(str(error).rstrip(".")) from error

    def verify_image(self, index: int) -> bool:
        """Whether EXIF turns an image; raises ``UserError`` if it cannot be read to its end."""
        return verify_image(self.read_encoded(index), self.source_name(index))

    def source_name(self, index: int) -> str:
        """Name of an image in its archive."""
        return next(self._opened().items(index, index + 1)).title

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None, "_process": None}  # a process that is started afresh opens it itself

    def _opened(self) -> LoaderSource:
        if self._source is None or os.getpid() != self._process:
            # A zip file has one place at which all its readers read; a forked process needs a file of its own.
            self._source, self._process = open_archive(self.path), os.getpid()
        return self._source


def open_archive(path: Path) -> LoaderSource:
    """Open zip or tar files as ``fid-score`` does, empty images included, which are then named when they are read.

    Raises:
        UserError: If there is none, it is damaged, or compressed as a whole.
    """
    names = [file.name for file in path.iterdir() if not is_hidden(file.name)] if path.is_dir() else [path.name]
    packed = next((name for name in names if name.lower().endswith(GZIP_EXTENSIONS)), None)
    if packed is not None:
        raise UserError(f"'{packed}' of '{path}' is compressed as a whole and can only be read from its start; run gunzip first")
    try:
        source = open_source(path, skip_corrupt=True)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error).rstrip(".")) from error
    if not isinstance(source, LoaderSource):
        raise UserError(f"'{path}' is no zip or tar file, nor a folder of such files")
    return source


def number_classes(source: LoaderSource) -> tuple[list[int], list[str]]:
    """Labels and names of the classes of a source.

    Raises:
        UserError: If it states no classes, or a class number beyond any.
    """
    if source.labels is None:
        raise UserError(source.lack_of_labels().rstrip("."))
    if source.has_class_numbers:
        labels = [int(label) for label in source.labels]
        if max(labels) >= MAX_CLASSES:
            raise UserError(
                f"'{source.path}' states the class number {max(labels):,}; numbers of classes are below {MAX_CLASSES:,}"
            )
        return labels, list(source.class_names or map(str, range(max(labels) + 1)))
    names = sorted(set(source.labels))
    place = {name: label for label, name in enumerate(names)}
    return [place[label] for label in source.labels], names
