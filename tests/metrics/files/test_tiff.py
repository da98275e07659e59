"""TIFF over depths, planes, byte orders, strips and tiles: the pixels of the same image in 8 bits, or one sentence."""

from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generative.core.errors import UserError
from generative.data.decode import verify_image
from metrics.files.feature_cache import FeatureCache
from metrics.files.images import ImageError, decode_image

_HEIGHT, _WIDTH = 40, 24
_RGB, _CMYK, _LAB, _WHITE_IS_ZERO, _BLACK_IS_ZERO = 2, 5, 8, 0, 1


def _tiff(
    samples: np.ndarray,
    order: str = "<",
    separate: bool = True,
    tiled: bool = False,
    photometric: int = _RGB,
    big: bool = False,
    **more: tuple[int, ...],
) -> bytes:
    """Return an uncompressed TIFF of samples (H, W, bands): strips of 16 rows or tiles of 16 x 16."""
    height, width, bands = samples.shape
    stored = samples.astype(samples.dtype.newbyteorder(order))
    pieces = []
    for plane in np.moveaxis(stored, -1, 0)[..., None] if separate else [stored]:
        if tiled:
            padded = np.pad(plane, ((0, -height % 16), (0, -width % 16), (0, 0)))
            places = itertools.product(range(0, height, 16), range(0, width, 16))
            pieces += [padded[top : top + 16, left : left + 16].tobytes() for top, left in places]
        else:
            pieces += [plane[top : top + 16].tobytes() for top in range(0, height, 16)]
    start = 16 if big else 8
    offsets = tuple(itertools.accumulate([start, *map(len, pieces)]))
    tags = {
        256: (width,), 257: (height,), 258: (8 * samples.dtype.itemsize,) * bands, 259: (1,), 262: (photometric,),
        277: (bands,), 284: (2 if separate else 1,), 339: ({"u": 1, "i": 2, "f": 3}[samples.dtype.kind],) * bands,
    }  # fmt: skip
    if bands > (4 if photometric == _CMYK else 3 if photometric in (_RGB, _LAB) else 1):
        tags[338] = more.get("extra", (2,))
    layout = {322: (16,), 323: (16,), 324: offsets[:-1], 325: tuple(map(len, pieces))}
    tags |= layout if tiled else {273: offsets[:-1], 278: (16,), 279: tuple(map(len, pieces))}
    number, head = ("Q", "HHQ") if big else ("I", "HHI")
    entries, extra, room = b"", b"", struct.calcsize(number)
    directory = offsets[-1]
    after = directory + struct.calcsize("=Q" if big else "=H") + len(tags) * struct.calcsize("=" + head + number) + room
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > room:
            packed, extra = struct.pack(order + number, after + len(extra)), extra + packed
        entries += struct.pack(order + head, tag, 4, len(values)) + packed.ljust(room, b"\0")
    mark = b"II" if order == "<" else b"MM"
    header = mark + (struct.pack(f"{order}HHHQ", 43, 8, 0, directory) if big else struct.pack(f"{order}HI", 42, directory))
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    return header + b"".join(pieces) + count + entries + bytes(room) + extra


def _pixels(bands: int) -> np.ndarray:
    return np.random.default_rng(bands).integers(0, 256, (_HEIGHT, _WIDTH, bands), dtype=np.uint8)


def _decoded(data: bytes) -> np.ndarray:
    return decode_image(data, "x.tif").permute(1, 2, 0).numpy()


@pytest.mark.parametrize("bands", [1, 3, 4, 5])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_depths_and_planes_show_the_same_pixels(bands: int, order: str, tiled: bool, separate: bool) -> None:
    pixels = _pixels(bands)
    expected = np.repeat(pixels, 3, axis=2) if bands == 1 else pixels[..., :3]
    photometric = _BLACK_IS_ZERO if bands == 1 else _RGB
    for deep in (pixels, pixels.astype(np.uint16) * 257):
        data = _tiff(deep, order, separate, tiled, photometric, extra=(0, 0) if bands == 5 else (2,))
        try:
            assert np.array_equal(_decoded(data), expected)
        except ImageError as error:
            assert bands == 5, "others are read"
            assert "a TIFF of a kind that Pillow does not read" in str(error)


