"""Pictures of the page, all inside it: curves as SVG, and sample grids as they are or cut to one image per class."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from generative.core.logging import GRID_GREY, GRID_PADDING, ROW_NAMES_WIDTH
from generative.report.collect import Curve, Run
from generative.report.scores import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design" (2008): told apart under every colour blindness; its yellow is too pale on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
REAL_COLOR = "#5f6368"
# Further runs reuse the colours with another line and marker.
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
FIGURE_SIZE = (3.6, 2.5)  # inches
# Losses are logged densely and noisily: from so many points on a smoothed line is drawn over the raw one.
MIN_POINTS_TO_SMOOTH = 20
# Half-life of the smoothing average, as a share of the curve.
SMOOTHING_SHARE = 0.03
# A loss that spans more than this factor is drawn on a logarithmic axis.
LOG_RANGE = 20.0
# Larger grids are shrunk before they go into the page, in px.
MAX_GRID_WIDTH = 1400
# Images of at most this side are shown as hard-edged pixels, in px.
MAX_PIXELATED_TILE = 64
JPEG_QUALITY = 92
MAX_STRIP_ROWS = 8


def run_colors(runs: Sequence[Run]) -> dict[str, str]:
    """One colour for each run, by name."""
    return {run.name: PALETTE[i % len(PALETTE)] for i, run in enumerate(runs)}


# ---------------------------------------------------------------------- curves


def loss_figure(run: Run, color: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Every loss of a run over training images seen, raw and smoothed.

    Returns:
        The SVG, and colour, line style and name of each curve for a legend; both empty if nothing was logged.
    """
    curves = [(name, *run.curve(name)) for name in run.loss_names]
    curves = [curve for curve in curves if curve[1]]
    if not curves:
        return "", []
    legend = []

    def draw(axes: Axes) -> None:
        for i, (name, images, values) in enumerate(curves):
            shade, style = shaded(color, i), LINE_STYLES[i % len(LINE_STYLES)]
            if len(values) >= MIN_POINTS_TO_SMOOTH:
                axes.plot(images, values, color=shade, alpha=0.25, linewidth=0.7)
                values = smooth(values)
            axes.plot(images, values, color=shade, linestyle=style, linewidth=1.6)
            legend.append((shade, style, name))
        everything = [value for _, _, values in curves for value in values]
        if min(everything) > 0 and max(everything) / min(everything) > LOG_RANGE:
            log_scale(axes)

    return figure_svg(draw, f"Training losses of {run.name}", f"loss-{run.name}"), legend


def score_figure(
    runs: Sequence[Run], score: Score, colors: dict[str, str], is_log: bool, limits: tuple[float, float] | None
) -> str:
    """One score of all runs over training images seen, with the value of real images as a dashed line.

    Returns:
        The SVG; empty if no run has the score.
    """
    curves: list[tuple[int, Run, Curve]] = []
    for i, run in enumerate(runs):
        curve = max((run.curve(f"evaluation/{key}") for key in score.keys), key=lambda curve: len(curve[0]))
        if curve[0]:
            curves.append((i, run, curve))
    if not curves:
        return ""
    reals = sorted({value for _, run, _ in curves if (value := score.of(run.real_scores)) is not None and math.isfinite(value)})

    def draw(axes: Axes) -> None:
        for value in reals:
            axes.axhline(value, color=REAL_COLOR, linestyle=(0, (5, 3)), linewidth=1.2)
        for i, run, (images, values) in curves:
            again = i // len(PALETTE)
            style, marker = LINE_STYLES[again % len(LINE_STYLES)], MARKERS[i % len(MARKERS)]
            axes.plot(images, values, color=colors[run.name], linestyle=style, marker=marker, markersize=3.5, linewidth=1.6)
        if is_log and min([*reals, *(value for _, _, curve in curves for value in curve[1])]) > 0:
            log_scale(axes)
        if limits is not None:
            axes.set_ylim(*limits)

    return figure_svg(draw, f"{score.title} over training images seen", f"score-{score.title}")


