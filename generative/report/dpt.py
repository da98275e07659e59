"""Accuracies of a dual pseudo training, of which a run is the generator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from generative.report.collect import Run

RECORD_FILE = "dpt.json"
"""What ``generative dpt`` writes down, in the folder that holds the run."""


def accuracies(run: Path) -> list[tuple[str, float]]:
    """What each stage was found to get right, in words; empty for other runs, and as far as a stage is not done."""
    try:
        stages: Any = json.loads((run.parent / RECORD_FILE).read_text(encoding="utf-8"))["stages"]
        probe, again = stages.get("probe", {}), stages.get("probe_with_pseudo_images", {})
        found = [
            (f"classifier on {probe.get('labelled_images')} labels, held-out images", probe.get("accuracy")),
            ("its labels of the training images", probe.get("pseudo_label_accuracy")),
            (f"classifier with {again.get('pseudo_images')} pseudo-images besides, held-out images", again.get("accuracy")),
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
    return [(name, float(value)) for name, value in found if isinstance(value, (int, float))]


def dpt_section(runs: Sequence[Run]) -> str:
    """The accuracies of all runs that have some, as a list; empty if none has."""
    items = "".join(
        f"<li>{escape(run.name)}: {escape(name)} {100 * value:.1f} %</li>" for run in runs for name, value in accuracies(run.path)
    )
    return (
        f'<div class="note" id="dpt"><p>Few labels (dual pseudo training), share that is right:</p><ul>{items}</ul></div>'
        if items
        else ""
    )
