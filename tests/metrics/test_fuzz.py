"""Random damage to every kind of input: a valid result or one sentence, never another error, a hang or a crash."""

from __future__ import annotations

import faulthandler
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from metrics.files.images import decode_image
from metrics.files.statistics import FeatureEntry, is_statistics, load_statistics, save_statistics
from metrics.scores.moments import Gaussian
from metrics.sources import open_source

#: No single case may take longer, in seconds; a run that hangs is ended with all stacks shown.
_CASE_SECONDS = 60
_QUICK_CASES = 100  # per kind of file
_SLOW_CASES = 3000
#: Pillow remarks on damaged tags.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    faulthandler.dump_traceback_later(10 * _CASE_SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def _pixels(seed: int, size: int = 16) -> np.ndarray:
    waves = np.random.RandomState(seed).randn(4, 4, 3).repeat(size // 4, 0).repeat(size // 4, 1)
    return (128 + 40 * waves).clip(0, 255).astype(np.uint8)


def _image(image_format: str, seed: int = 0, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_pixels(seed)).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def _frames(image_format: str) -> bytes:
    return _image(image_format, save_all=True, append_images=[Image.fromarray(_pixels(seed)) for seed in (1, 2)])


_IMAGES: dict[str, Callable[[], bytes]] = {
    "png": lambda: _image("PNG"),
    "png-palette": lambda: _image("PNG", mode="P"),
    "apng": lambda: _frames("PNG"),
    "jpeg": lambda: _image("JPEG"),
    "jpeg-cmyk": lambda: _image("JPEG", mode="CMYK", progressive=True),
    "webp": lambda: _image("WEBP"),
    "webp-animated": lambda: _frames("WEBP"),
    "gif": lambda: _frames("GIF"),
    "tiff": lambda: _image("TIFF"),
    "tiff-deflate": lambda: _image("TIFF", compression="tiff_adobe_deflate"),
    "bmp": lambda: _image("BMP"),
    "ppm": lambda: _image("PPM"),
    "jpeg2000": lambda: _image("JPEG2000"),
}


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _compressed(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _moments(dim: int = 4) -> dict[str, np.ndarray]:
    return {"mu": np.arange(dim, dtype=np.float64), "sigma": np.eye(dim)}


def _ours(folder: Path) -> bytes:
    path = folder / "whole.npz"
    mu, sigma = torch.arange(4).double(), torch.eye(4).double()
    save_statistics(path, [FeatureEntry("tiny", "x", mu, sigma, torch.zeros(3, 4), {"resizer": "clean"})], 3, "train", "0" * 64)
    content = path.read_bytes()
    path.unlink()
    return content


def _zip(compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for seed in range(3):
            archive.writestr(f"{'ab'[seed % 2]}/{seed}.png", _image("PNG", seed))
        archive.writestr("dataset.json", json.dumps({"labels": [[f"{'ab'[seed % 2]}/{seed}.png", seed] for seed in range(3)]}))
    return buffer.getvalue()


def _tar(mode: str, tar_format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tar_format) as archive:
        for seed in range(3):
            for name, content in ((f"{'long' * 30}{seed}.png", _image("PNG", seed)), (f"{'long' * 30}{seed}.cls", b"7")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _parquet(compression: str) -> bytes:
    buffer = io.BytesIO()
    rows = [{"bytes": _image("PNG", seed), "path": f"{seed}.png"} for seed in range(4)]
    table = pyarrow.table({"image": rows, "label": [0, 1, 0, 1]})
    parquet.write_table(table, buffer, row_group_size=2, compression=compression)
    return buffer.getvalue()


_FILES: dict[str, Callable[[Path], tuple[str, bytes]]] = {
    "npz images": lambda folder: (".npz", _npz(arr_0=np.stack([_pixels(s) for s in range(3)]), arr_1=np.arange(3))),
    "npz images compressed": lambda folder: (".npz", _compressed(arr_0=np.stack([_pixels(s) for s in range(3)]))),
    "npz moments": lambda folder: (".npz", _npz(**_moments())),
    "npz adm": lambda folder: (".npz", _compressed(**_moments(), mu_s=np.zeros(2), sigma_s=np.eye(2), arr_0=_pixels(0)[None])),
    "npz features": lambda folder: (".npz", _npz(feats=np.ones((3, 4), np.float32))),
    "npz ours": lambda folder: (".npz", _ours(folder)),
    "npy": lambda folder: (".npy", _npy(np.ones((3, 4), np.float32))),
    "pkl 2": lambda folder: (".pkl", pickle.dumps({"num_images": 5, "fid": _moments()}, 2)),
    "pkl 4": lambda folder: (".pkl", pickle.dumps({"num_images": 5, "fid": _moments(), "fd_dinov2": _moments(2)}, 4)),
    "pkl 5": lambda folder: (".pkl", pickle.dumps({"num_images": 5, "fid": _moments()}, 5)),
    "zip": lambda folder: (".zip", _zip(zipfile.ZIP_STORED)),
    "zip deflated": lambda folder: (".zip", _zip(zipfile.ZIP_DEFLATED)),
    "tar gnu": lambda folder: (".tar", _tar("w", tarfile.GNU_FORMAT)),
    "tar pax": lambda folder: (".tar", _tar("w", tarfile.PAX_FORMAT)),
    "tar gz": lambda folder: (".tar.gz", _tar("w:gz", tarfile.GNU_FORMAT)),
    "parquet": lambda folder: (".parquet", _parquet("none")),
    "parquet snappy": lambda folder: (".parquet", _parquet("snappy")),
}


def _damage(content: bytes, rng: np.random.RandomState) -> bytes:
    """Truncate, flip bits, write bytes, splice, zero or fill a range; or several of these."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not data:
            return b""
        place, other = sorted(rng.randint(0, len(data), 2))
        kind = rng.randint(7)
        if kind == 0:
            data = data[:other]
        elif kind == 1:
            for position in rng.randint(0, len(data), rng.randint(1, 9)):
                data[position] ^= 1 << rng.randint(8)
        elif kind == 2:
            for position in rng.randint(0, len(data), rng.randint(1, 4)):
                data[position] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randint(256)])
        elif kind == 3:
            data[place:other] = bytes(other - place)
        elif kind == 4:
            data[place : place + 8] = b"\xff" * min(8, len(data) - place)
        elif kind == 5:  # A piece is repeated where it does not belong.
            data[place:place] = data[other : other + rng.randint(1, 64)]
        else:
            del data[place : place + rng.randint(1, 64)]
    return bytes(data)


def _check_sentence(error: Exception) -> None:
    message = str(error)
    assert message and "\n" not in message and len(message) < 2000, message


def _decode(content: bytes) -> bool:
    try:
        image = decode_image(content, "fuzzed")
    except (ValueError, TypeError) as error:
        _check_sentence(error)
        return False
    assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.numel() > 0
    return True


def _read(path: Path) -> bool:
    try:
        if is_statistics(path):
            stored = load_statistics(path)
            assert stored.entries and all(entry.dimension > 0 for entry in stored.entries)
            gaussian = stored.entries[0].gaussian() if stored.entries[0].mu is not None else Gaussian(torch.zeros(1))
            assert bool(torch.isfinite(gaussian.mu).all())
        else:
            source = open_source(path, skip_corrupt=len(path.read_bytes()) % 2 == 0)
            assert len(source.identity()) == 64
            num_images = 0
            for batch in source.batches(2, num_workers=len(path.read_bytes()) % 3):
                assert len(batch.indices) == len(batch.images) and (batch.labels is not None) == source.has_labels
                num_images += len(batch)
            assert num_images + len(source.skipped) == len(source)
    except (ValueError, TypeError, FileNotFoundError) as error:
        _check_sentence(error)
        return False
    return True


def _fuzz_images(kind: str, cases: int, seed: int) -> None:
    content = _IMAGES[kind]()
    assert _decode(content)
    rng = np.random.RandomState(seed)
    refused = sum(not _decode(_damage(content, rng)) for _ in range(cases))
    assert refused > cases // 10, "the damage is real"


def _fuzz_files(kind: str, cases: int, seed: int, folder: Path) -> None:
    suffix, content = _FILES[kind](folder)
    path = folder / f"fuzzed{suffix}"
    path.write_bytes(content)
    assert _read(path)
    rng = np.random.RandomState(seed)
    refused = 0
    for _ in range(cases):
        path.write_bytes(_damage(content, rng))
        refused += not _read(path)
    assert refused > cases // 4, "the damage is real"


@pytest.mark.parametrize("kind", sorted(_IMAGES))
def test_damaged_images(kind: str) -> None:
    _fuzz_images(kind, _QUICK_CASES, seed=0)


@pytest.mark.parametrize("kind", sorted(_FILES))
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    _fuzz_files(kind, _QUICK_CASES, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(_IMAGES))
def test_much_damaged_images(kind: str) -> None:
    _fuzz_images(kind, _SLOW_CASES, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(_FILES))
def test_much_damaged_files(kind: str, tmp_path: Path) -> None:
    _fuzz_files(kind, _SLOW_CASES, 1, tmp_path)