def figure_svg(draw: Any, label: str, key: str) -> str:
    """Draw one plot over training images seen as an inline SVG.

    All text in it is ours: names from files stay in the HTML around it.

    Args:
        draw: Draws on the axes it is given.
        label: What a screen reader says.
        key: Name of the figure, unique in the page.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 9.5, "axes.edgecolor": "#9aa0a6"}
    with matplotlib.rc_context(settings):
        # A bare Figure needs no display and no pyplot state; saving it as SVG picks the renderer.
        figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e8eaed", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors="#3c4043", length=3)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_count(x)))
        axes.set_xlabel("training images seen", color="#3c4043")
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return inline_svg(buffer.getvalue(), label, key)


def log_scale(axes: Axes) -> None:
    """Logarithmic values with plain numbers at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def inline_svg(text: str, label: str, key: str) -> str:
    """Make a stand-alone SVG fit to stand in a page: no prolog, fluid width, identifiers that no other figure has."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    prefix = re.sub(r"[^a-zA-Z0-9]", lambda match: f"_{ord(match[0]):x}", key)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text).replace("url(#", f"url(#{prefix}-")
    tag = text[: text.index(">") + 1]
    view = re.search(r'viewBox="[^"]*"', tag)
    assert view is not None
    return f'<svg role="img" aria-label="{escape(label)}" {view[0]}>{text[len(tag) :]}'


def shaded(color: str, index: int) -> str:
    """A run's colour for its first curve, darker for each further one."""
    factor = max(0.35, 1.0 - 0.45 * index)
    return "#" + "".join(f"{round(int(color[i : i + 2], 16) * factor):02x}" for i in (1, 3, 5))


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential average over both directions, so that it neither lags nor favours an end."""
    decay = 0.5 ** (1 / max(1.0, SMOOTHING_SHARE * len(values)))

    def average(ordered: Sequence[float]) -> list[float]:
        total = weight = 0.0
        averages = []
        for value in ordered:
            total, weight = decay * total + value, decay * weight + 1
            averages.append(total / weight)
        return averages

    return [(before + after) / 2 for before, after in zip(average(values), average(values[::-1])[::-1], strict=True)]


def short_count(value: float) -> str:
    """A count with k or M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"


# ---------------------------------------------------------------------- images


@dataclass(frozen=True)
class Grid:
    """A sample grid, read.

    Attributes:
        pixels: (height, width, 3) uint8.
        tile: Height and width of one image in it, in px, or None if it has not the layout of ours.
    """

    pixels: np.ndarray
    tile: tuple[int, int] | None

    @property
    def num_rows(self) -> int:
        """Classes, one to a row; 0 if unknown."""
        return 0 if self.tile is None else (self.pixels.shape[0] - GRID_PADDING) // (self.tile[0] + GRID_PADDING)

    def first_column(self) -> np.ndarray:
        """The first image of each class, side by side: (tile height, width, 3) uint8."""
        assert self.tile is not None
        height, width = self.tile
        starts = range(GRID_PADDING, self.pixels.shape[0] - GRID_PADDING, height + GRID_PADDING)
        # With the grey line at its right, which keeps neighbours apart.
        tiles = [self.pixels[y : y + height, GRID_PADDING : width + 2 * GRID_PADDING] for y in starts]
        return np.concatenate(tiles, axis=1)[:, :-GRID_PADDING]


def read_grid(path: Path) -> Grid | None:
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
    return Grid(pixels, (height, width) if height and width else None)


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
    names = [class_names[i] if class_names and i < len(class_names) else str(i) for i in range(grid.num_rows)]
    labels = "".join(f"<span>{escape(name)}</span>" for name in names)
    return f'<div class="grid"><div class="labels" aria-hidden="true">{labels}</div>{image}</div>'


def strip_element(run: Run) -> str:
    """The first image of each class at each saved step: one row per step; empty if there are fewer than two."""
    rows = []
    for step, path in evenly(run.grids, MAX_STRIP_ROWS):
        grid = read_grid(path)
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


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
