"""Which files count as images, by one rule for every container and for training data."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from seeded import picture, png

from generative.core.errors import UserError
from generative.data.image_files import ImageFilesDataset
from generative.data.image_folder import OUTSIDE_CLASSES, ImageFolderDataset
from metrics.cli import main
from metrics.files.images import read_image
from metrics.sources import ImageSource, open_source
from metrics.sources.listing import describe_left_out, is_hidden, is_image_name, list_images


def test_folder_is_searched_recursively_in_order(tmp_path: Path) -> None:
    for index, name in enumerate(["b.PNG", "a/z.JPEG", "a/b.Png", "A.png", "c/d/e.webp", "a.jfif", "notes.txt", "._a.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jfif":
            Image.fromarray(picture(index)).save(path, "JPEG")
        elif path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.fromarray(picture(index, 4 + index)).save(path)
    assert list_images(tmp_path).names == ["A.png", "a.jfif", "a/b.Png", "a/z.JPEG", "b.PNG", "c/d/e.webp"]
    assert torch.equal(read_image(tmp_path / "b.PNG"), torch.from_numpy(picture(0, 4)).permute(2, 0, 1))


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_linked_class_folders_count_once_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set" / "class").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "set")
    assert list_images(tmp_path / "set").names == ["class/a.png"]


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_images(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no images \(looked for bmp, jfif, jpe, jpeg"):
        open_source(tmp_path)


#: Beside the images of the classes cat and dog: what notebooks, file browsers, file systems and unpackers leave behind.
_HIDDEN = [
    ".ipynb_checkpoints/a-checkpoint.png",
    "cat/.ipynb_checkpoints/a-checkpoint.png",
    ".thumbnails/normal/a.png",
    "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
    "cat/@eaDir/a.png",
    "__MACOSX/cat/._a.png",
    "cat/._a.png",
    ".AppleDouble/a.png",
    "lost+found/a.png",
    ".Trash-1000/files/a.png",
    "$RECYCLE.BIN/S-1-5/a.png",
    "System Volume Information/a.png",
    "Thumbs.db",
    "dog/Thumbs.db",
    ".hidden.png",
]
_SHOWN = ["cat/a.png", "cat/deep/b.png", "dog/c.png"]
_LEFT_OUT = ["cat/d.gif", "cat/e.GIF", "dog/f.avif", ".ipynb_checkpoints/g.gif"]


def _make(kind: str, path: Path, names: list[str]) -> Path:
    contents = {name: png(index) for index, name in enumerate(names)}
    if kind == "folder":
        for name, content in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path
    path = path.with_suffix(f".{kind}")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _images(source: ImageSource) -> list[torch.Tensor]:
    return [image for batch in source.batches(4) for image in batch.images]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_hidden_and_tool_folders_are_no_images_and_no_classes(tmp_path: Path, kind: str) -> None:
    plain = open_source(_make(kind, tmp_path / "plain", _SHOWN))
    source = open_source(_make(kind, tmp_path / "set", _SHOWN + _HIDDEN + _LEFT_OUT))
    images = _images(source)
    assert len(source) == len(images) == 3
    assert all(torch.equal(left, right) for left, right in zip(images, _images(plain), strict=True))
    assert plain.notes == []
    assert source.notes == [f"of {source.path}, 3 files of formats that are not read here (2 .gif, 1 .avif) were left out."]
    with pytest.raises(ValueError, match=r"holds no images .*; it holds 3 files of .* \(2 \.gif, 1 \.avif\): convert images"):
        open_source(_make(kind, tmp_path / "none", _HIDDEN + _LEFT_OUT))


def test_shards_in_hidden_folders_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    for name in ("0.parquet", ".cache/huggingface/0.parquet", "._0.parquet"):
        parquet.write_table(pyarrow.table({"image": [png(0)]}), tmp_path / name)
    assert len(open_source(tmp_path)) == 1


def test_shards_beside_images_are_told(tmp_path: Path) -> None:
    _make("folder", tmp_path, ["preview.png", "b.png"])
    parquet.write_table(pyarrow.table({"image": [png(0)]}), tmp_path / "0.parquet")
    assert open_source(tmp_path).notes == [f"of {tmp_path}, 1 file of formats that are not read here (1 .parquet) were left out."]


def test_training_data_follow_the_same_rule(tmp_path: Path) -> None:
    _make("folder", tmp_path / "set", [*_SHOWN, *_HIDDEN, *_LEFT_OUT, "readme.png"])
    data = ImageFolderDataset(tmp_path / "set", image_size=4)
    assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [0, 0, 1]
    assert data.left_out == {".gif": 2, ".avif": 1, OUTSIDE_CLASSES: 1}
    files = ImageFilesDataset([tmp_path / "set"], image_size=4)
    assert [path.relative_to(tmp_path / "set").as_posix() for path in files.paths] == [*_SHOWN, "readme.png"]
    assert files.left_out == {".gif": 2, ".avif": 1}
    _make("folder", tmp_path / "gifs", ["cat/a.png", "dog/b.gif"])
    with pytest.raises(UserError, match=r"class folder '.*dog' has no images; .* \(it has 1 file of .*1 \.gif\)\)$"):
        ImageFolderDataset(tmp_path / "gifs", image_size=4)


def test_a_score_says_what_was_left_out(tmp_path: Path, tiny_options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        _make("folder", tmp_path / name, [*_SHOWN, *(_LEFT_OUT + _HIDDEN if name == "b" else [])])
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), *tiny_options]) == 0
    printed = capsys.readouterr().out
    assert "3 files of formats that are not read here (2 .gif, 1 .avif) were left out." in printed
    assert "(image folder, 3 images)" in printed
    assert main(["--save-stats", str(tmp_path / "b"), str(tmp_path / "b.npz"), *tiny_options]) == 0
    assert capsys.readouterr().out.startswith(f"note: of {tmp_path / 'b'}, 3 files of formats")


def test_names() -> None:
    for name in _HIDDEN:
        assert is_hidden(name) and not is_image_name(name), name
    for name in ("a.png", "./a.PNG", "../a.png", "/data/cat/a.jpg", "dots.in/name.x.png", "macosx/a.webp"):
        assert is_image_name(name), name
    assert not is_image_name("a.gif") and not is_image_name("png") and describe_left_out({}) == ""