@pytest.mark.parametrize(
    ("case", "order"),
    [*itertools.product(["premultiplied", "cmyk"], ["<", ">"]), ("big", "<")],  # Pillow knows no BigTIFF of the other order.
)
def test_planes_give_what_interleaved_samples_give(case: str, order: str) -> None:
    pixels = _pixels(3 if case == "big" else 4)
    options = {"premultiplied": {"extra": (1,)}, "cmyk": {"photometric": _CMYK}, "big": {"big": True}}[case]
    interleaved = _decoded(_tiff(pixels, order, False, **options))  # type: ignore[arg-type]
    assert np.array_equal(_decoded(_tiff(pixels.astype(np.uint16) * 257, order, True, **options)), interleaved)  # type: ignore[arg-type]


def test_grey_shows_what_its_depth_and_white_say() -> None:
    pixels = _pixels(1)
    white = [_tiff(deep, "<", False, photometric=_WHITE_IS_ZERO) for deep in (pixels, pixels.astype(np.uint16) * 257)]
    assert np.array_equal(_decoded(white[0]), _decoded(white[1]))
    assert np.array_equal(_decoded(white[0])[..., :1], 255 - pixels)
    twelve = bytearray(_tiff(np.array([[[0], [0x08], [0x00], [0xFF], [0xF1], [0x23]]], np.uint8), "<", False, photometric=1))
    for tag, value in ((256, 4), (258, 12)):  # Four pixels of 12 bits: 0x000, 0x800, 0xFFF, 0x123.
        entry = bytes(twelve).index(struct.pack("<HHI", tag, 4, 1)) + 8
        twelve[entry : entry + 4] = struct.pack("<I", value)
    twelve[8:14] = bytes([0x00, 0x08, 0x00, 0xFF, 0xF1, 0x23])
    assert _decoded(bytes(twelve))[0, :, 0].tolist() == [0x00, 0x80, 0xFF, 0x12]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_tiff(_pixels(3), photometric=_LAB), "has CIELAB colours in separate planes: save it with 8 or 16 bits"),
        (_tiff(_pixels(1).astype(np.int8), "<", False, photometric=1), "has signed samples"),
        (_tiff(_pixels(3).astype(np.uint32)), "a TIFF of a kind that Pillow does not read, or is corrupt: save it"),
        (_tiff(_pixels(3).astype(np.float32)), "a TIFF of a kind that Pillow does not read"),
        (_tiff(_pixels(2).astype(np.float32), photometric=1), "a TIFF of a kind that Pillow does not read"),
        (_tiff(_pixels(3).astype(np.uint16))[:4000], "corrupt"),
        (b"II*\0" + bytes(40), "corrupt"),
    ],
)
def test_other_kinds_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode_image(data, "x.tif")
    with pytest.raises(UserError, match="x.tif"):
        verify_image(data, "x.tif")


def test_planes_out_of_the_file_are_truncated() -> None:
    data = bytearray(_tiff(_pixels(3).astype(np.uint16)))
    offsets = struct.unpack("<I", data[data.index(struct.pack("<HHI", 273, 4, 9)) + 8 :][:4])[0]
    data[offsets : offsets + 4] = struct.pack("<I", len(data) - 10)
    with pytest.raises(ImageError, match=r"truncated or corrupt \(plane 0 is truncated\)"):
        decode_image(bytes(data), "x.tif")


def test_compressed_planes_are_right_as_they_are() -> None:
    """libtiff puts them together; Pillow writes only interleaved files, so that its own are checked here."""
    pixels = Image.fromarray(_pixels(3))
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        buffer = io.BytesIO()
        pixels.save(buffer, "TIFF", compression=compression)
        assert torch.equal(decode_image(buffer.getvalue(), "x"), torch.from_numpy(np.array(pixels)).permute(2, 0, 1))


def test_features_of_other_decoding_rules_are_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path)
    before = cache.folder("images", {"extractor": "x"}, 256)
    monkeypatch.setattr("metrics.files.feature_cache.DECODER_VERSION", "an older one")
    assert cache.folder("images", {"extractor": "x"}, 256) != before
