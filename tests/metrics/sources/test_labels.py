"""Classes from members beside images, from folders in archives, and what is said where there are none."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from seeded import png

from metrics import score
from metrics.sources import ImageSource, TarSource, open_source
from metrics.sources.labels import find_labels, sample_key


def _tar(path: Path, names: Sequence[str], texts: Sequence[str] = ()) -> Path:
    """Write a tar: names of images get pixels, the others the texts in order."""
    left = iter(texts)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for index, name in enumerate(names):
            content = png(index) if name.endswith("png") else next(left).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _labels(source: ImageSource) -> list[str] | None:
    found = [label for batch in source.batches(8) for label in batch.labels or []]
    assert source.has_labels == bool(found)
    return found or None


@pytest.mark.parametrize(
    ("name", "key"),
    [("a.png", "a"), ("d.1/a.b.png", "d.1/a"), ("./a.cls", "./a"), ("x/y/cfg1.5_000.png", "x/y/cfg1"), ("a", "a")],
)
def test_a_key_is_the_path_up_to_the_first_dot_of_the_file_name(name: str, key: str) -> None:
    assert sample_key(name) == key


def test_members_of_one_key_are_one_sample(tmp_path: Path) -> None:
    names = ["a.seg.cls", "a.png", "b.rgb.png", "b.json", "b.cls", "c/a.png", "c/a.cls", "._a.cls"]
    source = TarSource(_tar(tmp_path / "x.tar", names, ["1", json.dumps({"label": "cat"}), "2", "3", "junk"]))
    assert _labels(source) == ["1", "2", "3"]  # .cls goes before .json; a resource fork is no member.


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_names_with_several_dots_keep_their_own_labels(tmp_path: Path, suffix: str) -> None:
    names = [f"cfg1.5_{index:03d}.{end}" for index in range(6) for end in ("png", "cls")]
    source = TarSource(_tar(tmp_path / f"x.{suffix}", names, [str(index % 3) for index in range(6)]))
    assert _labels(source) == ["0", "1", "2", "0", "1", "2"]


@pytest.mark.parametrize(
    ("names", "texts", "words"),
    [
        (
            ["a.left.png", "a.right.png"],
            [],
            r"holds 2 images in one sample \(a\.left\.png, a\.right\.png\): by WebDataset's rule",
        ),
        (["1.5_0.png", "1.5_1.png", "1.5_2.png", "1.cls"], ["4"], r"3 images in one sample \(1\.5_0\.png, 1\.5_1\.png, \.\.\.\)"),
        (["1.5_0.png", "1.5_0.cls", "1.5_1.png"], ["4"], r"here 1; keep one image per sample, or replace the other dots"),
        (["a.png", "a.png"], [], r"holds a\.png twice: keep one of them"),
        (["a.x.cls", "a.png", "a.y.cls"], ["1", "2"], r"several classes of a\.png \(a\.x\.cls, a\.y\.cls\)"),
    ],
)
def test_what_collides_is_refused_by_name(tmp_path: Path, names: list[str], texts: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=rf"tar file .*x\.tar .*{words}"):
        TarSource(_tar(tmp_path / "x.tar", names, texts))


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("root", ["", "./", "set/", "./set/deep/"])
def test_folders_in_archives_are_classes(tmp_path: Path, kind: str, root: str) -> None:
    names = [f"{root}cat/0.png", f"{root}cat/more/1.png", f"{root}dog/2.png"]
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, png(0))
    else:
        _tar(path, names)
    assert _labels(open_source(path)) == ["cat", "cat", "dog"]


def test_a_class_to_each_shard(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        _tar(tmp_path / f"{name}.tar", [f"{name}/0.png", f"{name}/1.png"])
    assert _labels(open_source(tmp_path)) == ["cat", "cat", "dog", "dog"]
    _tar(tmp_path / "eel.tar", ["0.png", "0.cls"], ["eel"])
    assert _labels(open_source(tmp_path)) is None


def test_why_there_are_no_labels(tmp_path: Path, tiny_options: list[str]) -> None:
    def hint(source: ImageSource) -> str:
        assert not source.has_labels
        return source.label_hint

    parquet.write_table(pyarrow.table({"image": [png(0), png(1)], "fine_label": [0, 1]}), tmp_path / "x.parquet")
    expected = "labels are read from a column named label, its columns are image, fine_label"
    assert hint(open_source(tmp_path / "x.parquet")) == expected
    assert hint(TarSource(_tar(tmp_path / "x.tar", ["a.png", "a.cls", "b.png"], ["1"]))).startswith("1 of 2 images have a class")
    assert hint(TarSource(_tar(tmp_path / "y.tar", ["a/b.png", "c.png"]))) == "image c.png lies in no folder of a class"
    assert find_labels(["a/b.png", "a/c.png"]).missing == "all images lie in one folder, a"
    np.savez(tmp_path / "x.npz", np.zeros((2, 4, 4, 3), np.uint8))
    assert hint(open_source(tmp_path / "x.npz")) == "labels are arr_1, integers (N,), and it holds arr_0"
    np.savez(tmp_path / "x.npz", np.zeros((2, 4, 4, 3), np.uint8), np.eye(2))
    assert hint(open_source(tmp_path / "x.npz")) == "labels are arr_1, integers (N,), and it is float64 (2, 2)"
    with pytest.raises(ValueError, match=rf"needs class labels, and .*x\.parquet has none \({expected}\): put images into"):
        parquet_file = tmp_path / "x.parquet"
        score(parquet_file, parquet_file, metrics="class-fid", extractor="tiny", device="cpu")
