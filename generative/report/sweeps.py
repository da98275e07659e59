"""Scores of samples along one option, as a table, a file of columns and curves: what the pictures of all sweeps share."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.core.logging import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTHING = "none"
"""What the option is called where it is None."""
DOTS_PER_INCH = 160
# Characters to an inch of heading and of small print.
TITLE_DENSITY = 10
NOTE_DENSITY = 19
# Where "none" stands on the axis, beyond the largest value, as a share of it.
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
class SweepPoint:
    """What sampling with one value of the option scores.

    Attributes:
        value: The option; None for none, beyond every value.
        scores: Value by name, as ``metrics`` names them.
    """

    value: float | None
    scores: dict[str, float]

    @property
    def name(self) -> str:
        """The value as text."""
        return NOTHING if self.value is None else f"{self.value:g}"


def read_points(content: dict[str, Any], option: str) -> list[SweepPoint]:
    """Points of a sweep's JSON file, from the smallest value to none."""
    points = [SweepPoint(point[option], point["scores"]) for point in content["points"]]
    return sorted(points, key=lambda point: float("inf") if point.value is None else point.value)


def score_names(points: Sequence[SweepPoint]) -> list[str]:
    """Names of all scores, in the order in which they were computed."""
    return list(dict.fromkeys(name for point in points for name in point.scores))


def drawn_names(points: Sequence[SweepPoint]) -> list[str]:
    """Names of the scores that are drawn: the deviations that come with some are no scores."""
    return [name for name in score_names(points) if not name.endswith(("_std", "_stderr"))]


def write_table(points: Sequence[SweepPoint], option: str, num_samples: int, path: Path) -> None:
    """Write all scores as CSV, a line for each value, whole or not at all."""
    names = score_names(points)
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([option, "num_samples", *names])
        writer.writerows([point.name, num_samples, *(point.scores.get(name) for name in names)] for point in points)


def format_table(points: Sequence[SweepPoint], option: str) -> list[str]:
    """Lines of the table, smallest value first."""
    names = score_names(points)
    widths = [max(len(name), 12) for name in names]
    lines = [f"{option:>9}" + "".join(f"  {name:>{width}}" for name, width in zip(names, widths, strict=True))]
    for point in points:
        cells = (f"{point.scores[name]:.4f}" if name in point.scores else "" for name in names)
        lines.append(f"{point.name:>9}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return lines


def best_point(points: Sequence[SweepPoint]) -> tuple[SweepPoint, str] | None:
    """The point of least distance and the distance's name; None without a distance."""
    name = next((name for name in DISTANCES if any(name in point.scores for point in points)), None)
    if name is None:
        return None
    return min((point for point in points if name in point.scores), key=lambda point: point.scores[name]), name


def title_of(name: str, network: str) -> str:
    """A score's name for people."""
    return TITLES.get(name, name.replace("_", " ")).format(network=network)


def draw_score(axes: Axes, points: Sequence[SweepPoint], name: str, color: str, marker: str) -> None:
    """One score against the option; none stands at the right end under its name."""
    values = [point.value for point in points if point.value is not None]
    largest = max(values, default=1.0)
    end = largest * (1 + NONE_OFFSET)
    shown = [(end if p.value is None else p.value, p.scores[name]) for p in points if name in p.scores]
    axes.plot(*zip(*shown, strict=True), color=color, marker=marker, markersize=3.5, linewidth=1.6)
    style_axes(axes)
    axes.set_xlim(0, end * 1.04)
    if any(point.value is None for point in points):
        ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= end - 0.8 * NONE_OFFSET * largest]
        axes.set_xticks([*ticks, end], [*(f"{tick:g}" for tick in ticks), NOTHING])


def circle(axes: Axes, x: float, y: float, color: str) -> None:
    """Mark a point."""
    axes.plot(x, y, "o", color=color, markersize=8, fillstyle="none", markeredgewidth=1.8)


def style_axes(axes: Axes) -> None:
    """The look of the page's curves: no frame above and right, a pale grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa0a6")
    axes.grid(True, color="#e8eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors="#3c4043", length=3, labelsize=8.5)
