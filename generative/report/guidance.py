"""Curves of guidance as files, a table and a picture: every score against the scale, a line for each kind of guidance."""

from __future__ import annotations

import csv
from pathlib import Path
from textwrap import fill
from typing import Any

from generative.core.logging import whole_file, write_json
from generative.report.figures import LINE_STYLES, MARKERS, PALETTE
from generative.report.sweeps import (
    DOTS_PER_INCH,
    NOTE_DENSITY,
    TITLE_DENSITY,
    SweepPoint,
    best_point,
    circle,
    drawn_names,
    format_table,
    score_names,
    style_axes,
    title_of,
)
from metrics.terminal import drawable

CURVE_FILE, PICTURE_FILE = "guidance.json", "guidance.png"
PANEL = (6.8, 2.9)
"""Width and height of a score's panel, in inches."""


def swept_role(content: dict[str, Any]) -> str:
    """Whose images the curves are scored by: of ``selection`` where scales are chosen, else of ``scoring``."""
    return "scoring" if content["settings"]["selection_reference"] is None else "selection"


def curve_points(content: dict[str, Any], curve: str, role: str | None = None) -> list[SweepPoint]:
    """Points of a curve, from the smallest scale on; None for those that are swept."""
    role = role or swept_role(content)
    found = [point for point in content["points"] if (point["curve"], point["role"]) == (curve, role)]
    return [SweepPoint(point["scale"], point["scores"]) for point in sorted(found, key=lambda point: point["scale"])]


def choose(content: dict[str, Any], curve: str) -> dict[str, Any] | None:
    """The scale of least distance of a curve, and its scores by the images that score, once there are such.

    Returns:
        ``scale``, ``by`` (the distance's name), and ``scores`` or None; None without a distance.
    """
    best = best_point(curve_points(content, curve))
    if best is None:
        return None
    scored = [point.scores for point in curve_points(content, curve, "scoring") if point.value == best[0].value]
    return {"scale": best[0].value, "by": best[1], "scores": scored[0] if scored else None}


def write_files(content: dict[str, Any], output: Path) -> None:
    """Write guidance.json and .csv into a folder, each whole or not at all.

    Args:
        content: ``settings``, ``curves`` by name, ``points`` (``curve``, ``scale``, ``role``, ``scores`` and ``notes`` of each),
            ``reference``, ``protocol`` and ``extractor``; what is chosen is added.
        output: The folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    content["chosen"] = {curve: choose(content, curve) for curve in content["curves"]}
    write_json(output / CURVE_FILE, content)
    points = [SweepPoint(point["scale"], point["scores"]) for point in content["points"]]
    names = score_names(points)
    with whole_file(output / "guidance.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["curve", "scale", "role", "num_samples", *names])
        for point in content["points"]:
            start = [point["curve"], point["scale"], point["role"], content["settings"]["num_samples"]]
            writer.writerow([*start, *(point["scores"].get(name) for name in names)])


def describe(content: dict[str, Any]) -> str:
    """What the numbers depend on, in a line."""
    settings = content["settings"]
    facts = [f"{settings['num_samples']:,} samples a point", f"{settings['options']['num_inference_steps']} steps"]
    facts += [f"network {content['extractor']}", f"protocol {content['protocol']}"]
    if swept_role(content) == "selection":
        facts.append(f"scales chosen with seed {settings['selection_seed']} by other images than score, these with seed")
        return "; ".join(facts) + f" {settings['seed']}"
    return "; ".join([*facts, f"reference {content['reference']}", f"seed {settings['seed']}"])


def format_curves(content: dict[str, Any]) -> str:
    """A table for each curve, below what is to be known of it."""
    lines = [describe(content)]
    lines += [f"note: {note}" for note in dict.fromkeys(note for point in content["points"] for note in point["notes"])]
    for curve in content["curves"]:
        lines += [f"{curve}:", *format_table(curve_points(content, curve), "scale")]
        chosen = choose(content, curve)
        if chosen is None:
            continue
        lines.append(f"  least {chosen['by']} at scale {chosen['scale']:g}")
        if swept_role(content) == "selection" and chosen["scores"] is not None:
            scores = ", ".join(f"{name} {value:.4f}" for name, value in chosen["scores"].items())
            lines.append(f"  there, by the images that score: {scores}")
    return "\n".join(lines) + "\n"


def write_picture(content: dict[str, Any], path: Path) -> None:
    """Draw every score against the scale as PNG, whole or not at all; a curve's least distance is circled."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {curve: points for curve in content["curves"] if (points := curve_points(content, curve))}
    names = drawn_names([point for points in curves.values() for point in points])
    figure = Figure(figsize=(PANEL[0], PANEL[1] * len(names) + 1.0), layout="constrained")
    figure.suptitle("Guidance", fontsize=11)
    figure.supxlabel(fill(drawable(describe(content)), int(NOTE_DENSITY * PANEL[0])), fontsize=7, color="#5f6368")
    for row, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, row + 1)
        for index, (curve, points) in enumerate(curves.items()):
            color, line = PALETTE[index % len(PALETTE)], LINE_STYLES[index // len(PALETTE) % len(LINE_STYLES)]
            shown = [(point.value, point.scores[name]) for point in points if name in point.scores]
            marker = MARKERS[index % len(MARKERS)]
            label = drawable(curve)[: int(TITLE_DENSITY * 2)]
            axes.plot(*zip(*shown, strict=True), color=color, linestyle=line, marker=marker, markersize=3.5, label=label)
            best = best_point(points)
            if best is not None and best[1] == name:
                circle(axes, float(best[0].value or 0.0), best[0].scores[name], color)
        style_axes(axes)
        axes.set_title(title_of(name, content["extractor"]), fontsize=9.5)
        if row == 0:
            axes.legend(fontsize=7.5, frameon=False)
    axes.set_xlabel("guidance scale (1: none; of a classifier: its factor + 1)")
    with whole_file(path) as partial:
        FigureCanvasAgg(figure).print_figure(partial, format="png", dpi=DOTS_PER_INCH)
