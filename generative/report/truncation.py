"""The truncation-variety curve as files, a table and a picture: distance against score, and each against the threshold."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from generative.core.logging import whole_file, write_json
from generative.report.figures import MARKERS, PALETTE
from metrics.terminal import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_FILE = "curve.json"
NO_TRUNCATION = "none"
# Width and height in inches: the panel of distance against score, and that of one score against the threshold.
LARGE_PANEL = (5.2, 4.6)
SMALL_PANEL = (4.2, 2.3)
DOTS_PER_INCH = 160
# Names of points that lie closer together than this, across and up, would overlap; in points (1/72 inch).
MIN_LABEL_DISTANCE = (26.0, 11.0)
# Characters to an inch of heading and of small print.
TITLE_DENSITY = 10
NOTE_DENSITY = 19
# Where "none" stands on the axis of thresholds, beyond the largest of them, as a share of it.
NONE_OFFSET = 0.12
# Name of a score -> its title; {network} is the feature network, for scores that are not what they look like on another one.
TITLES = {
    "fid": "FID",
    "fd_dinov2": "FD-DINOv2",
    "clip_fid": "CLIP-FID",
    "frechet_distance": "Fréchet distance on {network} (not FID)",
    "inception_score_mean": "Inception Score",
    "classifier_score_mean": "classifier score on {network} (not IS)",
}
# The two sides of the trade: distance, which sees quality and variety, and score, which sees quality; the first of each is drawn.
DISTANCES = ("fid", "fd_dinov2", "clip_fid", "frechet_distance")
SCORES = ("inception_score_mean", "classifier_score_mean")


@dataclass(frozen=True)
class CurvePoint:
    """What sampling with one truncation scores.

    Attributes:
        threshold: Truncation; None for none.
        scores: Value by name, as ``metrics`` names them.
    """

    threshold: float | None
    scores: dict[str, float]

    @property
    def name(self) -> str:
        """The threshold as text."""
        return NO_TRUNCATION if self.threshold is None else f"{self.threshold:g}"


def read_points(content: dict[str, Any]) -> list[CurvePoint]:
    """Points of a curve.json, from the strongest truncation to none."""
    points = [CurvePoint(point["threshold"], point["scores"]) for point in content["points"]]
    return sorted(points, key=lambda point: float("inf") if point.threshold is None else point.threshold)


def score_names(points: Sequence[CurvePoint]) -> list[str]:
    """Names of all scores, in the order in which they were computed."""
    return list(dict.fromkeys(name for point in points for name in point.scores))


def write_files(content: dict[str, Any], output: Path) -> None:
    """Write curve.json, curve.csv and curve.png into a folder, each whole or not at all.

    Args:
        content: ``settings`` (what the curve was made with), ``points`` (``threshold``, ``scores`` and ``notes`` of each),
            ``reference`` and ``protocol``.
        output: The folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / CURVE_FILE, content)
    settings, points = content["settings"], read_points(content)
    names = score_names(points)
    with (
        whole_file(output / "curve.csv") as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["threshold", "num_samples", *names])
        writer.writerows([point.name, settings["num_samples"], *(point.scores.get(name) for name in names)] for point in points)
    title = f"Truncation against variety, {settings['num_samples']:,} samples at each threshold"
    write_curve(points, output / "curve.png", settings["extractor"], title, describe(content))


def describe(content: dict[str, Any]) -> str:
    """What the numbers depend on, in a line."""
    settings = content["settings"]
    standing = settings["standing_statistics"]
    facts = [
        f"noise {settings['truncation_law']}",
        "batch norm as saved" if standing is None else f"standing statistics of {standing[0]} batches of {standing[1]}",
        f"network {settings['extractor']}",
        f"protocol {content['protocol']}",
        f"reference {Path(content['reference']).name}",
        f"seed {settings['seed']}",
    ]
    return "; ".join(facts)


