"""How fast runs trained, as far as they wrote it down: images per second, waiting for data, use of the device, memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from generative.report.collect import Run
from generative.report.scores import NONE, cell, format_count, format_number, format_percent, format_seconds, format_weights

RATE = "images_per_second"


@dataclass(frozen=True)
class Measure:
    """A quantity of training that a run may log.

    Attributes:
        name: Of the cell.
        title: What the page calls it.
        key: Finds its key in metrics.jsonl.
        format: Writes a value.
        of: What is shown of all values.
    """

    name: str
    title: str
    key: re.Pattern[str]
    format: Callable[[float | None], str]
    of: Callable[[Sequence[float]], float] = median


def format_gigabytes(value: float | None) -> str:
    """A number of gigabytes, with their unit."""
    return NONE if value is None else f"{value:.3g} GB"


MEASURES = (
    Measure("images_per_second", "Images/s (median)", re.compile(rf"(.*/)?{RATE}"), format_number),
    Measure("data_wait", "Waiting for data", re.compile(r"(.*/)?data_wait"), format_percent),
    Measure("mfu", "MFU", re.compile(r"(.*/)?mfu"), format_percent),
    Measure("memory", "Memory (peak)", re.compile(r"(.*/)?memory_peak_gb"), format_gigabytes, max),
)


def measured(run: Run, measure: Measure) -> float | None:
    """What a run logged of a quantity, or None."""
    keys = dict.fromkeys(key for entry in run.entries for key in entry if measure.key.fullmatch(key))
    values = [value for key in keys for value in run.curve(key)[1]]
    return measure.of(values) if values else None


def throughput_table(runs: Sequence[Run], colors: dict[str, str]) -> str:
    """A row for each run; a quantity that none has logged has no column."""
    shown = [measure for measure in MEASURES if any(measured(run, measure) is not None for run in runs)]
    head = ["Run", "Images seen", "Training time", *(measure.title for measure in shown), "Weights"]
    rows = []
    for run in runs:
        seen = format_count(run.images_seen)
        if run.progress is not None and run.progress < 1:
            seen += f" ({100 * run.progress:.0f} %)"
        values = [(measure, measured(run, measure)) for measure in shown]
        cells = [
            cell("images_seen", run.images_seen, seen),
            cell("training_seconds", run.training_seconds, format_seconds(run.training_seconds)),
            *(cell(measure.name, value, measure.format(value)) for measure, value in values),
            cell("num_weights", run.num_weights, format_weights(run.num_weights)),
        ]
        swatch = f'<span class="swatch" style="background:{colors[run.name]}"></span>'
        rows.append(f'<tr data-run="{escape(run.name)}"><th scope="row">{swatch}{escape(run.name)}</th>{"".join(cells)}</tr>')
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Throughput"><table class="scores">'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">Training time is that of the steps: sampling, scoring and saving do not count.</p>'
    )
