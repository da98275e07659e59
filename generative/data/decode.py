"""Image files to RGB pixels, with one sentence that names the file when it cannot be read.

The decoder is that of the scores (``metrics.files.images``, which states a rule for every kind of image), so that the reference
of a score is the images that were trained on. In one thing they differ: a photograph whose EXIF says that it lies on its side is
turned upright, as every viewer shows it, for else a generator would learn it lying. ``fid-score``, as the tools whose figures
it repeats, takes pixels as they are stored; a run says at start how many of its images were turned.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from metrics.files.images import ImageError, convert_to_rgb, decoding, load_rgb, open_image
from metrics.files.tiff import is_tiff

ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each EXIF orientation upright (Exif 2.32, section 4.6.4)."""
_DAMAGED_EXIF = (OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, struct.error)


@contextmanager
def _explain(name: str) -> Iterator[None]:
    """Turn reading and decoding errors into one sentence that names the image."""
    try:
        yield
    except ImageError as error:
        detail = f" ({error.detail})" if error.detail else ""
        raise UserError(f"image '{name}' {error.problem}; {error.advice}{detail}") from error
    except OSError as error:
        raise UserError(f"image '{name}' cannot be read ({error.strerror}); check the file and its permissions") from error


def read_content(path: str) -> bytes:
    """Read an image file without decoding it.

    Raises:
        UserError: If it cannot be read.
    """
    with _explain(path):
        return _content(path)


def _content(source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    with open(source, "rb") as file:
        return file.read()


def decode_image(source: str | bytes, name: str) -> Image.Image:
    """Read one image completely as RGB.

    Args:
        source: A file path, or the bytes of an image file.
        name: What to call the image in an error message.

    Returns:
        An 8-bit RGB image, fully loaded, upright as its EXIF orientation says (ADM's loader ignores it).

    Raises:
        UserError: If it cannot be read, is truncated or corrupt, or has 32-bit pixels.
    """
    with _explain(name):
        return turn_upright(load_rgb(_content(source), name))


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn or mirror an image as its EXIF orientation says."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1, upright, where none is stated."""
    if "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except _DAMAGED_EXIF:  # of an image whose pixels are well
        return 1
    return value if isinstance(value, int) else 1


def verify_image(source: str | bytes, name: str) -> bool:
    """Check that an image can be read to its last byte; cheaper than ``decode_image`` for large JPEG files.

    Args:
        source: A file path, or the bytes of an image file.
        name: What to call the image in an error message.

    Returns:
        Whether its EXIF orientation is another than upright.

    Raises:
        UserError: As ``decode_image``.
    """
    with _explain(name):
        content = _content(source)
        if is_tiff(content):  # some kinds are refused by what they hold
            return orientation(load_rgb(content, name)) in TURNS
        with decoding(name):
            with open_image(content) as image:
                image.verify()  # check sums, where the format has them; the file must be opened again afterwards
            with open_image(content) as image:
                image.draft("RGB", (1, 1))  # JPEG: every coefficient is still decoded, at an eighth of the resolution
                image.load()
                if image.mode in ("I", "F"):  # the modes that may be refused
                    convert_to_rgb(image, name)
                return orientation(image) in TURNS


def image_to_tensor(image: Image.Image) -> Tensor:
    """Copy an RGB image to a tensor, (3, H, W) uint8."""
    planes = np.empty((3, image.height, image.width), dtype=np.uint8)
    # Pillow takes the pixels apart in a third of the time that transposing them takes.
    for plane, band in zip(planes, image.split(), strict=True):
        plane[:] = np.asarray(band)
    return torch.from_numpy(planes)
