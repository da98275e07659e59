"""Sources: the same images from any container, from any place, with labels; damage by name; threads that end."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from seeded import picture, png

from metrics.cli import main
from metrics.sources import (
    FolderSource,
    ImageSource,
    NpySource,
    NpzSource,
    ParquetSource,
    ShardSource,
    TarSource,
    ZipSource,
    open_source,
)
from metrics.sources import ahead as ahead_module
from metrics.sources import encoded as encoded_module
from metrics.sources.ahead import work_ahead

_COUNT = 11
_CLASSES = [("n02", "10", "cat")[index % 3] for index in range(_COUNT)]


def _expected(seed: int) -> torch.Tensor:
    return torch.from_numpy(picture(seed)).permute(2, 0, 1)


def _folder(root: Path, names: Sequence[str], contents: Sequence[bytes]) -> Path:
    for name, content in zip(names, contents, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def _zip(path: Path, names: Sequence[str], contents: Sequence[bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in reversed(list(zip(names, contents, strict=True))):
            archive.writestr(name, content)
    return path


def _tar(path: Path, names: Sequence[str], contents: Sequence[bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in zip(names, contents, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _parquet(path: Path, contents: Sequence[bytes | None], labels: object = None, column: str = "image") -> Path:
    columns = {column: [None if content is None else {"bytes": content, "path": None} for content in contents]}
    if labels is not None:
        columns["label"] = labels
    parquet.write_table(pyarrow.table(columns), path, row_group_size=4)
    return path


def _npz(path: Path, labels: np.ndarray | None = None, save: Callable[..., None] = np.savez) -> Path:
    arrays = [np.stack([picture(seed) for seed in range(_COUNT)])]
    save(path, *arrays, *([] if labels is None else [labels]))
    return path


_NAMES = [f"{label}/{index:02d}.png" for index, label in enumerate(_CLASSES)]
_ORDER = sorted(range(_COUNT), key=lambda index: _NAMES[index])  # Folder and zip sort by name.


def _build(kind: str, root: Path) -> tuple[ImageSource, list[int], list[str]]:
    """Return a source of ``_COUNT`` images, the seed of each, and the class of each."""
    contents = [png(seed) for seed in range(_COUNT)]
    in_order = list(range(_COUNT))
    by_name = [_CLASSES[index] for index in _ORDER]
    if kind == "folder":
        return open_source(_folder(root / "set", _NAMES, contents)), _ORDER, by_name
    if kind in ("zip", "deflated zip"):
        compression = zipfile.ZIP_STORED if kind == "zip" else zipfile.ZIP_DEFLATED
        return open_source(_zip(root / "set.zip", _NAMES, contents, compression)), _ORDER, by_name
    if kind in ("tar", "tar.gz"):
        names = [f"{index:02d}.{end}" for index in range(_COUNT) for end in ("png", "cls")]
        parts = [part for index in range(_COUNT) for part in (contents[index], _CLASSES[index].encode())]
        return open_source(_tar(root / f"set.{kind}", names, parts)), in_order, _CLASSES
    if kind == "parquet":
        return open_source(_parquet(root / "set.parquet", contents, _CLASSES)), in_order, _CLASSES
    if kind == "parquet shards":
        (root / "set" / "data").mkdir(parents=True)
        (root / "set" / "README.md").write_text("a data set")
        for number, part in enumerate((slice(0, 3), slice(3, 9), slice(9, None))):
            name = f"train-{number:05d}-of-00003.parquet"
            _parquet(root / "set" / "data" / name, contents[part], _CLASSES[part])
        return open_source(root / "set"), in_order, _CLASSES
    numbers = np.arange(_COUNT) % 3
    save = np.savez if kind == "npz" else np.savez_compressed
    return open_source(_npz(root / "set.npz", numbers, save)), in_order, [str(number) for number in numbers]


_KINDS = ["folder", "zip", "deflated zip", "tar", "tar.gz", "parquet", "parquet shards", "npz", "compressed npz"]


@pytest.mark.parametrize("kind", _KINDS)
def test_every_container_gives_the_same_from_any_place(tmp_path: Path, kind: str) -> None:
    source, seeds, classes = _build(kind, tmp_path)
    assert len(source) == _COUNT and source.has_labels and source.skipped == []
    for batch_size, num_workers, start, stop in ((4, 0, 0, None), (3, 2, 0, None), (4, 2, 5, None), (2, 1, 3, 8), (9, 2, 8, 9)):
        batches = list(source.batches(batch_size, num_workers, start, stop))
        places = [index for batch in batches for index in batch.indices]
        assert places == list(range(_COUNT))[start:stop]
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert [label for batch in batches for label in batch.labels or []] == [classes[place] for place in places]
        for place, image in zip(places, (image for batch in batches for image in batch.images), strict=True):
            assert image.dtype == torch.uint8 and torch.equal(image, _expected(seeds[place]))
    assert list(source.batches(4, 2, 6, 6)) == []
    for arguments, words in (
        ((0,), "batch_size"),
        ((1, -1), "num_workers"),
        ((1, 1, 5, 4), "start"),
        ((1, 1, 0, 12), "stop <= 11"),
    ):
        with pytest.raises(ValueError, match=words):
            next(source.batches(*arguments))


@pytest.mark.parametrize("kind", _KINDS)
def test_identity_follows_the_content(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    identity = _build(kind, tmp_path / "a")[0].identity()
    path = next((tmp_path / "a").iterdir())
    assert open_source(path).identity() == identity, "reading changes nothing"
    moved = path.rename(tmp_path / f"moved{''.join(path.suffixes)}")
    assert open_source(moved).identity() == identity, "nor does moving"
    file = next(item for item in sorted(moved.rglob("*")) if item.suffix in (".png", ".parquet")) if moved.is_dir() else moved
    os.utime(file, ns=(1, 1))
    by_checksum = kind in ("zip", "deflated zip", "npz", "compressed npz")
    assert (open_source(moved).identity() == identity) == by_checksum, "nor the time, where there are check sums"
    if kind == "npz":
        _npz(moved, np.zeros(_COUNT, int))
    elif kind == "zip":
        _zip(moved, _NAMES, [png(seed + 1) for seed in range(_COUNT)])
    else:
        return
    assert open_source(moved).identity() != identity


def test_labels_are_first_level_folders_or_nothing(tmp_path: Path) -> None:
    def labels(*names: str) -> list[str] | None:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        source = FolderSource(_folder(root, names, [png(0)] * len(names)))
        found = [label for batch in source.batches(2) for label in batch.labels or []]
        assert source.has_labels == bool(found)
        return found or None

    assert labels("007/a.png", "7/b.png", "x/y/c.png") == ["7", "7", "x"]
    assert labels("a/a.png", "a/b.png") is None, "one folder is no class"
    assert labels("a/a.png", "b/b.png", "c.png") is None, "an image lies outside"


@pytest.mark.parametrize("table", [[["00000/a.png", 3], ["00001/b.png", 5]], None, [["00000/a.png", 3]], [[1, 2, 3]], "x"])
def test_folders_of_edm_are_no_classes(tmp_path: Path, table: object) -> None:
    names, contents = ["00000/a.png", "00001/b.png"], [png(0), png(1)]
    content = json.dumps({"labels": table}).encode()
    folder = _folder(tmp_path / "set", [*names, "dataset.json"], [*contents, content])
    archive = _zip(tmp_path / "set.zip", [*names, "dataset.json"], [*contents, content])
    for source in (open_source(folder), open_source(archive)):
        (batch,) = source.batches(2)
        assert batch.labels == (["3", "5"] if isinstance(table, list) and len(table) == 2 else None)


def test_tar_labels_from_json_and_only_if_every_image_has_one(tmp_path: Path) -> None:
    names = ["d/a.png", "d/a.json", "d/b.png", "d/b.json", "e/a.png", "e/a.cls"]
    parts = [png(0), b'{"label": 4}', png(1), b'{"label": "cat"}', png(2), b"0012\n"]
    (batch,) = TarSource(_tar(tmp_path / "x.tar", names, parts)).batches(3)
    assert batch.labels == ["4", "cat", "12"]
    for bad in (b"{", b"[]", b'{"label": null}', b'{"label": true}', b"\xff", b'{"text": 1}'):
        parts[3] = bad
        assert not TarSource(_tar(tmp_path / "x.tar", names, parts)).has_labels


def test_parquet_labels_and_columns(tmp_path: Path) -> None:
    contents = [png(seed) for seed in range(3)]
    assert ParquetSource(_parquet(tmp_path / "a.parquet", contents, [3, 1, 2], "img")).labels == ["3", "1", "2"]
    assert ParquetSource(_parquet(tmp_path / "b.parquet", contents, [3, None, 2])).labels is None
    assert ParquetSource(_parquet(tmp_path / "c.parquet", contents, [0.5, 1.0, 2.0])).labels is None
    parquet.write_table(pyarrow.table({"image": contents}), tmp_path / "plain.parquet")
    (batch,) = ParquetSource(tmp_path / "plain.parquet").batches(3)
    assert torch.equal(batch.images[2], _expected(2)) and batch.labels is None
    for table, words in (
        ({"pixels": [1]}, "has the columns pixels: expected"),
        ({"image": [1]}, "has type int64: expected the bytes"),
        ({"image": [{"path": "x"}]}, "expected the bytes"),
        ({"image": pyarrow.array([], pyarrow.binary())}, "holds no rows"),
    ):
        parquet.write_table(pyarrow.table(table), tmp_path / "bad.parquet")
        with pytest.raises(ValueError, match=words):
            ParquetSource(tmp_path / "bad.parquet")


def _damaged(kind: str, root: Path, contents: list[bytes], **options: bool) -> ImageSource:
    names = [f"{index:02d}.png" for index in range(len(contents))]
    root.mkdir(exist_ok=True)
    if kind == "folder":
        return open_source(_folder(root / "set", names, contents), **options)
    if kind == "zip":
        return open_source(_zip(root / "set.zip", names, contents), **options)
    if kind == "parquet":
        return open_source(_parquet(root / "set.parquet", [content or None for content in contents]), **options)
    return open_source(_tar(root / f"set.{kind}", names, contents), **options)


_ENCODED_KINDS = ["folder", "zip", "tar", "tar.gz", "parquet"]


@pytest.mark.parametrize("kind", _ENCODED_KINDS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_images_are_listed_or_skipped(tmp_path: Path, kind: str, num_workers: int) -> None:
    contents = [png(seed) for seed in range(9)]
    contents[4] = contents[4][:50]
    source = _damaged(kind, tmp_path, contents)
    with pytest.raises(ValueError, match=r"^image .*(04\.png|row 4).* is truncated or corrupt .*, or pass --skip-corrupt"):
        list(source.batches(2, num_workers))
    assert [len(batch) for batch in source.batches(2, num_workers, 5)] == [2, 2], "not met, not refused"
    contents[6] = b"not an image"
    source = _damaged(kind, tmp_path, contents)
    batches = source.batches(2, num_workers)
    assert [batch.indices for batch in (next(batches), next(batches))] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match=r"^2 of 9 images in .* can't be read: (04\.png|row 4) is trunc.*, (06\.png|row 6) is"):
        next(batches)
    source = _damaged(kind, tmp_path, contents, skip_corrupt=True)
    for _ in range(2):
        assert [index for batch in source.batches(3, num_workers) for index in batch.indices] == [0, 1, 2, 3, 5, 7, 8]
        assert source.skipped == (["row 4", "row 6"] if kind == "parquet" else ["04.png", "06.png"])


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_empty_images_are_listed_when_the_set_is_opened(tmp_path: Path, kind: str) -> None:
    contents = [png(0)] + [b""] * 13 + [png(1)]
    with pytest.raises(ValueError) as caught:
        _damaged(kind, tmp_path, contents)
    message = str(caught.value)
    assert message.startswith(f"13 of 15 images in {tmp_path / 'set'}")
    assert "01.png is empty (0 bytes), 02.png is" in message and "10.png is empty (0 bytes), and 3 more: remove" in message
    assert "11.png" not in message and message.endswith("or pass --skip-corrupt to leave them out.")
    source = _damaged(kind, tmp_path, contents, skip_corrupt=True)
    assert len(source) == 15 and len(source.skipped) == 13
    assert [batch.indices for batch in source.batches(2)] == [[0, 14]]
    assert len(source.skipped) == 13
    with pytest.raises(ValueError, match=r"^image .*01\.png.* is empty \(0 bytes\): remove it or write it again, or pass"):
        _damaged(kind, tmp_path / "other", [png(0), b""])


def test_a_set_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    source = _damaged("folder", tmp_path, [b"x", b"y", b""], skip_corrupt=True)
    with pytest.raises(ValueError, match="none of the 3 images in .* can be read"):
        list(source.batches(2))
    assert source.skipped == ["02.png", "00.png", "01.png"]


def test_the_search_for_more_damage_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_module, "SEARCH_SECONDS", 0.0)
    with pytest.raises(ValueError, match=r"^at least 2 of 9 images"):
        list(_damaged("folder", tmp_path, [b"bad"] * 9).batches(2, 0))


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_dangling_link_is_listed(tmp_path: Path) -> None:
    _folder(tmp_path, ["a.png"], [png(0)])
    (tmp_path / "b.png").symlink_to(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"b\.png can't be read \(No such file or directory\)"):
        FolderSource(tmp_path)
    source = FolderSource(tmp_path, skip_corrupt=True)
    assert [batch.indices for batch in source.batches(2)] == [[0]] and source.skipped == ["b.png"]


def _decoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_threads_end_with_the_reader(tmp_path: Path) -> None:
    source = _damaged("folder", tmp_path, [png(seed) for seed in range(9)])
    batches = source.batches(1, 3)
    next(batches)
    assert _decoders()
    batches.close()
    assert not _decoders(), "closed"
    (tmp_path / "set" / "05.png").write_bytes(b"x")
    with pytest.raises(ValueError):
        list(source.batches(1, 3))
    assert not _decoders(), "failed"


def test_few_images_are_decoded_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _damaged("folder", tmp_path, [png(seed % 9) for seed in range(60)])
    decoded = []
    original = encoded_module._attempt
    monkeypatch.setattr(encoded_module, "_attempt", lambda *work: decoded.append(1) or original(*work))
    batches = source.batches(4, 2)
    next(batches)
    batches.close()
    assert len(decoded) <= 4 + 4 + 2 * 2 + 1


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_contents_are_those_of_what_was_decoded(tmp_path: Path, kind: str, num_workers: int) -> None:
    source, _, _ = _build(kind, tmp_path)
    expected = [
        pair for batch in source.batches(4, num_workers) for pair in zip(batch.indices, source.contents_of(batch), strict=True)
    ]
    assert list(source.contents(0, _COUNT, num_workers)) == expected and len({content for _, content in expected}) == _COUNT
    assert list(source.contents(3, 8, num_workers)) == expected[3:8]
    if "npz" not in kind:
        assert expected[0][1] in {hashlib.sha256(png(seed)).digest() for seed in range(_COUNT)}


@pytest.mark.parametrize("kind", _ENCODED_KINDS)
def test_contents_cover_images_that_cannot_be_decoded(tmp_path: Path, kind: str) -> None:
    contents = [png(0), b"not an image", png(2)]
    source = _damaged(kind, tmp_path, contents, skip_corrupt=True)
    digests = [hashlib.sha256(content).digest() for content in contents]
    assert [content for _, content in source.contents(0, 3)] == digests
    (batch,) = source.batches(3)
    assert batch.contents == [digests[0], digests[2]] and source.skipped_contents == {1: digests[1]}


# Memory


@pytest.mark.parametrize("kind", _ENCODED_KINDS)
def test_batches_of_large_images_are_smaller(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _damaged(kind, tmp_path, [png(seed) for seed in range(7)])
    monkeypatch.setattr(encoded_module, "_BATCH_BYTES", 2 * 3 * 6 * 9)
    assert [batch.indices for batch in source.batches(50, 2)] == [[0, 1], [2, 3], [4, 5], [6]]


def test_large_images_are_decoded_within_the_budget() -> None:
    """Eight threads, room for two: no more are ever taken at once, all come in order, and nothing stands still."""
    lock, running, most = threading.Lock(), [0], [0]

    def work(item: int, admit: Callable[[int], None]) -> int:
        admit(10)
        with lock:
            running[0] += 10
            most[0] = max(most[0], running[0])
        time.sleep(0.001 * (item % 3))
        return item

    def consume(results: Iterable[tuple[int, int]]) -> Iterator[int]:
        for item, result in results:
            assert item == result
            with lock:
                running[0] -= 10
            yield item

    ahead = work_ahead(range(40), work, lambda result: 10, lambda item: 0, num_workers=8, window=16, limit=20)
    assert list(consume(ahead)) == list(range(40))
    assert most[0] <= 30, "twice ten, and the next in line, which is never kept waiting"


def test_a_reader_that_stops_ends_threads_that_wait_for_room() -> None:
    def work(item: int, admit: Callable[[int], None]) -> int:
        admit(10)
        return item

    ahead = work_ahead(range(40), work, lambda result: 10, lambda item: 0, num_workers=4, window=8, limit=20)
    assert next(ahead) == (0, 0)
    ahead.close()
    assert not _decoders()


def test_items_that_hold_bytes_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_module, "_HELD_BYTES", 30)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(40):
            taken.append(item)
            yield item

    ahead = work_ahead(items(), lambda item, admit: item, lambda result: 0, lambda item: 10, num_workers=2, window=16)
    next(ahead)
    assert len(taken) <= 5
    ahead.close()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz", "parquet"])
def test_damaged_containers_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"set.{kind}"
    for content in (b"", b"nonsense", b"nonsense" * 300):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"set\.{kind} is not a .* file, or is truncated"):
            open_source(path)
    whole = _damaged(kind, tmp_path, [png(seed) for seed in range(9)]).path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"set\.{kind} is not a .* file, or is truncated"):
        open_source(path)


def test_a_tar_without_its_end_is_truncated(tmp_path: Path) -> None:
    """Python's tarfile takes it for a shorter archive."""
    path = _tar(tmp_path / "x.tar", ["a.png", "b.png"], [png(0), png(1)])
    content = path.read_bytes()
    second = content.index(b"b.png")
    for cut in (second, second + 100, second + 512):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"x\.tar is not a tar file, or is truncated"):
            TarSource(path)
    header = bytearray(content)
    header[second + 124 : second + 136] = b"\xff" * 12  # Size -1 in base 256: tarfile before 3.11.14 reads on for ever.
    path.write_bytes(header)
    with pytest.raises(ValueError, match=r"x\.tar is not a tar file, or is truncated"):
        TarSource(path)


