"""The training step that a sample set belongs to: what a run recorded, or what a name says unmistakably, else none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

#: Words before a number that is a training step. The plural counts something else: ``ddim-steps-50`` sampled in 50 steps.
_WORDS = "global_step|step|checkpoint|ckpt|iteration|iter|network-snapshot"
#: Such a word and its number within a name: ``samples_step-00001000.npz``, but neither ``footstep-3`` nor ``step-1.5``.
_NAMED = re.compile(rf"(?<![a-z0-9])(?:{_WORDS})[-_=]?(\d+)(?![a-z0-9]|\.\d)", re.IGNORECASE)
#: A folder above the set is taken by its whole name only: ``checkpoint-00001000/samples``.
_FOLDER = re.compile(rf"(?:{_WORDS})[-_=]?(\d+)", re.IGNORECASE)
#: JSON files in which a folder says its step -> the keys that lead there: a checkpoint's state, a sample folder's manifest.
_RECORDS = {"state.json": ("step",), "manifest.json": ("settings", "step")}


def step_of(path: Path) -> int | None:
    """Return the training step of a sample set.

    Args:
        path: What the user named; its folder's records go first, then its name, then the folders above, innermost first.

    Returns:
        The step; None where nothing says it, or one name says two.
    """
    for name, keys in _RECORDS.items():
        recorded = _recorded(path / name, keys)
        if recorded is not None:
            return recorded
    steps = {int(digits) for digits in _NAMED.findall(path.name)}
    if steps:
        return steps.pop() if len(steps) == 1 else None
    above = [match for part in path.parts[:-1] if (match := _FOLDER.fullmatch(part))]
    return int(above[-1][1]) if above else None


def _recorded(path: Path, keys: tuple[str, ...]) -> int | None:
    """Return the count under these keys of a JSON file, or None if it is not there; other tools' files may be anything."""
    try:
        value: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if type(value) is int and value >= 0 else None
