"""The page: one HTML file with everything inside it, to look at, keep and send."""

from __future__ import annotations

import math
import platform
import shlex
import sys
from collections.abc import Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from generative.core.errors import UserError
from generative.core.logging import whole_file
from generative.report.collect import Run, collect_runs
from generative.report.curves import IMAGES, Axis, line_style, loss_figure, loss_names, score_figure, time_axis
from generative.report.differences import differences_section
from generative.report.dpt import dpt_section
from generative.report.figures import (
    LINE_STYLES,
    MAX_THUMBNAILS,
    REAL_COLOR,
    Grid,
    grid_element,
    read_grid,
    run_colors,
    strip_element,
    thumbnails_element,
)
from generative.report.scores import (
    ACCURACY,
    FRECHET,
    PRECISION,
    PSNR,
    RECALL,
    RECONSTRUCTION_FRECHET,
    format_count,
    format_number,
    format_percent,
    protocol_groups,
    protocol_section,
    score_table,
)
from generative.report.style import STYLE
from generative.report.throughput import throughput_table

PACKAGES = ("triptych", "torch", "diffusers", "accelerate", "torchvision", "numpy")
# Scores with a plot of their own: logarithmic or not, limits of the axis.
SCORE_PLOTS = (
    (FRECHET, True, None),
    (RECONSTRUCTION_FRECHET, True, None),
    (PSNR, False, None),
    (ACCURACY, False, (-0.02, 1.02)),
    (PRECISION, False, (-0.02, 1.02)),
    (RECALL, False, (-0.02, 1.02)),
)
# Small grids are never larger than if there were so many of them in a row.
MIN_COLUMNS = 5
# Matplotlib's line styles as CSS borders, for legends.
BORDERS = dict(zip(LINE_STYLES, ("solid", "dashed", "dotted", "dashed"), strict=True))


def write_report(
    runs: Sequence[Path],
    output: Path,
    title: str,
    intro: str = "",
    caption: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write the page of some runs.

    Args:
        runs: Their folders; whatever one in progress has not written yet is named on the page.
        output: The .html file; written under a temporary name and renamed, so a page that is there is replaced whole.
        title: Heading of the page.
        intro: Paragraphs under it (blank lines between them), before a summary that is made from the scores.
        caption: What is said under the sample grids; None says how they are laid out.
        class_names: Names of the classes, in order, for the grids; None for those that the runs have written.

    Returns:
        The file.

    Raises:
        UserError: If a folder is no run, or the output is no .html file.
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm") or output.is_dir():
        raise UserError(f"the report's output must be a file that ends in .html, got '{output}'")
    page = build_page(collect_runs(runs), title, intro, caption, class_names)
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    return output


def build_page(runs: Sequence[Run], title: str, intro: str, caption: str | None, class_names: Sequence[str] | None) -> str:
    """The whole page as HTML; everything that comes from files is escaped."""
    colors = run_colors(runs)
    paragraphs = [part.strip() for part in intro.split("\n\n") if part.strip()] + [summary(runs)]
    sections = {
        "scores": ("Scores", score_table(runs, colors, REAL_COLOR) + protocol_section(runs) + dpt_section(runs) + notes(runs)),
        "samples": ("Real and generated images", grids_section(runs, colors, caption, class_names)),
        "curves": ("Curves", curves_section(runs, colors)),
        "time": ("Over training", thumbnails_section(runs, colors)),
        "throughput": ("Throughput", throughput_table(runs, colors)),
        "differences": ("Configurations", differences_section(runs)),
        "reproduce": ("How to reproduce", reproduce_section(runs)),
    }
    links = "".join(f'<a href="#{key}">{name}</a>' for key, (name, _) in sections.items())
    body = "".join(f'<section id="{key}"><h2>{name}</h2>{content}</section>' for key, (name, content) in sections.items())
    # Nothing may be fetched and nothing may run, whatever the files say.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1>{''.join(f'<p>{escape(text)}</p>' for text in paragraphs)}<nav>{links}</nav></header>"
        f"{body}<footer>{escape(versions())}</footer></main></body></html>\n"
    )