def test_a_zip_member_that_fails_its_check_sum_is_one_bad_image(tmp_path: Path) -> None:
    path = _zip(tmp_path / "x.zip", ["a.png", "b.png"], [png(0), png(1)])
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"image b\.png in .*x\.zip can't be read \(Bad CRC-32.*write the zip again, or pass"):
        list(ZipSource(path).batches(2))
    assert [batch.indices for batch in ZipSource(path, skip_corrupt=True).batches(2)] == [[0]]


def test_containers_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        open_source(_zip(tmp_path / "x.zip", ["readme.txt"], [b""]))
    with pytest.raises(ValueError, match="holds no images"):
        open_source(_tar(tmp_path / "x.tar", ["readme.txt"], [b""]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        open_source(tmp_path / "empty")


def test_shards_of_one_kind_and_one_split(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for number in range(3):
        _tar(tars / f"{number}.tar", ["a.png", "b.png"], [png(2 * number), b"" if number == 1 else png(2 * number + 1)])
    with pytest.raises(ValueError, match=r"image b\.png in .*1\.tar is empty"):
        open_source(tars)
    source = open_source(tars, skip_corrupt=True)
    assert isinstance(source, ShardSource) and source.skipped == ["b.png in 1.tar"]
    assert [batch.indices for batch in source.batches(4, start=1)] == [[1, 2, 4, 5]]
    _zip(tars / "x.zip", ["a.png"], [png(0)])
    with pytest.raises(ValueError, match="mixes shards of several kinds"):
        open_source(tars)
    splits = tmp_path / "splits"
    splits.mkdir()
    for name in ("test-0.parquet", "train-0.parquet"):
        _parquet(splits / name, [png(0)])
    with pytest.raises(ValueError, match="mixes the splits test and train"):
        open_source(splits)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "holds images: expected arr_0"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "dtype float32"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"shape \(2, 3, 4, 4\)"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "holds no images"),
        (
            {"arr_0": np.array([{}], dtype=object)},
            "holds an array of dtype object: Python objects .* never done here; save",
        ),
        ({"arr_0": np.array({"images": 1}, dtype=object)}, "dtype object"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.arange(3)}, "3 labels in arr_1 for 2 images"),
    ],
)
def test_npz_of_something_else_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        NpzSource(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["c.npz", "f.npz", "compressed.npz", "c.npy", "f.npy"])
def test_arrays_of_images_in_any_order(tmp_path: Path, name: str) -> None:
    images = np.stack([picture(seed) for seed in range(_COUNT)])
    array = np.asfortranarray(images) if name[0] == "f" or name == "compressed.npz" else images
    if name.endswith(".npy"):
        np.save(tmp_path / name, array)
    else:
        (np.savez_compressed if name[0] == "c" else np.savez)(tmp_path / name, array, np.arange(_COUNT))
    source = open_source(tmp_path / name)
    assert isinstance(source, NpySource if name.endswith(".npy") else NpzSource)
    for start, stop in ((0, None), (3, 8)):
        found = [image for batch in source.batches(4, 1, start, stop) for image in batch.images]
        assert all(torch.equal(image, _expected(seed)) for seed, image in enumerate(found, start)) and len(found) > 4
    identity = source.identity()
    assert open_source((tmp_path / name).rename(tmp_path / f"moved-{name}")).identity() == identity


