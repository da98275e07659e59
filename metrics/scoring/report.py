"""What a run found, as a table, JSON, CSV, and a plot of score against step."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from textwrap import wrap
from typing import Any

from metrics.files.whole import whole_file
from metrics.scoring.steps import step_of
from metrics.terminal import drawable

_SHOWN_HASH_DIGITS = 8
_NUMBER_WIDTH = 14
_PLOT_INCHES = (4.2, 3.0)  # One panel.
_PLOT_COLUMNS = 3
_SHOWN_FAILURES = 5  # In one sentence; the table tells of all.
_TITLE_CHARACTERS = 70  # That fit over one panel.


@dataclass
class Result:
    """What was found of one sample set.

    Args:
        path: What the user named.
        samples: What it is, for the table.
        scores: Number by name.
        protocols: One per network.
        notes: What a reader of the numbers must know.
        errors: Why numbers are missing, a sentence each.
    """

    path: Path
    samples: str
    scores: dict[str, float] = field(default_factory=dict)
    protocols: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @cached_property
    def step(self) -> int | None:
        """The training step that the samples belong to, or None; see ``metrics.scoring.steps``."""
        return step_of(self.path)


@dataclass
class Report:
    """What a run found.

    Args:
        reference: What the samples were compared with.
        protocol: Name and origin of the protocol.
        results: One per sample set.
        notes: What holds for all of them.
    """

    reference: str = "none"
    protocol: str = ""
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return everything, JSON-able. With one sample set its scores stand at the top as well."""
        results = [
            {
                "path": str(result.path),
                "samples": result.samples,
                "step": result.step,
                "scores": result.scores,
                "protocols": result.protocols,
                "notes": result.notes,
                "errors": result.errors,
            }
            for result in self.results
        ]
        record: dict[str, Any] = {"reference": self.reference, "protocol": self.protocol, "results": results}
        notes = list(self.notes)
        if len(self.results) == 1:
            only = self.results[0]
            record.update(samples=only.samples, scores=only.scores, protocols=only.protocols)
            notes += only.notes
        return {**record, "notes": notes}

    def failure(self) -> str:
        """Return what could not be scored and why, in one sentence; nothing if all could."""
        failed = [result for result in self.results if result.errors]
        if len(self.results) == 1:
            return "; ".join(error.removesuffix(".") for error in self.results[0].errors) + "." if failed else ""
        told = [f"{result.path} ({'; '.join(error.removesuffix('.') for error in result.errors)})" for result in failed]
        more = f" and {len(told) - _SHOWN_FAILURES} more" if told[_SHOWN_FAILURES:] else ""
        count = f"{len(failed)} of {len(self.results)} sample sets lack scores"
        return f"{count}: {', '.join(told[:_SHOWN_FAILURES])}{more}." if failed else ""


class IncompleteError(ValueError):
    """Some scores could not be computed.

    Args:
        message: Which, and why.
        record: ``Report.record`` with those that could.
    """

    def __init__(self, message: str, record: dict[str, Any]) -> None:
        super().__init__(message)
        self.record = record


def format_table(report: Report) -> str:
    """Return the table: inputs, protocol of each network, notes, numbers last."""
    lines = [("reference", report.reference)]
    if len(report.results) == 1:
        lines.append(("samples", report.results[0].samples))
    lines.append(("protocol", report.protocol))
    scored = [result for result in report.results if result.protocols] or report.results
    lines += _protocol_lines(scored[0].protocols)
    shared = [note for note in scored[0].notes if all(note in result.notes for result in scored)]
    lines += [("note", note) for note in [*report.notes, *shared]]
    for result in report.results:
        lines += [("note", f"{result.path}: {note}") for note in result.notes if note not in shared]
    for result in report.results:
        lines += [("error", f"{result.path}: {error}") for error in result.errors]
    width = max(len(name) for name, _ in [*lines, *((key, "") for result in report.results for key in result.scores)])
    table = [f"{name:<{width}}  {text}" for name, text in lines]
    if len(report.results) == 1:
        table.append("-" * (width + 2 + _NUMBER_WIDTH))
        table += [f"{key:<{width}}  {value:{_NUMBER_WIDTH}.6f}" for key, value in report.results[0].scores.items()]
    else:
        table += _columns(report.results)
    return "\n".join(table) + "\n"


