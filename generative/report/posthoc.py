"""The sweep of post-hoc averages as files, a table and a picture: each score against the relative standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from generative.core.logging import whole_file, write_json
from generative.report.figures import MARKERS, PALETTE
from generative.report.sweeps import (
    DOTS_PER_INCH,
    NOTE_DENSITY,
    TITLE_DENSITY,
    SweepPoint,
    best_point,
    circle,
    draw_score,
    drawn_names,
    format_table,
    read_points,
    title_of,
    write_table,
)
from metrics.terminal import drawable

SWEEP_FILE = "posthoc-ema.json"
OPTION = "std"
PANEL = (6.4, 3.0)
"""Width and height of a score's panel, in inches."""


def write_files(content: dict[str, Any], output: Path) -> None:
    """Write posthoc-ema.json, .csv and .png into a folder, each whole or not at all.

    Args:
        content: ``settings`` (what the sweep was made with), ``points`` (``std``, ``scores``, ``profile_error`` and ``notes`` of
            each) and ``protocol``; the best point is added.
        output: The folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    points = read_points(content, OPTION)
    best = best_point(points)
    content["best"] = None if best is None else {OPTION: best[0].value, best[1]: best[0].scores[best[1]]}
    write_json(output / SWEEP_FILE, content)
    write_table(points, OPTION, content["settings"]["num_samples"], output / "posthoc-ema.csv")
    write_picture(points, output / "posthoc-ema.png", content)


def describe(content: dict[str, Any]) -> str:
    """What the numbers depend on, in a line."""
    settings = content["settings"]
    facts = [
        f"average of '{settings['network']}' at {settings['images']:,} images",
        f"from {len(settings['snapshots'])} snapshots of std {', '.join(f'{std:g}' for std in snapshot_stds(content))}",
        f"network {content['extractor']}",
        f"protocol {content['protocol']}",
        f"reference {content['reference']}",
        f"seed {settings['seed']}",
    ]
    return "; ".join(facts)


def snapshot_stds(content: dict[str, Any]) -> list[float]:
    """Relative standard deviations of the snapshots."""
    return sorted({round(float(std), 4) for _, std, _ in content["settings"]["snapshots"]})


def format_sweep(content: dict[str, Any]) -> str:
    """The table, shortest average first, below what is to be known of it."""
    points = read_points(content, OPTION)
    lines = [describe(content)]
    lines += [f"note: {note}" for note in dict.fromkeys(note for point in content["points"] for note in point["notes"])]
    lines += format_table(points, OPTION)
    best = best_point(points)
    if best is not None:
        lines.append(f"least {best[1]} {best[0].scores[best[1]]:.4f} at std {best[0].name}")
    return "\n".join(lines) + "\n"


def write_picture(points: Sequence[SweepPoint], path: Path, content: dict[str, Any]) -> None:
    """Draw every score against the length as PNG, whole or not at all (arXiv 2312.02696, figure 4).

    Args:
        points: At least one, in the order of their lengths; the one of least distance is circled.
        path: The file.
        content: See ``write_files``; lengths of the snapshots are dotted.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = drawn_names(points)
    best = best_point(points)
    figure = Figure(figsize=(PANEL[0], PANEL[1] * len(names) + 0.6), layout="constrained")
    title = f"Averages of any length after training, {content['settings']['num_samples']:,} samples of each"
    figure.suptitle(fill(drawable(title), int(TITLE_DENSITY * PANEL[0])), fontsize=11)
    figure.supxlabel(fill(drawable(describe(content)), int(NOTE_DENSITY * PANEL[0])), fontsize=7, color="#5f6368")
    for row, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, row + 1)
        draw_score(axes, points, name, PALETTE[row % len(PALETTE)], MARKERS[row % len(MARKERS)])
        heading = title_of(name, content["extractor"])
        if best is not None and name == best[1]:
            value = best[0].scores[name]
            circle(axes, float(best[0].value or 0.0), value, PALETTE[1])
            heading += f", least {value:.4g} at std {best[0].name}"
        for std in snapshot_stds(content):
            axes.axvline(std, color="#9aa0a6", linestyle=":", linewidth=1)
        axes.set_title(heading, fontsize=9.5)
    axes.set_xlabel("relative standard deviation of the average (dotted: snapshots)")
    with whole_file(path) as partial:
        FigureCanvasAgg(figure).print_figure(partial, format="png", dpi=DOTS_PER_INCH)
