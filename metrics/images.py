"""Read images the way the field's tools do: every image becomes uint8 RGB.

Rules, one per kind of file (all but the 16-bit one are what `PIL.Image.convert("RGB")` gives, as in
pytorch-fid, clean-fid and torch-fidelity):

- grey: the value three times; palette: its colours; CMYK, YCbCr, LAB: Pillow's conversion;
- alpha: dropped, the colour under it is kept (it is not blended with any background);
- 16-bit grey: the high byte, as Pillow itself does for 16-bit RGB (its own conversion would clip nearly all
  to white);
- 32-bit integer or float: refused, since the value that means white is not stated in the file;
- animated: the first frame; EXIF orientation: ignored, pixels are taken as stored.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

#: Lower-case extensions that count as images; the case in the file name does not matter.
IMAGE_EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MAX_16_BIT = 65535
#: What Pillow's decoders raise on damaged data.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
)


def is_image_name(name: str) -> bool:
    """Return whether a file name has an image's extension and is not hidden (macOS leaves `._x.png` beside `x.png`)."""
    path = Path(name)
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """List the images of a folder and its subfolders, sorted by path.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it holds no image, or a subfolder can't be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist.")

    def refuse(error: OSError) -> None:
        raise ValueError(f"folder {error.filename} can't be read: {error.strerror}.") from error

    found: list[Path] = []
    visited: set[str] = set()
    for root, subfolders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:  # A link back up the tree: its images are listed already.
            subfolders.clear()
            continue
        visited.add(real)
        found += [Path(root, name) for name in names if is_image_name(name)]
    if not found:
        extensions = ", ".join(sorted(extension[1:] for extension in IMAGE_EXTENSIONS))
        raise ValueError(f"folder {folder} holds no images (looked for {extensions} in it and below).")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_image(path: Path) -> Tensor:
    """Read an image file as uint8 (3, H, W).

    Raises:
        ValueError: If the file is empty, truncated, corrupt or of a refused kind; the message names it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"image {path} can't be read: {error.strerror}.") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> Tensor:
    """Decode an encoded image as uint8 (3, H, W).

    Args:
        data: The content of an image file.
        name: What to call it in messages.

    Raises:
        ValueError: If the content is empty, truncated, corrupt or of a refused kind.
    """
    if not data:
        raise ValueError(f"image {name} is empty (0 bytes): remove it or write it again.")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = opened.copy()
    except UnidentifiedImageError as error:
        raise ValueError(f"image {name} is not an image that Pillow can read: remove it or write it again.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {name} has too many pixels to be decoded safely: {error}.") from error
    except _DECODER_ERRORS as error:
        raise ValueError(f"image {name} is truncated or corrupt ({error}): remove it or write it again.") from error
    return torch.from_numpy(_to_rgb(image, name)).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Return a writable uint8 (H, W, 3) array by the rules above."""
    if image.mode == "F":
        raise ValueError(f"image {name} holds 32-bit floats with no stated white: save it with 8 or 16 bits.")
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64)
        if grey.min() < 0 or grey.max() > _MAX_16_BIT:
            raise ValueError(f"image {name} holds 32-bit integers with no stated white: save it with 8 or 16 bits.")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))
