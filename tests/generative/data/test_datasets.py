"""Datasets on generated files: exact pixels, labels, and one clear sentence for each kind of bad input."""

from __future__ import annotations

import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from generative.core.errors import UserError
from generative.data import CIFAR10Dataset, DigitsDataset, ImageFolderDataset, ParquetDataset, check_images
from generative.data.base import hash_parts
from generative.data.decode import decode_image, image_to_tensor
from generative.data.image_files import ImageFilesDataset

RNG_SEED = 0


def random_pixels(count: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(RNG_SEED).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def chw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


# --- digits ---------------------------------------------------------------------------------------------------------------


def test_digits_splits_are_disjoint_stratified_and_complete() -> None:
    train, test = DigitsDataset("train"), DigitsDataset("test")
    assert (len(train), len(test)) == (1297, 500)
    assert torch.bincount(test.labels).tolist() == [50] * 10
    from sklearn.datasets import load_digits

    bunch = load_digits()
    expected = np.rint(bunch.images * 255 / 16).astype(np.uint8)
    together = torch.cat([train.images_uint8(), test.images_uint8()])[:, 0].numpy()
    assert sorted(map(bytes, together)) == sorted(map(bytes, expected))  # nothing lost, nothing twice
    assert torch.equal(train.image(5)[0], train.image(5)[2])
    assert train.fingerprint != test.fingerprint
    assert train.fingerprint == DigitsDataset("train").fingerprint


def test_digits_split_is_pinned() -> None:
    """Published figures rest on this split."""
    assert DigitsDataset("test").fingerprint == "34837afe2c0ad879f6e41d357e871635"


def test_digits_at_other_sizes() -> None:
    native = DigitsDataset("test").image(0)
    nearest = DigitsDataset("test", image_size=16, interpolation="nearest").image(0)
    assert torch.equal(nearest, native.repeat_interleave(2, 1).repeat_interleave(2, 2))
    smooth = DigitsDataset("test", image_size=16).image(0)
    assert smooth.shape == (3, 16, 16)
    block_means = smooth.float().view(3, 8, 2, 8, 2).mean((2, 4))
    assert (block_means - native).abs().mean() < 20  # the same picture, not a shifted or mirrored one
    assert (block_means.flip(-1) - native).abs().mean() > 20
    with pytest.raises(UserError, match="at least 8"):
        DigitsDataset(image_size=7)
    with pytest.raises(UserError, match="split"):
        DigitsDataset(split="val")  # type: ignore[arg-type]


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install triptych\[quickstart\]"):
        DigitsDataset()


# --- image folder ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes cat (2 images, one nested, one upper case) and dog (1 grey), with a hidden file and a text file beside them."""
    root = tmp_path / "images"
    (root / "dog").mkdir(parents=True)
    (root / "cat" / "deep").mkdir(parents=True)
    pixels = random_pixels(2)
    Image.fromarray(pixels[0]).save(root / "cat" / "b.PNG", "PNG")
    Image.fromarray(pixels[1]).save(root / "cat" / "deep" / "a.png")
    Image.fromarray(np.full((8, 12), 77, np.uint8)).save(root / "dog" / "x.Jpeg", "JPEG")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "._b.png").write_bytes(b"")
    (root / ".cache").mkdir()
    return root


@pytest.mark.parametrize("cache", [False, True])
def test_folder_gives_exact_pixels_and_sorted_classes(folder: Path, cache: bool) -> None:
    dataset = ImageFolderDataset(folder, image_size=8, num_classes=2, cache=cache)
    assert dataset.class_names == ["cat", "dog"] and dataset.has_class_names
    assert (len(dataset), dataset.num_classes, dataset.labels.tolist()) == (3, 2, [0, 0, 1])
    pixels = random_pixels(2)
    assert torch.equal(dataset.image(0), chw(pixels[0]))
    assert torch.equal(dataset.image(1), chw(pixels[1]))
    assert dataset.image(2).shape == (3, 8, 8) and (dataset.image(2) == 77).all()
    assert dataset.label(2) == 1
    assert dataset.images_uint8().shape == (3, 3, 8, 8)
    assert torch.equal(dataset.images([2, 0])[1], chw(pixels[0]))
    image, label = dataset[0]
    assert label == 0 and torch.equal(image, dataset.image(0))
    image.zero_()
    assert torch.equal(dataset.image(0), chw(pixels[0]))  # a caller's writing does not reach the cache
    assert ImageFolderDataset(folder, image_size=8).num_classes == 2
    with pytest.raises(IndexError):
        dataset.image(3)