def summary(runs: Sequence[Run]) -> str:
    """One paragraph: how many runs, how far, and the best of the two scores that say most."""
    names = ", ".join(run.name for run in runs)
    sentences = [f"{len(runs)} runs: {names}." if len(runs) > 1 else f"One run: {names}."]
    seen = [run.images_seen for run in runs if run.images_seen]
    if seen:
        low, high = format_count(min(seen)), format_count(max(seen))
        sentences.append(f"Training images seen: {low}." if low == high else f"Training images seen: {low} to {high}.")
    partial = [run for run in runs if run.progress is not None and run.progress < 1]
    early = [f"{run.name} (step {run.early_stop:,})" for run in partial if run.early_stop is not None]
    if early:
        sentences.append(f"Ended early, for want of improvement: {', '.join(early)}.")
    running = [f"{run.name} ({100 * (run.progress or 0):.0f} %)" for run in partial if run.early_stop is None]
    if running:
        sentences.append(f"Not finished: {', '.join(running)}.")
    distances = [(v, run) for run in runs if (v := FRECHET.of(run.scores)) is not None and math.isfinite(v)]
    # Under several protocols there is no lowest.
    if distances and len(protocol_groups([run for _, run in distances])) == 1:
        lowest, best = min(distances, key=lambda pair: pair[0])
        start, real = FRECHET.of(best.first_scores), FRECHET.of(best.real_scores)
        facts = [f"{format_number(start)} at step 0"] if start is not None else []
        facts += [f"{format_number(real)} for as many real images"] if real is not None else []
        lead = "Lowest Fr\u00e9chet distance" if len(distances) > 1 else "Fr\u00e9chet distance"
        beside = f" ({', '.join(facts)})" if facts else ""
        sentences.append(f"{lead}: {best.name} with {format_number(lowest)}{beside}.")
    accuracies = [(value, run) for run in runs if (value := ACCURACY.of(run.scores)) is not None]
    if len(accuracies) > 1:
        parts = ", ".join(f"{run.name} {format_percent(value)}" for value, run in accuracies)
        sentences.append(f"Samples that show the class asked for: {parts}.")
    elif accuracies:
        sentences.append(f"{format_percent(accuracies[0][0])} of its samples show the class asked for.")
    return " ".join(sentences)


def notes(runs: Sequence[Run]) -> str:
    """What the runs warned of, and what they have not written."""
    items = "".join(f"<li>{escape(run.name)}, step {step:,}: {escape(text)}</li>" for run in runs for step, text in run.warnings)
    said = f'<div class="note" id="warnings"><p>Warnings while training:</p><ul>{items}</ul></div>' if items else ""
    return said + missing_note(runs)


def missing_note(runs: Sequence[Run]) -> str:
    """What runs have not written, as a list; empty if all is there."""
    items = "".join(f"<li>{escape(run.name)}: {escape('; '.join(run.missing))}</li>" for run in runs if run.missing)
    return (
        f'<div class="note" id="missing"><p>Not there (a run in progress writes it later):</p><ul>{items}</ul></div>'
        if items
        else ""
    )


def grids_section(runs: Sequence[Run], colors: dict[str, str], caption: str | None, class_names: Sequence[str] | None) -> str:
    """Real images beside the newest grid of every run."""
    figures = []
    shown = next((run for run in runs if run.real_grid), None)
    real = shown.real_grid if shown else None
    grid = read_grid(real) if real else None
    if real is None:
        figures.append(empty_figure("real images", REAL_COLOR, "no grid of real images yet"))
    else:
        figures.append(
            grid_figure(
                "real images", REAL_COLOR, grid, "training images", "", class_names or (shown.class_names if shown else None)
            )
        )
    for run in runs:
        if not run.grids:
            figures.append(empty_figure(run.name, colors[run.name], "no sample grid yet"))
            continue
        step, path = run.grids[-1]
        seen = run.images_at(step)
        when = f"step {step:,}" + (f", {format_count(seen)} training images seen" if seen is not None else "")
        figures.append(
            grid_figure(
                run.name,
                colors[run.name],
                read_grid(path, run.grid_rows_per_class),
                when,
                strip_element(run),
                class_names or run.class_names,
            )
        )
    if caption is None:
        caption = "One class to a row. Samples are drawn with a fixed seed, none picked by hand."
        if any(run.grid_rows_per_class > 1 for run in runs):
            caption += " A tokenizer's rows are training images, each above what it makes of them."
    return f'<p class="note">{escape(caption)}</p><div class="grids">{"".join(figures)}</div>'


def grid_figure(name: str, color: str, grid: Grid | None, when: str, strip: str, class_names: Sequence[str] | None) -> str:
    """A grid with its heading and caption."""
    if grid is None:
        return empty_figure(name, color, "the image file cannot be read")
    picture = grid_element(grid, f"Grid of {name}", class_names)
    return f"<figure>{heading(name, color)}{picture}<figcaption>{escape(when)}</figcaption>{strip}</figure>"


def empty_figure(name: str, color: str, reason: str) -> str:
    """The place of a picture that is not there."""
    return f'<figure>{heading(name, color)}<div class="empty">{escape(reason)}</div></figure>'


