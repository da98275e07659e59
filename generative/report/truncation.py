"""The truncation-variety curve as files, a table and a picture: distance against score, and each against the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from generative.core.logging import whole_file, write_json
from generative.report.figures import MARKERS, PALETTE
from generative.report.sweeps import (
    DISTANCES,
    DOTS_PER_INCH,
    NOTE_DENSITY,
    SCORES,
    TITLE_DENSITY,
    SweepPoint,
    circle,
    draw_score,
    drawn_names,
    format_table,
    read_points,
    style_axes,
    title_of,
    write_table,
)
from metrics.terminal import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_FILE = "curve.json"
OPTION = "threshold"
# Width and height in inches: the panel of distance against score, and that of one score against the threshold.
LARGE_PANEL = (5.2, 4.6)
SMALL_PANEL = (4.2, 2.3)
# Names of points that lie closer together than this, across and up, would overlap; in points (1/72 inch).
MIN_LABEL_DISTANCE = (26.0, 11.0)


def write_files(content: dict[str, Any], output: Path) -> None:
    """Write curve.json, curve.csv and curve.png into a folder, each whole or not at all.

    Args:
        content: ``settings`` (what the curve was made with), ``points`` (``threshold``, ``scores`` and ``notes`` of each),
            ``reference`` and ``protocol``.
        output: The folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / CURVE_FILE, content)
    settings, points = content["settings"], read_points(content, OPTION)
    write_table(points, OPTION, settings["num_samples"], output / "curve.csv")
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
    lines = [describe(content)]
    lines += [f"note: {note}" for note in dict.fromkeys(note for point in content["points"] for note in point["notes"])]
    lines += format_table(read_points(content, OPTION), OPTION)
    return "\n".join(lines) + "\n"


def write_curve(points: Sequence[SweepPoint], path: Path, network: str, title: str, note: str) -> None:
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

    names = drawn_names(points)
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


def draw_trade(axes: Axes, points: Sequence[SweepPoint], distance: str, score: str) -> None:
    """Distance against score along the thresholds."""
    shown = [point for point in points if {distance, score} <= set(point.scores)]
    x, y = [point.scores[score] for point in shown], [point.scores[distance] for point in shown]
    axes.plot(x, y, color=PALETTE[0], marker="o", markersize=4.5, linewidth=1.6)
    best = min(shown, key=lambda point: point.scores[distance])
    circle(axes, best.scores[score], best.scores[distance], PALETTE[1])
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
