"""Read images the way the field's tools do: every image becomes uint8 RGB.

pytorch-fid, clean-fid and torch-fidelity all decode with ``PIL.Image.open(...).convert("RGB")``. The rules, one per kind
of file, are what that gives, with two exceptions that are marked:

- grey: the value three times; palette: its colours; CMYK, YCbCr, LAB: Pillow's conversion;
- alpha: dropped, the colour under it is kept (it is not blended with any background);
- 16-bit colour: the high byte (Pillow's decoder);
- TIFF of separate planes, of 12 bits, and of 16-bit grey with white at 0: as what they show (``metrics.files.tiff``; Pillow
  misreads them), or refused;
- 16-bit grey: the high byte too. *Exception*: ``convert`` clips it at 255, so that nearly every pixel turns white;
- 32-bit integer or float: refused. *Exception*: ``convert`` clips them too, and the file does not state which value
  means white;
- animated (GIF, APNG, WebP, TIFF): the first frame; EXIF orientation: ignored, pixels are taken as stored.
"""

from __future__ import annotations

import io
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from metrics.files.arrays import brief
from metrics.files.tiff import TiffError, is_tiff, load_tiff

#: Of the rules by which pixels are made of files; a change makes what was computed of other pixels stale.
DECODER_VERSION = "2"
#: Formats that Pillow may recognise, the common first; others (EPS runs Ghostscript) are no images here.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "WEBP", "TIFF", "JPEG2000")
#: Bits of a 16-bit grey level that are dropped.
_LOW_BYTE_BITS = 8
#: What is wrong with an image file of no bytes.
EMPTY = "is empty (0 bytes)"
_ADVICE = "remove or replace it"
_TIFF_ADVICE = "save it with 8 or 16 bits per channel, interleaved"
#: Images of more pixels get memory of their own.
_MAPPED_PIXELS = 1 << 21
#: What Pillow's decoders raise on damaged data.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class ImageError(ValueError):
    """One image that can't be read.

    Args:
        name: Which image.
        problem: What is wrong with it, a predicate ("is empty (0 bytes)").
        advice: What to do about it.
        detail: The decoder's own words, or "".
    """

    def __init__(self, name: str, problem: str, advice: str = _ADVICE, detail: str = "") -> None:
        self.name = name
        self.detail = detail
        self.problem = problem
        self.advice = advice
        super().__init__(f"image {printable(name)} {self.fault}: {advice}.")

    @property
    def fault(self) -> str:
        """The problem with its detail in parentheses."""
        return f"{self.problem} ({self.detail})" if self.detail else self.problem


def printable(name: str) -> str:
    """Return a file name for a message; one with control characters or undecodable bytes is quoted and escaped."""
    return name if name.isprintable() else ascii(name)


def read_image(path: Path, name: str | None = None) -> Tensor:
    """Read an image file as uint8 (3, H, W).

    Args:
        path: The file.
        name: What to call it in messages; None takes the path.

    Raises:
        ImageError: If the file is absent, empty, truncated, corrupt or of a refused kind.
    """
    name = str(path) if name is None else name
    return decode_image(read_file(path, name), name)


def read_file(path: Path, name: str) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageError: If it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(name, "can't be read", "check the file and its permissions", error.strerror or "") from error


def decode_image(data: bytes, name: str, admit: Callable[[int], None] | None = None) -> Tensor:
    """Decode an encoded image as uint8 (3, H, W).

    Args:
        data: The content of an image file.
        name: What to call it in messages.
        admit: Called with the bytes of the result (3 H W) before any pixel is decoded; it may wait until there is room.

    Raises:
        ImageError: If the content is empty, truncated, corrupt or of a refused kind.
    """
    image = load_rgb(data, name, admit)
    size = image.width * image.height
    with decoding(name):
        # Those of large images apart from the heap, which they would leave in pieces too small for the next.
        planes = mmap.mmap(-1, 3 * size) if size > _MAPPED_PIXELS else bytearray(3 * size)
        # Pillow takes the pixels apart in less time than torch takes to transpose them; one by one, for large images' sake.
        for channel in range(3):
            planes[channel * size : (channel + 1) * size] = image.getchannel(channel).tobytes()
    return torch.frombuffer(planes, dtype=torch.uint8).view(3, image.height, image.width)


def open_image(data: bytes) -> Image.Image:
    """Open an encoded image of one of the known formats, undecoded; call it inside ``decoding``."""
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def load_rgb(data: bytes, name: str, admit: Callable[[int], None] | None = None) -> Image.Image:
    """Decode an encoded image completely as an 8-bit RGB Pillow image; see ``decode_image``."""
    if not data:
        raise ImageError(name, EMPTY)
    with decoding(name):
        if is_tiff(data):
            loaded = _load_tiff(data, name, admit)
        else:
            with open_image(data) as loaded:
                if admit is not None:
                    admit(3 * loaded.width * loaded.height)
                loaded.load()
        return loaded if loaded.mode == "RGB" else convert_to_rgb(loaded, name)


def _load_tiff(data: bytes, name: str, admit: Callable[[int], None] | None) -> Image.Image:
    try:
        with open_image(data) as opened:
            if admit is not None:
                admit(3 * opened.width * opened.height)
            return load_tiff(opened, data)
    except UnidentifiedImageError as error:
        raise ImageError(name, "is a TIFF of a kind that Pillow does not read, or is corrupt", _TIFF_ADVICE) from error
    except TiffError as error:
        raise ImageError(name, str(error), _TIFF_ADVICE) from error


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises inside into an ``ImageError`` that names the image."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(name, "is truncated or corrupt", detail="not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, "has too many pixels to be decoded safely", detail=brief(error)) from error
    except _DECODER_ERRORS as error:
        raise ImageError(name, "is truncated or corrupt", detail=brief(error)) from error


def convert_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert a Pillow image of any mode to 8-bit RGB by the rules above.

    Raises:
        ImageError: If its pixels have 32 bits.
    """
    # Pillow reads 16-bit PGM as mode "I", scaled to 0..65535 whatever white the header states.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image) >> _LOW_BYTE_BITS).astype(np.uint8))
    elif image.mode in ("I", "F"):
        problem = f"has 32-bit pixels (mode {image.mode}) with no stated white"
        raise ImageError(name, problem, "save it with 8 or 16 bits per channel")
    return image.convert("RGB")
