"""TIFF files that Pillow opens and reads wrongly, read right or refused.

Found by comparing pixels over depths, planes, byte orders, strips, tiles and compressions (Pillow 13.0):

- samples in separate planes without compression: 16 bits are read as 8 (wrong pixels), an alpha or fifth plane stops it.
  They are put together here. Compressed planes go through libtiff, which is right.
- CIELAB in separate planes: a* and b* lose their sign. Refused.
- 16-bit grey whose 0 means white is not inverted, 8-bit grey is. Inverted here.
- 12-bit grey stays in 0..4095 of a 16-bit mode. Scaled here.
- signed 8-bit samples are taken for unsigned. Refused, as those of 16 bits are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _ROWS_PER_STRIP, _PLANAR = 258, 259, 262, 277, 278, 284
_STRIP_OFFSETS, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 273, 322, 323, 324, 338, 339
_UNCOMPRESSED, _SEPARATE, _SIGNED, _PREMULTIPLIED = 1, 2, 2, 1
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK, _LAB = 0, 1, 2, 5, 8


class TiffError(ValueError):
    """A kind of TIFF that is refused; the text is a predicate ("has ...")."""


def is_tiff(data: bytes) -> bool:
    """Return whether the content begins as a TIFF or BigTIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def load_tiff(image: Image.Image, data: bytes) -> Image.Image:
    """Load a TIFF that Pillow has opened, by itself where it is right.

    Args:
        image: Opened, not loaded.
        data: The file.

    Returns:
        The loaded image in a mode that ``metrics.files.images.convert_to_rgb`` takes.

    Raises:
        TiffError: If it is of a kind that is refused.
        ValueError: If it is damaged; or whatever Pillow raises on damage.
    """
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    bits, photometric = set(_listed(tags.get(_BITS, 1))), tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO)
    is_separate = tags.get(_PLANAR, 1) == _SEPARATE and (tags.get(_SAMPLES, 1) > 1 or bits == {16})
    if _SIGNED in _listed(tags.get(_SAMPLE_FORMAT, 1)) and (bits == {8} or is_separate):
        raise TiffError("has signed samples, of which none is stated to be white")
    if is_separate:
        if photometric == _LAB:
            raise TiffError("has CIELAB colours in separate planes")
        if tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED:
            if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK) or bits not in ({8}, {16}):
                raise TiffError(f"has separate planes of {max(bits)} bits in photometric interpretation {photometric}")
            return _join_planes(image, data, tags, bits.pop(), photometric)
    image.load()
    if image.mode.startswith("I;16"):
        if 12 in bits:
            return Image.fromarray((np.asarray(image) >> 4).astype(np.uint8))
        if photometric == _WHITE_IS_ZERO:
            return Image.fromarray((255 - (np.asarray(image) >> 8)).astype(np.uint8))
    return image


def _listed(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _join_planes(image: Image.Image, data: bytes, tags: Any, bits: int, photometric: int) -> Image.Image:
    """Read the planes that make the colour (the high byte of 16 bits), and merge them."""
    count = {_RGB: 3, _CMYK: 4}.get(photometric, 1)
    extra = _listed(tags.get(_EXTRA_SAMPLES, ()))
    mode = {3: "RGB", 4: "CMYK", 1: "L"}[count]
    if photometric == _RGB and extra[:1] == (_PREMULTIPLIED,):
        mode, count = "RGBa", 4
    if tags.get(_SAMPLES, 1) < count:
        raise ValueError(f"{tags.get(_SAMPLES, 1)} samples of {count}")
    big_endian = image.tag_v2.prefix == b"MM"  # type: ignore[attr-defined]
    dtype = np.dtype("u1") if bits == 8 else np.dtype(">u2" if big_endian else "<u2")
    planes = [(_read_plane(image.size, data, tags, number, dtype) >> (bits - 8)).astype(np.uint8) for number in range(count)]
    if photometric == _WHITE_IS_ZERO:
        planes = [255 - plane for plane in planes]
    if mode == "RGBa":  # Pillow's unpacker, which rounds otherwise than its conversion, reads interleaved files.
        return Image.frombytes("RGBA", image.size, np.stack(planes, axis=-1).tobytes(), "raw", mode)
    return Image.merge(mode, [Image.fromarray(plane) for plane in planes])


def _read_plane(size: tuple[int, int], data: bytes, tags: Any, number: int, dtype: np.dtype) -> np.ndarray:
    """Return one plane (H, W), put together from its strips or tiles."""
    width, height = size
    is_tiled = _TILE_OFFSETS in tags
    across, down = (
        (tags[_TILE_WIDTH], tags[_TILE_HEIGHT]) if is_tiled else (width, min(tags.get(_ROWS_PER_STRIP, height), height))
    )
    if across < 1 or down < 1:
        raise ValueError(f"pieces of {across} x {down} pixels")
    columns, rows = -(-width // across), -(-height // down)
    offsets = _listed(tags[_TILE_OFFSETS if is_tiled else _STRIP_OFFSETS])[number * columns * rows :]
    if len(offsets) < columns * rows:
        raise ValueError(f"plane {number} has {len(offsets)} pieces of {columns * rows}")
    plane = np.empty((height, width), dtype)
    for piece in range(columns * rows):
        top, left = piece // columns * down, piece % columns * across
        stored = down if is_tiled else min(down, height - top)  # A tile is padded to its size, a last strip is not.
        if offsets[piece] + stored * across * dtype.itemsize > len(data):
            raise ValueError(f"plane {number} is truncated")
        values = np.frombuffer(data, dtype, stored * across, offsets[piece]).reshape(stored, across)
        plane[top : top + stored, left : left + across] = values[: height - top, : width - left]
    return plane
