"""Loose image files, without classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.data.base import ImageDataset, hash_image_files, hash_parts
from generative.data.decode import image_to_tensor, read_content, verify_image
from generative.data.transforms import center_crop
from metrics.sources.listing import IMAGE_EXTENSIONS, Listing, list_images, no_images_message


class ImageFilesDataset(ImageDataset):
    """Image files, and those of folders at any depth, all of one class; brought to a square by ADM's resize and centre crop.

    Args:
        paths: Files and folders; a folder's files follow in the order of their names. Files that are no images, are hidden or
            are a tool's own are skipped (``metrics.sources.listing``).
        image_size: Side of the square images in pixels.
        verify: Read every image at start, so that a corrupt one is named before any work; None means below 20,000 images.

    Attributes:
        paths: The files, in order.
        left_out: Extension -> number of image files of formats that are not read.

    Raises:
        UserError: If a path does not exist, is no image file, or is a folder without any; or (if verified) a file is corrupt.
    """

    def __init__(self, paths: Sequence[str | Path], image_size: int, verify: bool | None = None) -> None:
        found = [(Path(path).expanduser(), find_image_files(Path(path).expanduser())) for path in paths]
        self.paths = [root / name for root, listing in found for name in listing.names]
        sizes = [path.stat().st_size for path in self.paths]
        listing = [part for path, size in zip(self.paths, sizes, strict=True) for part in (str(path), size)]
        contents = hash_image_files(self.paths, sizes)
        super().__init__(
            labels=torch.zeros(len(self.paths), dtype=torch.int64),
            num_classes=1,
            image_size=image_size,
            fingerprint=hash_parts("image files", image_size, *listing, contents),
        )
        self.left_out = dict(sum((listing.left_out for _, listing in found), Counter()))
        self.prepare(cache=False, verify=verify)

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
        return str(self.paths[index])


def find_image_files(path: Path) -> Listing:
    """The image files that a path stands for, relative to it, in the order of their parts; a file stands for itself.

    Raises:
        UserError: If there is none.
    """
    if path.is_file():
        if path.suffix.lower() not in IMAGE_EXTENSIONS:
            raise UserError(f"'{path}' is no image file (names end in {', '.join(sorted(IMAGE_EXTENSIONS))})")
        return Listing([""])
    if not path.exists():
        raise UserError(f"'{path}' does not exist; give image files or folders of them")
    try:
        listing = list_images(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not listing.names:
        raise UserError(no_images_message(f"folder '{path}'", listing.left_out).rstrip("."))
    listing.names.sort(key=lambda name: name.split("/"))
    return listing
