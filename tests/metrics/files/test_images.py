from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import picture

from metrics.files.images import ImageError, decode_image, read_image


def _png(mode: str, pixels: np.ndarray, **kwargs: object) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()).save(buffer, "PNG", **kwargs)
    return buffer.getvalue()


def test_every_kind_becomes_rgb_by_its_rule() -> None:
    rgb = picture(1)
    alpha = np.dstack([rgb, np.zeros((6, 9), np.uint8)])
    grey = rgb[..., 0]
    assert np.array_equal(decode_image(_png("RGBA", alpha), "x").permute(1, 2, 0).numpy(), rgb), "alpha is dropped"
    assert np.array_equal(decode_image(_png("L", grey), "x").numpy(), np.stack([grey] * 3))
    deep = (grey.astype(np.uint16) << 8) | 0x7F
    assert np.array_equal(decode_image(_png("I;16", deep), "x").numpy(), np.stack([grey] * 3)), "16 bits: the high byte"
    palette = Image.fromarray(rgb).quantize(8)
    for image, image_format in ((palette, "PNG"), (Image.fromarray(rgb).convert("CMYK"), "TIFF"), (palette, "GIF")):
        buffer = io.BytesIO()
        image.save(buffer, image_format)
        assert np.array_equal(decode_image(buffer.getvalue(), "x").permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
    bits = io.BytesIO()
    Image.fromarray(grey > 127).save(bits, "PNG")
    assert set(decode_image(bits.getvalue(), "x").unique().tolist()) == {0, 255}


def test_first_frame_and_stored_orientation_count() -> None:
    frames = [Image.fromarray(picture(seed)).convert("L") for seed in (0, 1)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_image(buffer.getvalue(), "x")[0].numpy(), np.asarray(frames[0]))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    rotated = io.BytesIO()
    Image.fromarray(picture(2)).save(rotated, "PNG", exif=exif)
    assert decode_image(rotated.getvalue(), "x").shape == (3, 6, 9)


def test_pixels_with_no_stated_white_are_refused() -> None:
    for mode, dtype, value in (("F", np.float32, 0.5), ("I", np.int32, 1 << 20)):
        buffer = io.BytesIO()
        Image.fromarray(np.full((3, 3), value, dtype), mode=mode).save(buffer, "TIFF")
        with pytest.raises(ImageError, match=rf"image x\.tif has 32-bit pixels \(mode {mode}\) with no stated white: save it"):
            decode_image(buffer.getvalue(), "x.tif")


def test_files_that_are_no_image_are_named(tmp_path: Path) -> None:
    good = _png("RGB", picture(0, 40, 40))
    for content, words in (
        (good[: len(good) // 2], r"truncated or corrupt \(.+\)"),
        (b"", r"empty \(0 bytes\)"),
        (b"garbage", "truncated or corrupt .not an image that Pillow can read."),
    ):
        (tmp_path / "2.png").write_bytes(content)
        with pytest.raises(ImageError, match=rf"^image .*2\.png is {words}: remove or replace it\.$"):
            read_image(tmp_path / "2.png")
    with pytest.raises(ImageError, match=r"absent\.png can't be read \(No such file or directory\)"):
        read_image(tmp_path / "absent.png")


def test_a_postscript_program_is_never_run() -> None:
    """Pillow would hand it to Ghostscript, whatever the file is called."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="not an image"):
        decode_image(program, "x.png")


def test_pixels_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _png("RGB", picture(0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ImageError, match="has too many pixels to be decoded safely"):
        decode_image(data, "x.png")


def test_animations_give_their_first_frame() -> None:
    frames = [Image.fromarray(picture(seed)) for seed in range(3)]
    for image_format, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        buffer = io.BytesIO()
        frames[0].save(buffer, image_format, save_all=True, append_images=frames[1:], **options)
        with Image.open(io.BytesIO(buffer.getvalue())) as opened:
            assert getattr(opened, "n_frames", 1) == 3
            expected = np.asarray(opened.convert("RGB"))
        assert np.array_equal(decode_image(buffer.getvalue(), "x").permute(1, 2, 0).numpy(), expected), image_format


def test_deep_grey_maps_are_read_by_their_high_byte() -> None:
    """Pillow opens 16-bit PGM as 32-bit integers, scaled to the header's white."""
    header = b"P5\n3 1\n1000\n" + b"".join(value.to_bytes(2, "big") for value in (0, 500, 1000))
    assert decode_image(header, "x.pgm")[0].tolist() == [[0, 128, 255]]


def _kinds() -> dict[str, bytes]:
    """Files of every kind whose pixels the three rivals agree on."""
    rgb = Image.fromarray(picture(4, 16, 12))
    alpha = Image.fromarray(np.dstack([picture(4, 16, 12), picture(5, 16, 12)[..., :1]]))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    palette_alpha = rgb.quantize(8)
    kinds = {
        "rgb": (rgb, "PNG", {}),
        "grey": (rgb.convert("L"), "PNG", {}),
        "grey-alpha": (alpha.convert("LA"), "PNG", {}),
        "alpha": (alpha, "PNG", {}),
        "palette": (rgb.quantize(8), "PNG", {}),
        "palette-transparent": (palette_alpha, "PNG", {"transparency": 3}),
        "bits": (rgb.convert("1"), "PNG", {}),
        "cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "ycbcr": (rgb.convert("YCbCr"), "TIFF", {}),
        "lab": (rgb.convert("LAB"), "TIFF", {}),
        "exif": (rgb, "JPEG", {"exif": rotated}),
        "progressive": (rgb, "JPEG", {"progressive": True}),
        "webp": (alpha, "WEBP", {}),
    }
    encoded = {}
    for name, (image, image_format, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, image_format, **options)
        encoded[name] = buffer.getvalue()
    encoded["deep-colour"] = b"P6\n1 1\n65535\n" + bytes([0x80, 0xFF, 0x7F, 0x80, 0xFF, 0xFF])
    return encoded


@pytest.mark.parametrize("kind", sorted(_kinds()))
def test_kinds_are_read_as_the_rivals_read_them(tmp_path: Path, kind: str) -> None:
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    fidelity = pytest.importorskip("torch_fidelity.datasets")
    resize_dataset = pytest.importorskip("cleanfid.utils").ResizeDataset
    path = tmp_path / "x.png"  # The name does not matter, the content does.
    path.write_bytes(_kinds()[kind])
    ours = read_image(path)
    assert torch.equal(torch.from_numpy(np.array(fid_score.ImagePathDataset([path])[0])).permute(2, 0, 1), ours)
    assert torch.equal(fidelity.ImagesPathDataset([str(path)])[0], ours)
    theirs = resize_dataset([str(path)], mode="clean")
    theirs.fn_resize = lambda pixels: pixels
    assert torch.equal(theirs[0], ours.float())


def test_deep_grey_is_where_we_differ_from_the_rivals(tmp_path: Path) -> None:
    """They turn nearly all of it white, which no one wants to score."""
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    theirs = np.array(fid_score.ImagePathDataset([tmp_path / "deep.png"])[0])
    assert (theirs == 255).mean() > 0.9
    assert np.array_equal(read_image(tmp_path / "deep.png")[0].numpy(), levels >> 8)
