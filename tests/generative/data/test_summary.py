"""What is found in a folder: orientation, splits, files that are left out, and the lines that say it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generative.core.errors import UserError
from generative.data.decode import TURNS, decode_image, verify_image
from generative.data.digits import DigitsDataset
from generative.data.image_folder import ImageFolderDataset
from generative.data.random_crop import RandomCropDataset
from generative.data.summary import describe_data, summarise_data

UPRIGHT = np.kron(np.array([[0, 255], [120, 120], [200, 40]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8))  # 48 x 32


def oriented(value: int, kind: str) -> bytes:
    """An image file that is stored so that a viewer, by its EXIF, shows ``UPRIGHT``."""
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = Image.fromarray(UPRIGHT).convert("RGB")
    if value in TURNS:
        stored = stored.transpose(back.get(value, TURNS[value]))
    exif = Image.Exif()
    exif[0x0112] = value
    buffer = io.BytesIO()
    stored.save(buffer, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.parametrize("value", [1, *TURNS, 9])
def test_images_are_turned_upright(kind: str, value: int) -> None:
    data = oriented(value, kind)
    image = decode_image(data, "x")
    assert image.mode == "RGB" and np.abs(np.asarray(image)[..., 0].astype(int) - UPRIGHT).max() <= 12  # JPEG: lossy
    if kind != "TIFF":  # Pillow turns it while it decodes
        assert verify_image(data, "x") == (value in TURNS)


def test_damaged_exif_costs_no_image() -> None:
    buffer = io.BytesIO()
    Image.fromarray(UPRIGHT).convert("RGB").save(buffer, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\1\2")
    assert np.array_equal(np.asarray(decode_image(buffer.getvalue(), "x"))[..., 0], UPRIGHT)
    assert not verify_image(buffer.getvalue(), "x")


def write(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name, "PNG")


def test_what_was_found_is_said(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.png", "cat/2.png", "cat/anim.gif", "dog/1.png", "dog/.hidden.png", "dog/y.avif", "beside.png")
    (tmp_path / "dog" / "side.jpg").write_bytes(oriented(6, "JPEG"))
    data = ImageFolderDataset(tmp_path, 8)
    lines = summarise_data(data, "data")
    assert lines[0] == "data: 4 images of 2 classes (cat, dog), 2 of each"
    assert "2 files of formats that are not read here (1 .avif, 1 .gif)" in lines[1]
    assert "left out 1 image outside the class folders" in lines[1] and "turned 1 image upright" in lines[1]
    found = describe_data(RandomCropDataset(data))
    assert found["class_names"] == ["cat", "dog"] and found["images_per_class"] == [2, 2] and found["turned_upright"] == 1
    assert found["left_out"] == {".gif": 1, ".avif": 1, "outside the class folders": 1}
    assert summarise_data(DigitsDataset(), "data") == ["data: 1297 images of 10 classes, 124 to 133 of each"]


@pytest.mark.parametrize(
    ("folders", "chosen"),
    [
        (("train/cat/1.png", "test/cat/1.png"), "train"),
        (("Training/1.png", "val/1.png"), "Training"),
        (("dev/1.png", "test/1.png"), "dev"),
        (("train/cat/1.png", "train/dog/1.png"), "train"),
    ],
)
def test_a_root_of_splits_is_refused(tmp_path: Path, folders: tuple[str, ...], chosen: str) -> None:
    write(tmp_path, *folders)
    with pytest.raises(UserError, match=f"are splits of a data set, not classes: .*; give '{tmp_path}/{chosen}'"):
        ImageFolderDataset(tmp_path, 8)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train/1.png", "val/1.png", "bus/1.png"), "train, val of '.*' are trained as classes"),
        (("train/1.png", "bus/1.png"), ""),
        (("train/1.png",), ""),
        (("train_station/1.png", "test tube/1.png"), ""),
    ],
)
def test_classes_that_are_called_as_splits(tmp_path: Path, folders: tuple[str, ...], said: str) -> None:
    write(tmp_path, *folders)
    notices = ImageFolderDataset(tmp_path, 8).notices
    assert (len(notices) == 1 and re.match(said, notices[0])) if said else notices == []