def heading(name: str, color: str) -> str:
    """A run's name behind its colour."""
    return f'<h3><span class="swatch" style="background:{color}"></span>{escape(name)}</h3>'


def thumbnails_section(runs: Sequence[Run], colors: dict[str, str]) -> str:
    """The small grids of every run, one run under the other."""
    columns = min(MAX_THUMBNAILS, max(MIN_COLUMNS, *(len(run.grids) for run in runs)))
    rows = [(run, thumbnails_element(run, columns)) for run in runs]
    shown = "".join(f"{heading(run.name, colors[run.name])}{element}" for run, element in rows if element)
    if not shown:
        return '<div class="empty">no two sample grids of a run yet</div>'
    return f'<p class="note">Sample grids at saved steps, by training images seen.</p>{shown}'


def curves_section(runs: Sequence[Run], colors: dict[str, str]) -> str:
    """Scores and losses, all runs in one plot of each, over training images seen and over time."""
    entries = [legend_item(colors[run.name], BORDERS[line_style(number)], run.name) for number, run in enumerate(runs)]
    entries.append(legend_item(REAL_COLOR, BORDERS["--"], "as many real images"))
    axes = [IMAGES, axis] if (axis := time_axis(runs)) is not None else [IMAGES]
    note = '<p class="note">Losses: pale as logged, strong smoothed. Those of different methods do not compare.</p>'
    parts = [f'<ul class="legend">{"".join(entries)}</ul>{note}']
    for position, over in enumerate(axes):
        plots = "".join(plots_over(runs, colors, over))
        if plots:
            parts.append(f'<h3>By {escape(over.label)}</h3><div class="plots">{plots}</div>')
        elif not position:
            parts.append('<div class="empty">nothing logged yet</div><p></p>')
    return "".join(parts) + absent_curves(runs)


def plots_over(runs: Sequence[Run], colors: dict[str, str], axis: Axis) -> list[str]:
    """Figures of every score that has a plot, and of every loss."""
    scores = {score.heading: score_figure(runs, score, colors, is_log, limits, axis) for score, is_log, limits in SCORE_PLOTS}
    losses = {escape(name): loss_figure(runs, name, colors, axis) for name in loss_names(runs)}
    return [f"<figure><h3>{title}</h3>{svg}</figure>" for title, svg in (scores | losses).items() if svg]


def absent_curves(runs: Sequence[Run]) -> str:
    """Which runs are not in the plots, in words."""
    facts = [f"{run.name}: no loss logged yet" for run in runs if not run.loss_names]
    facts += [f"{run.name}: no evaluation logged yet" for run in runs if not run.evaluations]
    return f'<p class="note">{escape("; ".join(facts))}</p>' if facts else ""


def legend_item(color: str, border: str, name: str) -> str:
    """An entry of a legend."""
    return f'<li><i style="border-top-color:{color};border-top-style:{border}"></i>{escape(name)}</li>'


def reproduce_section(runs: Sequence[Run]) -> str:
    """Command lines and the resolved configuration of each run."""
    parts = []
    for run in runs:
        parts.append(f"<h3>{escape(run.name)}</h3><pre><code>{escape(commands(run))}</code></pre>")
        if run.config_text is not None:
            parts.append(
                f"<details><summary>resolved configuration of {escape(run.name)}</summary>"
                f"<pre><code>{escape(run.config_text)}</code></pre></details>"
            )
    names = " ".join(shlex.quote(str(run.path)) for run in runs)
    parts.append(f"<h3>This page</h3><pre><code>{escape(f'generative report {names} --output report.html')}</code></pre>")
    return "".join(parts)


def commands(run: Run) -> str:
    """What to type to train a run again and to sample from it as it was scored."""
    lines = []
    if run.config_text is not None:
        again = run.path.with_name(run.path.name + "-again")
        lines.append(
            f"generative train {shlex.quote(str(run.path / 'config.yaml'))} --trainer.output_dir {shlex.quote(str(again))}"
        )
    sample = ["generative", "sample", str(run.path), "--class-labels", "all", "--num-images-per-class", "10"]
    options = run.protocol.get("sampling")
    for name, value in options.items() if isinstance(options, dict) else ():
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            sample += [f"--{str(name).replace('_', '-')}", text]
    lines.append(shlex.join([*sample, "--output", f"samples-{run.path.resolve().name}"]))
    return "\n".join(lines)


def versions() -> str:
    """Software and machine that wrote the page."""
    import torch

    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    python = ".".join(map(str, sys.version_info[:3]))
    threads = torch.get_num_threads()
    machine = f"{platform.platform()}, {threads} CPU thread{'s' * (threads != 1)}"
    return f"Page written with {', '.join(found)}, Python {python} on {machine}."