def _protocol_lines(protocols: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    lines = []
    for protocol in protocols:
        digest = _known(protocol, "weights_sha256")[:_SHOWN_HASH_DIGITS]
        lines.append(("network", f"{_known(protocol, 'extractor')} (weights sha256 {digest})"))
        lines.append(
            (
                "input",
                f"resize {_known(protocol, 'resizer')} to {protocol.get('input_size') or '?'} px, "
                f"{protocol.get('normalization') or 'unknown normalisation'}",
            )
        )
        for name, parameters in protocol.get("metrics", {}).items():
            lines.append((name, ", ".join(f"{key} {'none' if value is None else value}" for key, value in parameters.items())))
    return lines


def _columns(results: Sequence[Result]) -> list[str]:
    """Return rows of sample sets and columns of scores."""
    keys = list(dict.fromkeys(key for result in results for key in result.scores))
    widths = [max(_NUMBER_WIDTH, len(key)) for key in keys]
    first = max(len(str(result.path)) for result in results)
    header = " " * first + "".join(f"  {key:>{width}}" for key, width in zip(keys, widths, strict=True))
    rows = [header, "-" * len(header)]
    for result in results:
        cells = [
            f"  {result.scores[key]:{width}.6f}" if key in result.scores else " " * (width + 2)
            for key, width in zip(keys, widths, strict=True)
        ]
        rows.append(f"{result.path!s:<{first}}" + "".join(cells))
    return rows


def write_json(report: Report, path: Path) -> None:
    """Write the record to a file, whole or not at all."""
    with whole_file(path) as stream:
        stream.write((json.dumps(report.record(), indent=2) + "\n").encode())


def _known(protocol: dict[str, Any], key: str) -> str:
    return str(protocol.get(key) or "unknown")


def write_csv(report: Report, path: Path) -> None:
    """Write one row per sample set: path, step, counts, networks, and every score."""
    keys = list(dict.fromkeys(key for result in report.results for key in result.scores))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["samples", "step", "reference", "protocol", "networks", "resizers", "num_real", "num_fake", "error", *keys])
    for result in report.results:
        networks = "+".join(
            f"{_known(p, 'extractor')}@{_known(p, 'weights_sha256')[:_SHOWN_HASH_DIGITS]}" for p in result.protocols
        )
        resizers = "+".join(_known(p, "resizer") for p in result.protocols)
        counts = [result.protocols[0].get(key) for key in ("num_real", "num_fake")] if result.protocols else [None, None]
        error = " ".join(result.errors) or None
        numbers = [repr(result.scores[key]) if key in result.scores else "" for key in keys]
        row = [result.path, result.step, report.reference, report.protocol, networks, resizers, *counts, error, *numbers]
        writer.writerow(["" if cell is None else cell for cell in row])
    with whole_file(path) as stream:
        stream.write(text.getvalue().encode(errors="backslashreplace"))


def write_plot(report: Report, path: Path) -> None:
    """Draw every score against the sets' steps, or by their names in the order given where not each has a step of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys(key for result in report.results for key in result.scores if not key.endswith(("_std", "_stderr"))))
    steps = [result.step for result in report.results]
    is_stepped = None not in steps and len(set(steps)) == len(steps)
    order = sorted(range(len(steps)), key=lambda i: steps[i] or 0) if is_stepped else list(range(len(steps)))
    names = [result.path.name for result in report.results]
    if len(set(names)) < len(names):
        names = [str(result.path) for result in report.results]
    names = [drawable(name) for name in names]
    columns = min(_PLOT_COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(_PLOT_INCHES[0] * columns, _PLOT_INCHES[1] * rows), layout="constrained")
    for position, key in enumerate(keys):
        axes = figure.add_subplot(rows, columns, position + 1)
        shown = [i for i in order if key in report.results[i].scores]
        x = [steps[i] or 0 for i in shown] if is_stepped else shown
        line = "-" if is_stepped else ""  # Between sets without an order there is nothing to read.
        y = [report.results[i].scores[key] for i in shown]
        axes.plot(x, y, marker="o", color="#1f5fa8", linestyle=line, linewidth=1.5, markersize=4)
        axes.set_title(key, fontsize=10)
        axes.set_xlabel("step" if is_stepped else "sample set")
        if not is_stepped:
            axes.set_xticks(shown, [names[i] for i in shown], rotation=30, ha="right", fontsize=7)
        axes.grid(alpha=0.3)
    lines = [
        line for text in (report.protocol, f"reference {report.reference}") for line in wrap(text, _TITLE_CHARACTERS * columns)
    ]
    figure.suptitle(drawable("\n".join(lines)), fontsize=7)
    with whole_file(path) as stream:
        FigureCanvasAgg(figure).print_figure(stream, format=path.suffix.lstrip("."), dpi=150)
