from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.images import decode_image, list_images, read_image
from metrics.sources import FolderSource, NpzSource, ParquetSource, ZipSource, open_source


def _png(mode: str, pixels: np.ndarray, **kwargs: object) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()).save(buffer, "PNG", **kwargs)
    return buffer.getvalue()


def _rgb(seed: int, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)


def test_folder_is_searched_recursively_in_order(tmp_path: Path) -> None:
    for index, name in enumerate(["b.PNG", "a/z.JPEG", "a/b.Png", "A.png", "c/d/e.webp", "notes.txt", "._a.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.fromarray(_rgb(index, 4 + index)).save(path)
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["A.png", "a/b.Png", "a/z.JPEG", "b.PNG", "c/d/e.webp"]
    images = [image for batch in FolderSource(tmp_path).batches(2, num_workers=2) for image in batch]
    assert [tuple(image.shape) for image in images] == [(3, 7, 9), (3, 6, 9), (3, 5, 9), (3, 4, 9), (3, 8, 9)]
    assert torch.equal(images[3], torch.from_numpy(_rgb(0, 4)).permute(2, 0, 1))


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_linked_class_folders_count_once_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(_rgb(0)).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set" / "class").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "set")
    assert len(list_images(tmp_path / "set")) == 1


def test_every_kind_becomes_rgb_by_its_rule() -> None:
    rgb = _rgb(1)
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
    frames = [Image.fromarray(_rgb(seed)).convert("L") for seed in (0, 1)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_image(buffer.getvalue(), "x")[0].numpy(), np.asarray(frames[0]))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    rotated = io.BytesIO()
    Image.fromarray(_rgb(2)).save(rotated, "PNG", exif=exif)
    assert decode_image(rotated.getvalue(), "x").shape == (3, 6, 9)


def test_pixels_with_no_stated_white_are_refused() -> None:
    for mode, dtype, value in (("F", np.float32, 0.5), ("I", np.int32, 1 << 20)):
        buffer = io.BytesIO()
        Image.fromarray(np.full((3, 3), value, dtype), mode=mode).save(buffer, "TIFF")
        with pytest.raises(ValueError, match=r"image x\.tif holds 32-bit .* no stated white"):
            decode_image(buffer.getvalue(), "x.tif")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for index in range(4):
        Image.fromarray(_rgb(index, 40, 40)).save(tmp_path / f"{index}.png")
    good = (tmp_path / "2.png").read_bytes()
    for content, words in ((good[: len(good) // 2], "truncated"), (b"", "empty"), (b"garbage", "not an image")):
        (tmp_path / "2.png").write_bytes(content)
        for num_workers in (0, 2):
            with pytest.raises(ValueError, match=rf"image .*2\.png is .*{words}"):
                list(FolderSource(tmp_path).batches(3, num_workers))
    with pytest.raises(ValueError, match=r"absent\.png can't be read"):
        read_image(tmp_path / "absent.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow also remarks on some damaged tags.
def test_random_damage_never_escapes_as_another_error() -> None:
    rng = np.random.RandomState(0)
    originals = []
    for image_format in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(_rgb(3, 16, 16)).save(buffer, image_format)
        originals.append(buffer.getvalue())
    num_refused = 0
    for trial in range(300):
        data = bytearray(originals[trial % len(originals)])
        for position in rng.randint(0, len(data), 6):
            data[position] = rng.randint(256)
        data = data[: rng.randint(1, len(data) + 1)] if trial % 3 == 0 else data
        try:
            image = decode_image(bytes(data), "fuzzed")
            assert image.dtype == torch.uint8 and image.shape[0] == 3
        except ValueError as error:
            assert "image fuzzed" in str(error)
            num_refused += 1
    assert num_refused > 50


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_images(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no images \(looked for bmp, jpeg"):
        list_images(tmp_path)


def test_npz_batch_streams(tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "batch.npz", images, np.arange(7))
        source = NpzSource(tmp_path / "batch.npz")
        batches = list(source.batches(3))
        assert [len(batch) for batch in batches] == [3, 3, 1]
        read = torch.stack([image for batch in batches for image in batch])
        assert np.array_equal(read.permute(0, 2, 3, 1).numpy(), images)
        assert len(source) == 7


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "holds images: expected arr_0"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "dtype float32"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"shape \(2, 3, 4, 4\)"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "holds no images"),
        ({"arr_0": np.array([{}], dtype=object)}, "dtype object"),
    ],
)
def test_npz_of_something_else_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        NpzSource(tmp_path / "x.npz")


def test_damaged_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, np.zeros((6, 32, 32, 3), np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"x\.npz is not an npz file, or is truncated"):
        NpzSource(path)
    path.write_bytes(data[:5000] + b"\xff" + data[5001:])
    with pytest.raises(ValueError, match=r"x\.npz is corrupt"):
        list(NpzSource(path).batches(4))


def test_zip_and_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    encoded = [_png("RGB", _rgb(seed)) for seed in range(5)]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for index, data in reversed(list(enumerate(encoded))):
            archive.writestr(f"train/{index}.PNG", data)
        archive.writestr("readme.txt", "no image")
    rows = [{"bytes": data, "path": None} for data in encoded]
    parquet.write_table(pyarrow.table({"image": rows, "label": list(range(5))}), tmp_path / "x.parquet")
    for source in (ZipSource(tmp_path / "x.zip"), ParquetSource(tmp_path / "x.parquet")):
        assert len(source) == 5
        images = [image for batch in source.batches(2, num_workers=2) for image in batch]
        assert all(torch.equal(a, torch.from_numpy(_rgb(s)).permute(2, 0, 1)) for s, a in enumerate(images))
    parquet.write_table(pyarrow.table({"pixels": [1]}), tmp_path / "y.parquet")
    with pytest.raises(ValueError, match="has the columns pixels"):
        ParquetSource(tmp_path / "y.parquet")
    for name in ("z.zip", "z.parquet"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ValueError, match=rf"{name[0]}\.{name[2:]} is not a"):
            open_source(tmp_path / name)


def test_open_source_tells_what_it_can_open(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(tmp_path / "absent")
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="neither a folder nor a file of a known kind"):
        open_source(tmp_path / "x.tar")
    Image.fromarray(_rgb(0)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="apply to saved pipelines only"):
        open_source(tmp_path, num_samples=10)


def test_saved_pipelines_come_from_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    Image.fromarray(_rgb(0)).save(tmp_path / "preview.png")
    asked = {}

    class Plugin:
        def load(self):
            def provide(path: Path, **options: object) -> FolderSource:
                asked.update(options)
                return FolderSource(path)

            return provide

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])
    with pytest.raises(ValueError, match="saved pipeline that no installed package can sample"):
        open_source(tmp_path)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Plugin()])
    assert len(open_source(tmp_path, num_samples=3, seed=1, batch_size=2)) == 1
    assert asked == {"num_samples": 3, "seed": 1, "batch_size": 2, "device": "cpu"}
