"""In what the configurations of runs differ: keys that are equal in all are left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from generative.report.collect import Run

ABSENT = "\u2013"
"""What is shown for a key that a run's configuration has not."""
# Where a run lies and how it is followed says nothing of what it learns.
PLACES = ("trainer.output_dir", "trainer.progress")
MAX_SHOWN = 120


def differing_keys(configs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Values, in words, of every key that is not the same everywhere.

    Where the class of a part differs, its name is one row, and its arguments, which are others, are none.

    Args:
        configs: One per run.

    Returns:
        By the key's path without ``init_args``, one text per configuration; in the order of the configurations.
    """
    found: dict[str, list[str]] = {}
    collect("", list(configs), found)
    return {key: texts for key, texts in found.items() if key not in PLACES}


def collect(path: str, values: list[Any], found: dict[str, list[str]]) -> None:
    """Add what differs below a path; a value that a configuration has not is ``ABSENT``."""
    if all(value == values[0] for value in values):
        return
    classes = [value.get("class_path") if isinstance(value, dict) else None for value in values]
    if all(isinstance(value, dict) for value in values) and all(kind == classes[0] for kind in classes):
        parts = [value.get("init_args") or {} if set(value) <= {"class_path", "init_args"} else value for value in values]
        if all(isinstance(part, dict) for part in parts):
            for key in dict.fromkeys(key for part in parts for key in part):
                collect(f"{path}.{key}" if path else str(key), [part.get(key, ABSENT) for part in parts], found)
            return
    found[path] = [shown(value) for value in values]


def shown(value: Any) -> str:
    """A value in few words: a class by its name alone."""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    if isinstance(value, list) and value and all(isinstance(each, dict) and "class_path" in each for each in value):
        return ", ".join(shown(each) for each in value)
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "\u2026"


def differences_section(runs: Sequence[Run]) -> str:
    """A table of the keys that differ, a column for each run; a sentence where none does or one run stands alone."""
    known = [run for run in runs if run.config]
    if len(known) < 2:
        return '<p class="note">There is one configuration only: nothing to compare.</p>'
    rows = differing_keys([run.config for run in known])
    if not rows:
        return '<p class="note">The configurations are equal.</p>'
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in known)
    body = "".join(
        f'<tr data-key="{escape(key)}"><th scope="row"><code>{escape(key)}</code></th>'
        f"{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>"
        for key, texts in rows.items()
    )
    return (
        '<p class="note">Only what is not the same in all runs; of parts of different classes, the classes.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Differences of configurations"><table class="texts">'
        f'<thead><tr><th scope="col">Setting</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