def format_curve(content: dict[str, Any]) -> str:
    """The table, strongest truncation first, below what is to be known of it."""
    points = read_points(content)
    names = score_names(points)
    widths = [max(len(name), 12) for name in names]
    lines = [describe(content)]
    lines += [f"note: {note}" for note in dict.fromkeys(note for point in content["points"] for note in point["notes"])]
    lines.append("threshold" + "".join(f"  {name:>{width}}" for name, width in zip(names, widths, strict=True)))
    for point in points:
        cells = (f"{point.scores[name]:.4f}" if name in point.scores else "" for name in names)
        lines.append(f"{point.name:>9}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return "\n".join(lines) + "\n"


def title_of(name: str, network: str) -> str:
    """A score's name for people."""
    return TITLES.get(name, name.replace("_", " ")).format(network=network)


def write_curve(points: Sequence[CurvePoint], path: Path, network: str, title: str, note: str) -> None:
    """Draw the curve as PNG, whole or not at all.

    The large panel is that of arXiv 1809.11096 (appendix): distance against score, a point for each truncation, the least
    distance circled. Beside it every score stands against the truncation. Where one of the two is missing, it is left out.

    Args:
        points: At least one, in the order of their thresholds.
        path: The file.
        network: Name of the feature network.
        title: Heading.
        note: Protocol, in small print below.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The deviations that come with some scores are no scores.
    names = [name for name in score_names(points) if not name.endswith(("_std", "_stderr"))]
    distance = next((name for name in DISTANCES if name in names), None)
    score = next((name for name in SCORES if name in names), None)
    has_trade = distance is not None and score is not None
    rows = len(names)
    height = max(SMALL_PANEL[1] * rows, LARGE_PANEL[1] if has_trade else 0) + 0.6
    widths = (LARGE_PANEL[0], SMALL_PANEL[0]) if has_trade else (LARGE_PANEL[0],)
    figure = Figure(figsize=(sum(widths), height), layout="constrained")
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths)
    figure.suptitle(fill(drawable(title), int(TITLE_DENSITY * sum(widths))), fontsize=11)
    figure.supxlabel(fill(drawable(note), int(NOTE_DENSITY * sum(widths))), fontsize=7, color="#5f6368")
    for row, name in enumerate(names):
        axes = figure.add_subplot(grid[row, -1])
        draw_score(axes, points, name, PALETTE[row % len(PALETTE)], MARKERS[row % len(MARKERS)])
        axes.set_title(title_of(name, network), fontsize=9.5)
        if row == rows - 1:
            axes.set_xlabel("truncation threshold")
    canvas = FigureCanvasAgg(figure)
    if distance is not None and score is not None:
        trade = figure.add_subplot(grid[:, 0])
        draw_trade(trade, points, distance, score)
        trade.set_xlabel(f"{title_of(score, network)}, higher is better")
        trade.set_ylabel(f"{title_of(distance, network)}, lower is better")
        canvas.draw()  # Only a laid out figure knows how far apart its points are.
        label_points(trade, [(p.scores[score], p.scores[distance], p.name) for p in points if {distance, score} <= set(p.scores)])
    with whole_file(path) as partial:
        canvas.print_figure(partial, format="png", dpi=DOTS_PER_INCH)


def draw_score(axes: Axes, points: Sequence[CurvePoint], name: str, color: str, marker: str) -> None:
    """One score against the threshold; no truncation stands at the right end under its name."""
    thresholds = [point.threshold for point in points if point.threshold is not None]
    largest = max(thresholds, default=1.0)
    end = largest * (1 + NONE_OFFSET)
    shown = [(end if p.threshold is None else p.threshold, p.scores[name]) for p in points if name in p.scores]
    axes.plot(*zip(*shown, strict=True), color=color, marker=marker, markersize=3.5, linewidth=1.6)
    style_axes(axes)
    axes.set_xlim(0, end * 1.04)
    if any(point.threshold is None for point in points):
        ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= end - 0.8 * NONE_OFFSET * largest]
        axes.set_xticks([*ticks, end], [*(f"{tick:g}" for tick in ticks), NO_TRUNCATION])


def draw_trade(axes: Axes, points: Sequence[CurvePoint], distance: str, score: str) -> None:
    """Distance against score along the thresholds."""
    shown = [point for point in points if {distance, score} <= set(point.scores)]
    x, y = [point.scores[score] for point in shown], [point.scores[distance] for point in shown]
    axes.plot(x, y, color=PALETTE[0], marker="o", markersize=4.5, linewidth=1.6)
    best = min(shown, key=lambda point: point.scores[distance])
    axes.plot(
        best.scores[score], best.scores[distance], "o", color=PALETTE[1], markersize=8, fillstyle="none", markeredgewidth=1.8
    )
    style_axes(axes)
    axes.margins(0.1)
    axes.set_title(f"threshold at each point; circled: least distance (threshold {best.name})", fontsize=9)


def label_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write the names of points beside them, the two ends first, leaving out those for which there is no room."""
    from matplotlib.patheffects import withStroke

    scale = 72 / axes.figure.dpi
    placed: list[tuple[float, float]] = []
    for index in dict.fromkeys([0, len(points) - 1, *range(1, len(points) - 1)]):
        x, y, name = points[index]
        across, up = (float(value) * scale for value in axes.transData.transform((x, y)))
        if all(abs(across - a) >= MIN_LABEL_DISTANCE[0] or abs(up - b) >= MIN_LABEL_DISTANCE[1] for a, b in placed):
            halo = [withStroke(linewidth=2.5, foreground="white")]
            axes.annotate(name, (x, y), (7, -11), textcoords="offset points", fontsize=8.5, color="#3c4043", path_effects=halo)
            placed.append((across, up))


def style_axes(axes: Axes) -> None:
    """The look of the page's curves: no frame above and right, a pale grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa0a6")
    axes.grid(True, color="#e8eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors="#3c4043", length=3, labelsize=8.5)