def test_npy_of_something_else(tmp_path: Path, tiny_options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "good.npy", np.stack([picture(seed) for seed in range(_COUNT)]))
    np.save(tmp_path / "objects.npy", {"images": 1}, allow_pickle=True)
    np.save(tmp_path / "planes.npy", np.zeros((2, 3, 4, 4), np.uint8))
    np.save(tmp_path / "none.npy", np.zeros((0, 4, 4, 3), np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-5])
    for name, words in (
        ("objects", "only unpickling would read"),
        ("planes", r"of dtype uint8 and shape \(2, 3, 4, 4\): expected uint8 \(N, H, W, 3\)"),
        ("none", "holds no images"),
        ("cut", "truncated or corrupt"),
    ):
        assert main([str(tmp_path / "good.npy"), str(tmp_path / f"{name}.npy"), *tiny_options]) == 2
        assert re.search(words, capsys.readouterr().err), name
    assert main([str(tmp_path / "good.npy"), str(tmp_path / "good.npy"), *tiny_options]) == 0
    assert "(npy of images, 11 images)" in capsys.readouterr().out


def test_damaged_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, np.zeros((6, 32, 32, 3), np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"x\.npz is not an npz file, or is truncated"):
        NpzSource(path)
    path.write_bytes(data[:5000] + b"\xff" + data[5001:])
    with pytest.raises(ValueError, match=r"x\.npz can't be read .* corrupt"):
        list(NpzSource(path).batches(4))
    assert not NpzSource(_npz(path, np.array(["a"] * _COUNT))).has_labels


def test_open_source_tells_what_it_can_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(tmp_path / "absent")
    (tmp_path / "x.rar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"neither a folder nor a file of a known kind \(\.npz, \.npy, \.parquet, \.tar"):
        open_source(tmp_path / "x.rar")
    _folder(tmp_path, ["a.png"], [png(0)])
    with pytest.raises(ValueError, match="apply to saved pipelines only"):
        open_source(tmp_path, num_samples=10)

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=rf"{tmp_path} can't be read: Permission denied"):
        open_source(tmp_path)


def test_saved_pipelines_come_from_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    _folder(tmp_path, ["preview.png"], [png(0)])
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