def test_folder_fingerprint_follows_the_content_not_the_place(folder: Path) -> None:
    before = ImageFolderDataset(folder, image_size=8).fingerprint
    moved = folder.rename(folder.parent / "moved")
    assert ImageFolderDataset(moved, image_size=8).fingerprint == before
    assert ImageFolderDataset(moved, image_size=16).fingerprint != before
    (moved / "dog" / "x.Jpeg").rename(moved / "cat" / "x.Jpeg")
    Image.fromarray(random_pixels(1)[0]).save(moved / "dog" / "new.png")
    assert ImageFolderDataset(moved, image_size=8).fingerprint != before


def test_files_of_equal_names_and_sizes_are_not_equal_images(tmp_path: Path) -> None:
    for name, pixels in zip(("one", "other"), random_pixels(2), strict=True):
        for label in ("cat", "dog"):
            (tmp_path / name / label).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / name / label / "x.bmp")
    one, other = (ImageFolderDataset(tmp_path / name, image_size=8) for name in ("one", "other"))
    assert one.fingerprint != other.fingerprint
    before = ImageFilesDataset([tmp_path / "one"], 8).fingerprint
    (tmp_path / "one" / "cat" / "x.bmp").write_bytes((tmp_path / "other" / "cat" / "x.bmp").read_bytes())
    assert ImageFilesDataset([tmp_path / "one"], 8).fingerprint != before


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("cache", [False, True])
def test_a_truncated_image_among_good_ones_is_named_at_start(folder: Path, suffix: str, cache: bool) -> None:
    path = folder / "dog" / f"broken{suffix}"
    Image.fromarray(random_pixels(1, size=64)[0]).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UserError, match=rf"broken\{suffix}' is truncated or corrupt; remove or replace it"):
        ImageFolderDataset(folder, image_size=8, cache=cache)


