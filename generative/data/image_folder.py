"""A folder of images with one sub-folder per class; ImageNet's folders of WordNet ids are such a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from generative.core.class_names import list_names
from generative.core.errors import UserError
from generative.data.base import ImageDataset, hash_image_files, hash_parts
from generative.data.decode import image_to_tensor, read_content, verify_image
from generative.data.packed_strings import PackedStrings
from generative.data.transforms import center_crop
from metrics.sources.listing import count_left_out, describe_left_out, is_hidden, is_image_name, list_images
from metrics.sources.splits import split_of

OUTSIDE_CLASSES = "outside the class folders"
"""Why images that lie beside the class folders are left out."""


class ImageFolderDataset(ImageDataset):
    """Images under ``root/<class>/**/*``, classes numbered by sorted folder name.

    Images of any size are brought to a square by ADM's resize and centre crop (``transforms.center_crop``). File names end
    in .png, .jpg, .jpeg, .webp, .bmp, .tif, .ppm and the like, in any case; hidden files and folders, and those of
    tools and file systems, are no images and no classes (``metrics.sources.listing``).

    Args:
        root: The folder that holds one sub-folder per class.
        image_size: Side of the square images in pixels.
        num_classes: Number of class folders that there must be; None takes as many as there are.
        cache: Decode all images at start and keep them in memory (3 * image_size**2 bytes each).
        verify: Read every image at start, so that a corrupt one is named before training; None means below 20,000 images.

    Attributes:
        left_out: Number of files that are left out, by extension (of image formats that are not read) or reason.

    Raises:
        UserError: If the folder is missing or unreadable, has no class folders or a class without images, has more or fewer
            classes than ``num_classes``, or holds an empty or (if verified) corrupt file.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int,
        num_classes: int | None = None,
        cache: bool = False,
        verify: bool | None = None,
    ) -> None:
        self.root = self.image_path = Path(root).expanduser()
        classes, left_out = _class_folders(self.root)
        if num_classes is not None and len(classes) != num_classes:
            raise UserError(
                f"image folder '{self.root}' has {len(classes)} class folders, and num_classes of the data is {num_classes}; "
                "leave num_classes out to take as many as there are"
            )
        notices = check_split_names(self.root, classes)
        paths: list[str] = []
        sizes: list[int] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            for path, size in _image_files(self.root, name, left_out):
                paths.append(path)
                sizes.append(size)
            labels.extend([label] * (len(paths) - len(labels)))
        self._paths = PackedStrings(paths)
        listing = [part for path, size in zip(paths, sizes, strict=True) for part in (path, size)]
        contents = hash_image_files([self.root / path for path in paths], sizes)
        super().__init__(
            labels=torch.tensor(labels, dtype=torch.int64),
            num_classes=len(classes),
            image_size=image_size,
            fingerprint=hash_parts("image folder", image_size, *listing, contents),
            class_names=classes,
        )
        self.left_out, self.notices = dict(left_out), notices
        self.prepare(cache=cache, verify=verify)

    def load_image(self, index: int) -> Tensor:
        """Read, resize and crop one image, (3, H, W) uint8."""
        return image_to_tensor(center_crop(self.load_picture(index), self.image_size))

    def read_encoded(self, index: int) -> bytes:
        """The content of an image's file."""
        return read_content(self.source_name(index))

    def verify_image(self, index: int) -> bool:
        """Whether EXIF turns an image; raises ``UserError`` if its file cannot be read to its end."""
        path = self.source_name(index)
        return verify_image(path, path)

    def source_name(self, index: int) -> str:
        """Path of an image."""
        return str(self.root / self._paths[index])


def _class_folders(root: Path) -> tuple[list[str], Counter[str]]:
    """Sorted names of the class folders, and the files beside them by reason; a clear error when there are none."""
    if not root.exists():
        raise UserError(f"image folder '{root}' does not exist; check the path")
    if not root.is_dir():
        raise UserError(f"image folder '{root}' is a file; give the folder that holds one sub-folder per class")
    entries = _scan(root)
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    beside = [entry.name for entry in entries if not entry.is_dir()]
    num_images = sum(is_image_name(name) for name in beside)
    if classes:
        return classes, count_left_out(beside) + Counter({OUTSIDE_CLASSES: num_images})
    if num_images:
        raise UserError(f"image folder '{root}' has images but no class folders; move them to '{root / 'CLASS_NAME'}'")
    raise UserError(f"image folder '{root}' is empty; it must hold one sub-folder of images per class")


def check_split_names(root: Path, classes: Sequence[str]) -> list[str]:
    """Tell splits of a data set from classes, by the names of their folders.

    Returns:
        What the user should know, one sentence: that some classes are called as splits are.

    Raises:
        UserError: If all folders are splits: images that train and images that test would be two classes.
    """
    splits = [name for name in classes if split_of(name.lower()) is not None and name.isalpha()]
    if not splits or (len(splits) == 1 and (len(classes) > 1 or not any(e.is_dir() for e in _scan(root / splits[0])))):
        return []
    if len(splits) == len(classes):
        chosen = next((name for name in splits if split_of(name.lower()) == "train"), splits[0])
        raise UserError(
            f"the folders of '{root}' are splits of a data set, not classes: {list_names(splits)}; give '{root / chosen}', which "
            "holds one folder for each class"
        )
    return [f"{list_names(splits)} of '{root}' are trained as classes, and are called as splits of a data set are"]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder that are not hidden, nor a tool's or a file system's own."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(f"folder '{folder}' cannot be read ({error.strerror}); check its permissions") from error


def _image_files(root: Path, name: str, left_out: Counter[str]) -> Iterator[tuple[str, int]]:
    """Yield (path relative to the root with forward slashes, size in bytes) of all images of a class, at any depth, sorted.

    Args:
        root: Folder of the classes.
        name: Folder of the class.
        left_out: Files of formats that are not read are added to it.
    """
    try:
        listing = list_images(root / name)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not listing.names:
        raise UserError(
            f"class folder '{root / name}' has no images; add some or remove the folder"
            + (f" (it has {describe_left_out(listing.left_out)})" if listing.left_out else "")
        )
    left_out += listing.left_out
    for file in listing.names:
        path = root / name / file
        try:
            size = path.stat().st_size
        except OSError as error:  # a dangling link, for example
            raise UserError(f"image '{path}' cannot be read ({error.strerror}); remove or replace it") from error
        if size == 0:
            raise UserError(f"image '{path}' is empty (0 bytes); remove or replace it")
        yield f"{name}/{file}", size
