"""The run's log, whole files, grids."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generative.core.logging import ROW_NAMES_WIDTH, RunLog, read_metrics, save_grid, whole_file, write_json
from generative.core.runtime import build_accelerator


def test_a_resumed_log_drops_later_steps_and_a_line_cut_short(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "images_seen": step, "x": 1.5}) for step in (2, 4, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 8, "ima')
    log = RunLog(tmp_path, build_accelerator(), resume_step=4)
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [2, 4]
    log.write(5, 50, {"x": 2.0, "note": "text"})
    assert read_metrics(tmp_path)[-1] == {"step": 5, "images_seen": 50, "x": 2.0, "note": "text"}
    RunLog(tmp_path, build_accelerator(), resume_step=0)
    assert read_metrics(tmp_path) == []


def test_reading_a_run_without_a_log(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(OSError, match="No space left"), whole_file(path) as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_grid_goes_row_by_row_and_enlarges_without_smoothing(tmp_path: Path) -> None:
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[1], images[2], images[3, 0, 0, 1] = 50, 100, 200
    save_grid(images, tmp_path / "deep" / "grid.png", columns=2, min_tile=6)
    pixels = np.asarray(Image.open(tmp_path / "deep" / "grid.png"))
    assert pixels.shape == (2 * 8 + 2, 2 * 8 + 2, 3)
    assert (pixels[2:8, 2:8] == 0).all() and (pixels[2:8, 10:16] == 50).all() and (pixels[10:16, 2:8] == 100).all()
    assert (pixels[10:13, 13:16] == [200, 0, 0]).all() and (pixels[13:16, 10:16] == 0).all()
    assert (pixels[0] == 128).all()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["grid.png"]


def test_a_grid_with_row_names_keeps_its_pixels(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (6, 3, 5, 5), dtype=torch.uint8)
    names = ["cat", "a very long name of a class that is cut"]
    save_grid(images, tmp_path / "plain.png", columns=3)
    save_grid(images, tmp_path / "named.png", columns=3, row_names=names)
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "named.png") as named:
        width = int(named.info[ROW_NAMES_WIDTH])
        assert ROW_NAMES_WIDTH not in plain.info and named.size == (width + plain.width, plain.height)
        pixels = np.asarray(named)
        assert np.array_equal(pixels[:, width:], np.asarray(plain))
        rows = (pixels[:, :width] > 200).any(axis=(1, 2)).nonzero()[0]
        row_height = plain.height // 2
        assert rows.min() > 2 and rows.max() < plain.height - 2
        assert {int(row) // row_height for row in rows} == {0, 1} and not (pixels[:, 0] > 200).any()
