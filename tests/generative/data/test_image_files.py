"""Loose image files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from generative.core.errors import UserError
from generative.data.image_files import ImageFilesDataset


def picture(path: Path, grey: int, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)
    return path


def test_files_and_folders_in_order(tmp_path: Path) -> None:
    loose = picture(tmp_path / "z.png", 1)
    for name, grey in (("b/2.png", 3), ("a.JPG", 2), (".hidden/1.png", 9)):
        picture(tmp_path / "folder" / name, grey)
    (tmp_path / "folder" / "notes.txt").write_text("")
    data = ImageFilesDataset([loose, tmp_path / "folder"], image_size=8)
    assert data.images_uint8()[:, 0, 0, 0].tolist() == [1, 2, 3] and data.images_uint8().shape == (3, 3, 8, 8)
    assert data.num_classes == 1 and torch.equal(data.labels, torch.zeros(3, dtype=torch.int64))
    assert [path.name for path in data.paths] == ["z.png", "a.JPG", "2.png"]


def test_wrong_paths(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "broken.png").write_bytes(picture(tmp_path / "whole.png", 1).read_bytes()[:40])
    for path, message in (
        ("nowhere", "'.*nowhere' does not exist"),
        ("empty", "holds no images"),
        ("notes.txt", "is no image file"),
        ("broken.png", "broken.png"),
    ):
        with pytest.raises(UserError, match=message):
            ImageFilesDataset([tmp_path / path], image_size=8)
