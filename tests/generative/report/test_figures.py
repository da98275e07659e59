"""Curves and grids."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generative.core.logging import save_grid
from generative.report.curves import figure_svg, smooth
from generative.report.figures import evenly, grid_element, image_element, read_grid, short_count


def test_smoothing_keeps_constants_and_does_not_lag() -> None:
    assert smooth([3.0] * 50) == pytest.approx([3.0] * 50)
    line = [float(i) for i in range(201)]
    assert smooth(line)[100] == pytest.approx(100.0)
    noisy = [1.0 + 0.5 * (-1) ** i for i in range(400)]
    assert np.std(smooth(noisy)) < 0.1 * np.std(noisy)


def test_svg_holds_our_identifiers_only_and_refers_to_nothing_outside() -> None:
    svg = figure_svg(lambda axes: axes.plot([0, 1000], [1, 2], marker="o"), "a <label>", "key one")
    other = figure_svg(lambda axes: axes.plot([0, 1000], [1, 2], marker="o"), "other", "key two")
    assert svg.startswith('<svg role="img" aria-label="a &lt;label&gt;"') and svg.rstrip().endswith("</svg>")
    assert "http" not in svg and "<style" not in svg and "<?xml" not in svg
    identifiers, others = ({part.split('"')[0] for part in text.split(' id="')[1:]} for text in (svg, other))
    assert identifiers and not identifiers & others
    assert all(part.split('"')[0].removeprefix("#") in identifiers for part in svg.split('href="')[1:])
    assert all(part.split(")")[0] in identifiers for part in svg.split("url(#")[1:])
    assert svg == figure_svg(lambda axes: axes.plot([0, 1000], [1, 2], marker="o"), "a <label>", "key one")


@pytest.mark.parametrize(("rows", "columns", "size"), [(10, 10, 8), (3, 5, 32), (1, 2, 40), (4, 1, 7)])
def test_the_layout_of_a_grid_is_read_from_its_lines(tmp_path: Path, rows: int, columns: int, size: int) -> None:
    images = torch.randint(0, 256, (rows * columns, 3, size, size), dtype=torch.uint8)
    save_grid(images, tmp_path / "grid.png", columns)
    grid = read_grid(tmp_path / "grid.png")
    assert grid is not None and grid.num_rows == rows
    side = size * -(-32 // size)
    assert grid.tile == (side, side)
    column = grid.first_column()
    assert column.shape == (side, rows * side + (rows - 1) * 2, 3)
    last = column[:, -side:].transpose(2, 0, 1)[:, :: side // size, :: side // size]
    assert (last == images[(rows - 1) * columns].numpy()).all()


def test_rows_of_a_tokenizer_are_pairs(tmp_path: Path) -> None:
    """Labels name a class once, and training is followed by what is decoded, not by the originals, which never change."""
    images = torch.randint(0, 256, (4 * 3, 3, 32, 32), dtype=torch.uint8)
    save_grid(images, tmp_path / "grid.png", 3)
    grid = read_grid(tmp_path / "grid.png", rows_per_class=2)
    assert grid is not None
    column = grid.first_column().transpose(2, 0, 1)
    assert column.shape == (3, 32, 2 * 32 + 2)
    assert (column[:, :, :32] == images[3].numpy()).all() and (column[:, :, -32:] == images[9].numpy()).all()
    labels = re.findall("<span>(.*?)</span>", grid_element(grid, "a grid", ["cat", "dog"]))
    assert labels == ["cat", "decoded", "dog", "decoded"]


def test_row_names_are_no_part_of_a_grid(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    save_grid(images, tmp_path / "plain.png", 2)
    save_grid(images, tmp_path / "named.png", 2, row_names=["cat", "dog"])
    plain, named = read_grid(tmp_path / "plain.png"), read_grid(tmp_path / "named.png")
    assert plain is not None and named is not None and named.tile == plain.tile
    assert np.array_equal(named.pixels, plain.pixels)


def test_another_picture_has_no_layout(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), "white").save(tmp_path / "white.png")
    grid = read_grid(tmp_path / "white.png")
    assert grid is not None and grid.tile is None and grid.num_rows == 0
    Image.new("RGB", (50, 40), (128, 128, 128)).save(tmp_path / "grey.png")
    grey = read_grid(tmp_path / "grey.png")
    assert grey is not None and grey.tile is None


def test_a_damaged_picture_is_none(tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), "red").save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no picture")
    assert read_grid(tmp_path / "cut.png") is None
    assert read_grid(tmp_path / "text.png") is None


def test_large_grids_are_shrunk() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 2800, 3), dtype=np.uint8)
    element = image_element(pixels, "wide", is_pixelated=True)
    assert 'width="1400" height="150"' in element and "data:image/jpeg" in element and "pixelated" not in element


def test_small_helpers() -> None:
    assert evenly(list(range(100)), 3) == [0, 50, 99] or evenly(list(range(100)), 3) == [0, 49, 99]
    assert evenly([1, 2], 8) == [1, 2]
    assert [short_count(x) for x in (0, 950, 6400, 1_250_000)] == ["0", "950", "6.4k", "1.25M"]
