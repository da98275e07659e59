"""Pictures of the page, all inside it: sample grids as they are, cut to one image per class, and small, over training."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from generative.core.logging import GRID_GREY, GRID_PADDING, ROW_NAMES_WIDTH
from generative.report.collect import Run

# Okabe and Ito, "Color Universal Design" (2008): told apart under every colour blindness; its yellow is too pale on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
REAL_COLOR = "#5f6368"
# Further runs reuse the colours with another line and marker.
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
# Larger grids are shrunk before they go into the page, in px.
MAX_GRID_WIDTH = 1400
# Images of at most this side are shown as hard-edged pixels, in px.
MAX_PIXELATED_TILE = 64
JPEG_QUALITY = 92
MAX_STRIP_ROWS = 8
# A small grid is so wide, in px, and there are so many of a run.
THUMBNAIL_WIDTH = 220
MAX_THUMBNAILS = 8


def run_colors(runs: Sequence[Run]) -> dict[str, str]:
    """One colour for each run, by name."""
    return {run.name: PALETTE[i % len(PALETTE)] for i, run in enumerate(runs)}


def short_count(value: float) -> str:
    """A count with k or M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"


@dataclass(frozen=True)
class Grid:
    """A sample grid, read.

    Attributes:
        pixels: (height, width, 3) uint8.
        tile: Height and width of one image in it, in px, or None if it has not the layout of ours.
        rows_per_class: 2 where images stand above their reconstructions.
    """

    pixels: np.ndarray
    tile: tuple[int, int] | None
    rows_per_class: int = 1

    @property
    def num_rows(self) -> int:
        """Rows of images; 0 if unknown."""
        return 0 if self.tile is None else (self.pixels.shape[0] - GRID_PADDING) // (self.tile[0] + GRID_PADDING)

    def first_column(self) -> np.ndarray:
        """The first image of each class, or its reconstruction, side by side: (tile height, width, 3) uint8."""
        assert self.tile is not None
        height, width = self.tile
        starts = range(GRID_PADDING, self.pixels.shape[0] - GRID_PADDING, height + GRID_PADDING)
        starts = starts[self.rows_per_class - 1 :: self.rows_per_class]
        # With the grey line at its right, which keeps neighbours apart.
        tiles = [self.pixels[y : y + height, GRID_PADDING : width + 2 * GRID_PADDING] for y in starts]
        return np.concatenate(tiles, axis=1)[:, :-GRID_PADDING]


def read_grid(path: Path, rows_per_class: int = 1) -> Grid | None:
    """Read a grid; None if the file is no readable image."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
            # The page writes the names of the rows itself.
            pixels = pixels[:, int(image.info.get(ROW_NAMES_WIDTH, 0)) :]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        # Pillow reports damaged PNG files by SyntaxError and ValueError too.
        return None
    height, width = (first_gap(pixels, axis) for axis in (0, 1))
    return Grid(pixels, (height, width) if height and width else None, rows_per_class)


def first_gap(pixels: np.ndarray, axis: int) -> int:
    """Side of the images along an axis, told by the grey lines between them; 0 if the lines are not where they should be."""
    is_line = (pixels == GRID_GREY).all(axis=(1 - axis, 2))
    if len(is_line) <= 2 * GRID_PADDING or not is_line[:GRID_PADDING].all():
        return 0
    ends = np.flatnonzero(is_line[GRID_PADDING:])
    side = int(ends[0]) if len(ends) else 0
    step = side + GRID_PADDING
    is_regular = side > 0 and (len(is_line) - GRID_PADDING) % step == 0
    return side if is_regular and is_line[::step].all() and is_line[1::step].all() else 0


def image_element(pixels: np.ndarray, alt: str, is_pixelated: bool) -> str:
    """An image inside the page; a large one is shrunk first."""
    image = Image.fromarray(pixels)
    kind = "png"
    options: dict[str, Any] = {"optimize": True}
    if image.width > MAX_GRID_WIDTH:
        image = image.resize((MAX_GRID_WIDTH, round(image.height * MAX_GRID_WIDTH / image.width)), Image.Resampling.LANCZOS)
        kind, options, is_pixelated = "jpeg", {"quality": JPEG_QUALITY}, False
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    css_class = ' class="pixelated"' if is_pixelated else ""
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img{css_class} src="data:image/{kind};base64,{data}" alt="{escape(alt)}" {size}>'


def grid_element(grid: Grid, alt: str, class_names: Sequence[str] | None) -> str:
    """A grid with its class labels down the left."""
    image = image_element(grid.pixels, alt, grid.tile is not None and max(grid.tile) <= MAX_PIXELATED_TILE)
    if not grid.num_rows:
        return f'<div class="grid">{image}</div>'
    labels = "".join(f"<span>{escape(row_label(row, grid.rows_per_class, class_names))}</span>" for row in range(grid.num_rows))
    return f'<div class="grid"><div class="labels" aria-hidden="true">{labels}</div>{image}</div>'


def row_label(row: int, rows_per_class: int, class_names: Sequence[str] | None) -> str:
    """Name of a row's class, at the first of its rows."""
    label, below = divmod(row, rows_per_class)
    if below:
        return "decoded"
    return class_names[label] if class_names and label < len(class_names) else str(label)


def strip_element(run: Run) -> str:
    """The first image of each class at each saved step: one row per step; empty if there are fewer than two."""
    rows = []
    for step, path in evenly(run.grids, MAX_STRIP_ROWS):
        grid = read_grid(path, run.grid_rows_per_class)
        if grid is None or grid.tile is None:
            continue
        seen = run.images_at(step)
        label = f"step {step}" if seen is None else short_count(seen)
        is_pixelated = max(grid.tile) <= MAX_PIXELATED_TILE
        image = image_element(grid.first_column(), f"First image of each class of {run.name} at step {step}", is_pixelated)
        rows.append(f"<span>{label}</span>{image}")
    if len(rows) < 2:
        return ""
    return (
        '<div class="strip"><p>over training: first image of each class, by training images seen</p>'
        f'<div class="rows">{"".join(rows)}</div></div>'
    )


def thumbnails_element(run: Run, columns: int) -> str:
    """The whole grid, small, at some of the saved steps, evenly spaced; empty if there are fewer than two.

    Args:
        run: The run.
        columns: For how many there is to be room, so that those of several runs stand below one another.
    """
    figures = []
    for step, path in evenly(run.grids, MAX_THUMBNAILS):
        grid = read_grid(path)
        if grid is None:
            continue
        seen = run.images_at(step)
        label = f"step {step:,}" if seen is None else short_count(seen)
        image = Image.fromarray(grid.pixels)
        image.thumbnail((THUMBNAIL_WIDTH, 4 * THUMBNAIL_WIDTH), Image.Resampling.LANCZOS)
        picture = image_element(np.asarray(image), f"Grid of {run.name} at step {step}", is_pixelated=False)
        figures.append(f"<figure>{picture}<figcaption>{label}</figcaption></figure>")
    if len(figures) < 2:
        return ""
    return f'<div class="thumbnails" style="--columns:{columns}">{"".join(figures)}</div>'


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
