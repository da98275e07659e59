"""Image files to RGB pixels, with one sentence that names the file when it cannot be read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError

IMAGE_EXTENSIONS = frozenset({".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File name endings read as images, compared in lower case."""

DECODING_ERRORS = (
    OSError,  # truncated files and unknown formats (PIL.UnidentifiedImageError)
    SyntaxError,  # broken PNG chunks
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on damaged files, depending on the format."""

LOW_BYTE_BITS = 8
"""Bits of a 16-bit grey level that are dropped: the high byte stays, as where images are scored (``metrics.images``)."""


@contextmanager
def _explain(name: str) -> Iterator[None]:
    """Turn decoding errors into one sentence that names the image."""
    try:
        yield
    except UserError:
        raise
    except DECODING_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"image '{name}' cannot be read ({error.strerror}); check the file and its permissions") from error
        raise UserError(f"image '{name}' is truncated or corrupt; remove or replace it ({error})") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any 8- or 16-bit mode to RGB; transparency is dropped, as in ADM's loader."""
    if image.mode.startswith("I;16"):  # convert("RGB") would clip 16-bit levels at 255
        image = Image.fromarray((np.asarray(image) >> LOW_BYTE_BITS).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"image '{name}' has 32-bit pixels (mode {image.mode}); convert it to 8 bits per channel")
    return image.convert("RGB")


def decode_image(source: str | bytes, name: str) -> Image.Image:
    """Read one image completely as RGB.

    Args:
        source: A file path, or the bytes of an image file.
        name: What to call the image in an error message.

    Returns:
        An 8-bit RGB image, fully loaded. EXIF orientation is ignored, as in ADM's loader.

    Raises:
        UserError: If it cannot be read, is truncated or corrupt, or has 32-bit pixels.
    """
    with _explain(name), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        image.load()
        return image if image.mode == "RGB" else _to_rgb(image, name)


def verify_image(source: str | bytes, name: str) -> None:
    """Check that an image can be read to its last byte; cheaper than ``decode_image`` for large JPEG files.

    Args:
        source: A file path, or the bytes of an image file.
        name: What to call the image in an error message.

    Raises:
        UserError: As ``decode_image``.
    """
    with _explain(name):
        if not isinstance(source, bytes):
            with open(source, "rb") as file:
                source = file.read()
        with Image.open(io.BytesIO(source)) as image:
            image.verify()  # check sums, where the format has them; the file must be opened again afterwards
        with Image.open(io.BytesIO(source)) as image:
            image.draft("RGB", (1, 1))  # JPEG: every coefficient is still decoded, at an eighth of the resolution
            if image.mode in ("I", "F"):
                _to_rgb(image, name)
            image.load()


def image_to_tensor(image: Image.Image) -> Tensor:
    """Copy an RGB image to a tensor, (3, H, W) uint8."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()  # (3, H, W)