def test_corrupt_images_are_listed_and_raise_when_read(folder: Path) -> None:
    (folder / "cat" / "c.png").write_bytes(b"this is not a picture")
    png_bytes = bytearray(png(random_pixels(1, size=32)[0]))
    png_bytes[len(png_bytes) // 2] ^= 0xFF  # a flipped byte: the check sum tells
    (folder / "dog" / "d.png").write_bytes(png_bytes)
    dataset = ImageFolderDataset(folder, image_size=8, verify=False)
    bad = check_images(dataset, workers=2)
    assert [Path(image.name).name for image in bad] == ["c.png", "d.png"]
    assert [image.index for image in bad] == [1, 3]
    assert "c.png" in bad[0].reason
    with pytest.raises(UserError, match="c.png' is truncated or corrupt"):
        dataset.image(1)
    with pytest.raises(UserError, match="and 1 more of 5 images"):
        ImageFolderDataset(folder, image_size=8)


@pytest.mark.parametrize("cache", [False, True])
def test_a_wrong_check_sum_is_named(folder: Path, cache: bool) -> None:
    content = bytearray(png(random_pixels(1)[0]))
    content[content.index(b"IEND") - 5] ^= 0xFF  # last byte of the pixel data's CRC; the pixels themselves still decode
    (folder / "dog" / "sum.png").write_bytes(content)
    with pytest.raises(UserError, match="sum.png' is truncated or corrupt"):
        ImageFolderDataset(folder, image_size=8, cache=cache)


def test_a_file_that_vanishes_is_named(folder: Path) -> None:
    dataset = ImageFolderDataset(folder, image_size=8)
    (folder / "cat" / "b.PNG").unlink()
    with pytest.raises(UserError, match="b.PNG' cannot be read"):
        dataset.image(0)


def test_bad_folders_are_explained(folder: Path, tmp_path: Path) -> None:
    def refused(root: Path, message: str, num_classes: int | None = None) -> None:
        with pytest.raises(UserError, match=message):
            ImageFolderDataset(root, image_size=8, num_classes=num_classes)

    refused(tmp_path / "nowhere", "does not exist")
    refused(folder / "cat" / "b.PNG", "is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is empty")
    refused(folder / "cat" / "deep", "has images but no class folders")
    refused(folder, "has 2 class folders, and num_classes of the data is 1; leave num_classes out", num_classes=1)
    refused(folder, "has 2 class folders, and num_classes of the data is 3; leave num_classes out", num_classes=3)
    (folder / "cat" / "zero.jpg").touch()
    refused(folder, r"zero.jpg' is empty \(0 bytes\)")
    (folder / "cat" / "zero.jpg").unlink()
    (folder / "dangling").mkdir()
    (folder / "dangling" / "link.png").symlink_to(tmp_path / "gone.png")
    refused(folder, "link.png' cannot be read")
    (folder / "dangling" / "link.png").unlink()
    refused(folder, "dangling' has no images")


@pytest.mark.parametrize("image_size", [0, -4])
def test_image_size_must_be_positive(folder: Path, image_size: int) -> None:
    with pytest.raises(UserError, match="image_size must be at least 1"):
        ImageFolderDataset(folder, image_size=image_size)


def test_modes_other_than_rgb(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        if path.is_file():
            path.unlink()
    Image.fromarray(np.full((8, 8), 257 * 99, np.uint16)).save(folder / "cat" / "deep.png")
    Image.fromarray(np.full((8, 8, 4), (9, 8, 7, 0), np.uint8)).save(folder / "cat" / "rgba.png")
    Image.new("P", (8, 8), 0).save(folder / "dog" / "palette.png")
    dataset = ImageFolderDataset(folder, image_size=8)
    assert (dataset.image(0) == 99).all()
    assert dataset.image(1)[:, 0, 0].tolist() == [9, 8, 7]
    Image.fromarray(np.zeros((8, 8), np.float32)).save(folder / "dog" / "float.tiff")
    with pytest.raises(UserError, match="float.tiff' has 32-bit pixels"):
        ImageFolderDataset(folder, image_size=8)


# --- parquet --------------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, images: list[bytes | None], labels: list[int | None], names: list[str] | None = None) -> Path:
    rows = [None if data is None else {"bytes": data, "path": None} for data in images]
    table = pa.table(
        {
            "image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array(labels, pa.int64()),
        }
    )
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=2)
    return path


def test_parquet_files_in_order_with_names(tmp_path: Path) -> None:
    pixels = random_pixels(5)
    images: list[bytes | None] = [png(image) for image in pixels]
    write_parquet(tmp_path / "train-00000.parquet", images[:3], [2, 0, 1], ["ant", "bee", "cow"])
    write_parquet(tmp_path / "train-00001.parquet", images[3:], [1, 1])
    for path in (tmp_path, str(tmp_path / "train-*.parquet"), [str(p) for p in sorted(tmp_path.iterdir())]):
        dataset = ParquetDataset(path, image_size=8)
        assert dataset.labels.tolist() == [2, 0, 1, 1, 1]
        assert dataset.class_names == ["ant", "bee", "cow"]
        assert all(torch.equal(dataset.image(i), chw(pixels[i])) for i in range(5))
    assert dataset.source_name(4).endswith("train-00001.parquet row 1")
    assert torch.equal(ParquetDataset(tmp_path, 8, cache=True).images_uint8(), dataset.images_uint8())
    fingerprint = dataset.fingerprint
    assert ParquetDataset(tmp_path, 8).fingerprint == fingerprint
    write_parquet(tmp_path / "train-00001.parquet", images[3:], [1, 2])
    assert ParquetDataset(tmp_path, 8).fingerprint != fingerprint
    write_parquet(tmp_path / "test-00000.parquet", images[:1], [0])
    with pytest.raises(UserError, match="mixes the splits test and train"):
        ParquetDataset(tmp_path, 8)


def test_parquet_with_plain_bytes_and_other_column_names(tmp_path: Path) -> None:
    pixels = random_pixels(2)
    table = pa.table({"jpg": [png(image) for image in pixels], "cls": pa.array([0, 1], pa.uint8())})
    pq.write_table(table, tmp_path / "x.parquet")
    dataset = ParquetDataset(tmp_path / "x.parquet", 8, image_column="jpg", label_column="cls")
    assert torch.equal(dataset.image(1), chw(pixels[1]))
    assert dataset.labels.tolist() == [0, 1]


def test_bad_parquet_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    images: list[bytes | None] = [png(image) for image in random_pixels(4)]

    def refused(message: str, num_classes: int | None = None, **columns: str) -> None:
        with pytest.raises(UserError, match=message):
            ParquetDataset(path, 8, num_classes=num_classes, **columns)

    refused("no parquet file at")
    write_parquet(path, images, [0, 1, 2, 5])
    refused(r"x.parquet row 3 has class label 5, but num_classes is 5 \(labels 0 to 4\)", num_classes=5)
    refused("no column 'img'; its columns are image, label", image_column="img")
    refused("must hold image bytes", image_column="label")
    refused("must hold integers", label_column="image")
    write_parquet(path, images, [0, 1, -1, 1])
    refused("row 2 has class label -1")
    write_parquet(path, images, [0, 1, None, 1])
    refused("column 'label' .* is empty in row 2")
    write_parquet(path, [*images[:3], None], [0, 1, 1, 1])
    refused("column 'image' .* is empty in row 3")
    write_parquet(path, images, [0, 1, 1, 1], ["a", "b", "c"])
    refused("names 3 classes, and num_classes of the data is 2", num_classes=2)
    write_parquet(tmp_path / "y.parquet", images, [0, 1, 1, 1], ["b", "a", "c"])
    with pytest.raises(UserError, match="y.parquet' names its classes b, a, c, and a file before it a, b, c"):
        ParquetDataset([str(path), str(tmp_path / "y.parquet")], 8)
    with pytest.raises(UserError, match="names its classes a, b, c, which are not CIFAR-10's"):
        CIFAR10Dataset(path)
    write_parquet(path, [images[0], images[1], images[2][:-60], images[3]], [0, 1, 1, 1])  # type: ignore[index]
    refused("x.parquet row 2' is truncated or corrupt")
    write_parquet(path, [], [])
    refused("has no rows")
    path.write_bytes(b"PAR1 and then nothing")
    refused("cannot be read")


# --- CIFAR-10 -------------------------------------------------------------------------------------------------------------


def write_batches(root: Path, per_file: int = 2) -> np.ndarray:
    """Five training files and a test file; returns all training rows, (N, 3072)."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rows = np.random.default_rng(RNG_SEED).integers(0, 256, (5 * per_file, 3072), dtype=np.uint8)
    for number in range(5):
        part = rows[number * per_file : (number + 1) * per_file]
        (folder / f"data_batch_{number + 1}").write_bytes(pickle.dumps({b"data": part, b"labels": [number] * per_file}, 2))
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": rows[:1], b"labels": [9]}, 2))
    return rows


def test_cifar_batches(tmp_path: Path) -> None:
    rows = write_batches(tmp_path)
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        dataset = CIFAR10Dataset(root)
        assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert dataset.class_names[3] == "cat" and dataset.num_classes == 10 and not dataset.is_official
        assert torch.equal(dataset.images_uint8(), torch.from_numpy(rows).view(-1, 3, 32, 32))
    assert CIFAR10Dataset(tmp_path, "test").labels.tolist() == [9]
    assert CIFAR10Dataset(tmp_path, image_size=16, cache=False).image(0).shape == (3, 16, 16)
    with pytest.raises(UserError, match="MD5"):
        CIFAR10Dataset(tmp_path, require_official=True)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(UserError, match="lacks data_batch_4"):
        CIFAR10Dataset(tmp_path)


def test_cifar_batch_labels_are_checked(tmp_path: Path) -> None:
    write_batches(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 10, 0]}))
    with pytest.raises(UserError, match="data_batch_2 row 1 has class label 10"):
        CIFAR10Dataset(tmp_path)


@pytest.mark.parametrize("name", ["cifar10-train.parquet", "train-0-of-1.parquet", "plain_text/train-0-of-1.parquet"])
@pytest.mark.parametrize("column", ["image", "img"])
def test_cifar_parquet(tmp_path: Path, name: str, column: str) -> None:
    pixels = random_pixels(3, size=32)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write_parquet(path, [png(image) for image in pixels], [9, 0, 4])
    pq.write_table(pq.read_table(path).rename_columns([column, "label"]), path)
    for root in (tmp_path, path):
        dataset = CIFAR10Dataset(root)
        assert dataset.labels.tolist() == [9, 0, 4]
        assert torch.equal(dataset.image(2), chw(pixels[2]))
    with pytest.raises(UserError, match="no CIFAR-10 test split"):
        CIFAR10Dataset(tmp_path, "test")


def test_cifar_prefers_the_original_pixels(tmp_path: Path) -> None:
    write_batches(tmp_path)
    write_parquet(tmp_path / "cifar10-train.parquet", [png(random_pixels(1, size=32)[0])], [7])
    assert len(CIFAR10Dataset(tmp_path)) == 10
    assert CIFAR10Dataset(tmp_path, layout="parquet").labels.tolist() == [7]


def test_cifar_bad_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        CIFAR10Dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"expected cifar-10-batches-py/data_batch_1, cifar10-train.parquet or train-\*.parquet"):
        CIFAR10Dataset(tmp_path)
    (tmp_path / "file.txt").touch()
    with pytest.raises(UserError, match="must be a folder or a .parquet file"):
        CIFAR10Dataset(tmp_path / "file.txt")
    (tmp_path / "cifar10-train.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        CIFAR10Dataset(tmp_path)


# --- all ------------------------------------------------------------------------------------------------------------------


def test_hash_parts_keeps_boundaries_apart() -> None:
    assert hash_parts("ab", "c") != hash_parts("a", "bc")
    assert hash_parts(1) != hash_parts("1")


@pytest.mark.parametrize("dataset_class", [DigitsDataset, CIFAR10Dataset, ImageFolderDataset, ParquetDataset])
def test_constructors_serve_as_config_schemas(dataset_class: type, tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(dataset_class, "dataset")
    root = "path" if dataset_class is ParquetDataset else "root"
    arguments = [] if dataset_class is DigitsDataset else [f"--dataset.{root}={tmp_path}"]
    assert parser.parse_args([*arguments, "--dataset.image_size=16"]).dataset.image_size == 16


def test_training_and_scoring_decode_alike() -> None:
    """Or the reference of a score would not be the images that were trained on."""
    from metrics.files.images import decode_image as decode_for_metrics

    levels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    images = [Image.fromarray(levels), *(Image.fromarray(colours).convert(mode) for mode in ("RGBA", "RGB", "L", "LA", "1"))]
    for image in images:
        data = io.BytesIO()
        image.save(data, "PNG")
        ours = image_to_tensor(decode_image(data.getvalue(), "x"))
        assert torch.equal(ours, decode_for_metrics(data.getvalue(), "x"))
