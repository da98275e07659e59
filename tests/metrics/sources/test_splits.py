"""Splits of a data set are not scored together by accident, whatever they are called and kept in."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from seeded import png

from generative.core.errors import UserError
from generative.data.parquet import find_parquet_files
from metrics.sources import open_source
from metrics.sources.splits import describe_splits, group_by_split, mixed_splits


def _shard(path: Path, count: int = 1, folder: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {f"{folder}{index}.png": png(index) for index in range(count)}
    if path.suffix == ".parquet":
        images = pyarrow.array(list(contents.values()), pyarrow.binary())
        parquet.write_table(pyarrow.table({"image": images}), path)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    elif path.suffix == ".png":
        path.write_bytes(png(0))
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("default/train/0000.parquet", "train"),
        ("TRAINING_01.tar", "train"),
        ("imagenet.Val.2012.zip", "validation"),
        ("valid/0.tar", "validation"),
        ("a/dev set/b/0.tar", "validation"),
        ("valset0.tar", "validation"),
        ("trainImages7.zip", "train"),
        ("train/test-0.tar", "test"),
        ("eval/7.tar", "test"),
        ("train_val_split.tar", ""),
        ("pretrained.tar", ""),
        ("contest/latest.tar", ""),
        ("00000.tar", ""),
    ],
)
def test_a_split_is_a_word_of_the_name(name: str, split: str) -> None:
    assert group_by_split([name]) == {split: [name]}


@pytest.mark.parametrize("kind", ["parquet", "tar", "tgz", "zip"])
@pytest.mark.parametrize(
    ("train", "test", "instead"),
    [
        ("default/train/0000", "default/test/0000", "set/default/test/0000.{0} or {1}/set/default/train/0000.{0}"),
        ("data/train-00000-of-00001", "data/test-00000-of-00001", "set/data/test-00000-of-00001.{0} or "),
        ("training_0", "eval_0", "set/eval_0.{0} or {1}/set/training_0.{0}"),
        ("Valid/a", "dev/b", None),
        ("TRAIN01", "x/y/Validation/1", "set/TRAIN01.{0} or {1}/set/x/y/Validation/1.{0}"),
    ],
)
def test_shards_of_several_splits_are_refused(tmp_path: Path, kind: str, train: str, test: str, instead: str | None) -> None:
    for name in (train, test):
        _shard(tmp_path / "set" / f"{name}.{kind}")
    if instead is None:  # Two words for one split.
        assert len(open_source(tmp_path / "set")) == 2
        return
    with pytest.raises(ValueError, match=r"mixes the splits .* and .*: name one of them \(") as caught:
        open_source(tmp_path / "set")
    assert f"{tmp_path}/{instead.format(kind, tmp_path)}" in str(caught.value)


def test_what_to_name_instead() -> None:
    folders = mixed_splits(["d/train/0.tar", "d/train/1.tar", "d/test/0.tar", "d/test/1.tar"])
    assert folders is not None and describe_splits(folders, "x") == "x/d/test or x/d/train"
    flat = mixed_splits(["d/train-00.tar", "d/train-01.tar", "d/test-00.tar", "d/test-01.tar"])
    assert flat is not None and describe_splits(flat, "x") == "x/d/test-* or x/d/train-*"
    assert mixed_splits(["train-0.tar", "b.tar"]) is None


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_folders_named_as_splits_are_told(tmp_path: Path, kind: str) -> None:
    """They may be classes, so that they are not refused."""
    path = tmp_path / "set"
    if kind == "folder":
        for name in ("train/a.png", "val/b.png", "val/deep/c.png"):
            _shard(path / name)
    else:
        path = tmp_path / f"set.{kind}"
        with tarfile.open(path, "w") if kind == "tar" else zipfile.ZipFile(path, "w") as archive:
            for name in ("train/a.png", "val/b.png", "val/deep/c.png"):
                if isinstance(archive, zipfile.ZipFile):
                    archive.writestr(name, png(0))
                else:
                    info = tarfile.TarInfo(name)
                    info.size = len(png(0))
                    archive.addfile(info, io.BytesIO(png(0)))
    source = open_source(path)
    assert [label for batch in source.batches(3) for label in batch.labels or []] == ["train", "val", "val"]
    assert source.notes == [
        f"of {path}, folders named as splits are scored together, train (1 images) and val (2 images): if they are no classes, "
        "name one of them."
    ]


def test_parts_are_told(tmp_path: Path) -> None:
    _shard(tmp_path / "train-00000-of-00003.parquet", 2)
    _shard(tmp_path / "train-00001-of-00003.parquet", 0)
    _shard(tmp_path / "more.parquet")
    source = open_source(tmp_path)
    assert len(source) == 3
    assert source.notes == [
        f"parquet file {tmp_path}/train-00001-of-00003.parquet holds no rows: passed over.",
        f"of {tmp_path}, 2 files name the split train and 1 none: all are scored.",
        f"{tmp_path} holds 2 of the 3 files that their names announce.",
    ]
    _shard(tmp_path / "several" / "a" / "0.tar")
    _shard(tmp_path / "several" / "b" / "0.tar")
    assert open_source(tmp_path / "several").notes == [f"of {tmp_path}/several, files of 2 folders are scored together: a, b."]
    _shard(tmp_path / "empty" / "a.tar", 0)
    _shard(tmp_path / "empty" / "b.tar", 0)
    with pytest.raises(ValueError, match=r"a\.tar holds no images"):
        open_source(tmp_path / "empty")
    _shard(tmp_path / "empty" / "c.tar", 2)
    assert open_source(tmp_path / "empty").notes[0].endswith("(and 1 more like it): passed over.")


def test_training_data_of_several_splits_are_refused(tmp_path: Path) -> None:
    for name in ("training-0.parquet", "training-1.parquet", "valid-0.parquet", "._valid-1.parquet"):
        _shard(tmp_path / name)
    for place in (tmp_path, tmp_path / "*.parquet"):
        with pytest.raises(UserError, match=r"mixes the splits train and validation; give .*/training-\* or .*/valid-0\.parquet"):
            find_parquet_files(place)
    assert len(find_parquet_files(tmp_path / "training-*.parquet")) == 2
    assert len(find_parquet_files([tmp_path / "training-*.parquet", tmp_path / "valid-0.parquet"])) == 3
    (tmp_path / "valid-0.parquet").unlink()
    assert len(find_parquet_files(tmp_path)) == 2
