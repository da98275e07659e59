"""Curves of the page as inline SVG: one plot for each quantity, with all runs that logged it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from generative.report.collect import Curve, Run
from generative.report.figures import LINE_STYLES, MARKERS, PALETTE, REAL_COLOR, short_count
from generative.report.scores import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE_SIZE = (3.6, 2.5)  # inches
# Losses are logged densely and noisily: from so many points on a smoothed line is drawn over the raw one.
MIN_POINTS_TO_SMOOTH = 20
# Half-life of the smoothing average, as a share of the curve.
SMOOTHING_SHARE = 0.03
# A loss that spans more than this factor is drawn on a logarithmic axis.
LOG_RANGE = 20.0


@dataclass(frozen=True)
class Axis:
    """What curves are drawn over.

    Attributes:
        key: Part of the names of figures.
        label: Under the axis.
        format: Writes its ticks.
        of: Places on it of training images seen; None for a run whose places are not known.
    """

    key: str
    label: str
    format: Callable[[float], str]
    of: Callable[[Run, Sequence[float]], list[float] | None]


IMAGES = Axis("images", "training images seen", short_count, lambda run, images: list(images))


def time_axis(runs: Sequence[Run]) -> Axis | None:
    """Time spent in steps, in the unit that fits the longest run; None where no run's is known."""
    longest = max((run.training_seconds or 0.0 for run in runs), default=0.0)
    if not longest:
        return None
    size, unit = next(
        ((size, unit) for size, unit in ((3600.0, "hours"), (60.0, "minutes")) if longest >= 2 * size), (1.0, "seconds")
    )

    def of(run: Run, images: Sequence[float]) -> list[float] | None:
        seconds = run.seconds_at(images)
        return None if seconds is None else [each / size for each in seconds]

    return Axis("time", f"{unit} of training", lambda value: f"{value:g}", of)


def loss_names(runs: Sequence[Run]) -> list[str]:
    """Every loss that any run logged, in the order of first appearance."""
    return list(dict.fromkeys(name for run in runs for name in run.loss_names))


def loss_figure(runs: Sequence[Run], name: str, colors: dict[str, str], axis: Axis = IMAGES) -> str:
    """A loss of all runs that logged it, raw and smoothed.

    Returns:
        The SVG; empty if it cannot be drawn over the axis.
    """
    curves = placed(runs, lambda run: run.curve(name), axis)
    if not curves:
        return ""

    def draw(axes: Axes) -> None:
        for i, run, (places, values) in curves:
            if len(values) >= MIN_POINTS_TO_SMOOTH:
                axes.plot(places, values, color=colors[run.name], alpha=0.2, linewidth=0.7)
                values = smooth(values)
            axes.plot(places, values, color=colors[run.name], linestyle=line_style(i), linewidth=1.6)
        everything = [value for _, _, curve in curves for value in curve[1]]
        if min(everything) > 0 and max(everything) / min(everything) > LOG_RANGE:
            log_scale(axes)

    return figure_svg(draw, f"Loss {name} over {axis.label}", f"loss-{axis.key}-{name}", axis)


def line_style(number: int) -> str:
    """Line of a run by its place: runs that share a colour have others."""
    return LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)]


def placed(runs: Sequence[Run], curve_of: Callable[[Run], Curve], axis: Axis) -> list[tuple[int, Run, Curve]]:
    """The curves that there are, over an axis, with the number of their run."""
    found = []
    for number, run in enumerate(runs):
        images, values = curve_of(run)
        places = axis.of(run, images) if images else None
        if places is not None:
            found.append((number, run, (places, values)))
    return found


def score_figure(
    runs: Sequence[Run],
    score: Score,
    colors: dict[str, str],
    is_log: bool,
    limits: tuple[float, float] | None,
    axis: Axis = IMAGES,
) -> str:
    """One score of all runs, with the value of real images as a dashed line.

    Returns:
        The SVG; empty if no run has the score, or it cannot be drawn over the axis.
    """

    def curve_of(run: Run) -> Curve:
        return max((run.curve(f"evaluation/{key}") for key in score.keys), key=lambda curve: len(curve[0]))

    curves = placed(runs, curve_of, axis)
    if not curves:
        return ""
    reals = sorted({value for _, run, _ in curves if (value := score.of(run.real_scores)) is not None and math.isfinite(value)})

    def draw(axes: Axes) -> None:
        for value in reals:
            axes.axhline(value, color=REAL_COLOR, linestyle=(0, (5, 3)), linewidth=1.2)
        for i, run, (places, values) in curves:
            style, marker = line_style(i), MARKERS[i % len(MARKERS)]
            axes.plot(places, values, color=colors[run.name], linestyle=style, marker=marker, markersize=3.5, linewidth=1.6)
        if is_log and min([*reals, *(value for _, _, curve in curves for value in curve[1])]) > 0:
            log_scale(axes)
        if limits is not None:
            axes.set_ylim(*limits)

    return figure_svg(draw, f"{score.title} over {axis.label}", f"score-{axis.key}-{score.title}", axis)


def figure_svg(draw: Any, label: str, key: str, axis: Axis = IMAGES) -> str:
    """Draw one plot as an inline SVG.

    All text in it is ours: names from files stay in the HTML around it.

    Args:
        draw: Draws on the axes it is given.
        label: What a screen reader says.
        key: Name of the figure, unique in the page.
        axis: What it is drawn over.
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
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: axis.format(x)))
        axes.set_xlabel(axis.label, color="#3c4043")
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
