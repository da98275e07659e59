"""The configuration of a run that goes on: its own, with the changes that this command line asks for, and their history."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from generative.cli.config import FROM_DATA, OneSentenceParser, parse_train_config
from generative.cli.layers import quoted

CONFIG_FILE = "config.yaml"
HISTORY_FILE = "history.jsonl"
MAX_SHOWN = 60
"""Characters shown of a changed value."""


@dataclass
class RunConfig:
    """A parsed configuration, and how it differs from the one that the run has had so far.

    Attributes:
        parser: Its parser.
        config: The configuration.
        changes: Old and new value of every key that the command line changes; empty for a new run.
        note: Says in one line that the run's own values are used where the configuration named has others.
    """

    parser: OneSentenceParser
    config: Namespace
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    note: str | None = None


def continue_config(
    run_config: Path,
    output_dir: Path,
    named: Namespace,
    named_paths: Sequence[Path],
    overrides: Sequence[str],
    trust_code: bool = False,
) -> RunConfig:
    """The configuration with which a run goes on: what it was trained with, and this command line's overrides on top.

    What the run was trained with is in its folder, whatever the configuration named on the command line says now. Which changes
    a run can take is decided where its checkpoint is loaded (``Trainer.load_checkpoint``).

    Args:
        run_config: The run's ``config.yaml``.
        output_dir: Folder in which the run goes on; it may have been moved since.
        named: The configuration that the command line names, with the overrides.
        named_paths: Its files.
        overrides: Command-line overrides.
        trust_code: Allow classes of any module.

    Raises:
        UserError: If the run's configuration cannot be read, or an override does not fit it.
    """
    place = ["--trainer.output_dir", str(output_dir)]
    _, before = parse_train_config(run_config, place, trust_code)
    parser, config = parse_train_config(run_config, [*place, *overrides], trust_code)
    result = RunConfig(parser, config, differences(before, config))
    # A number of classes that is left to the data is that of the run's.
    unused = {
        key: pair for key, pair in differences(named, config).items() if key != "trainer.output_dir" and pair[0] != FROM_DATA
    }
    if unused and not (len(named_paths) == 1 and same_file(named_paths[0], run_config)):
        key, (there, here) = next(iter(unused.items()))
        others = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        result.note = (
            f"the run goes on with its own configuration, '{run_config}'; {quoted(named_paths)} differs in {key} "
            f"({shown(there)} there, {shown(here)} in the run){others}: to change a value of the run, add it to the command "
            f"(--{key} {shown(there)})"
        )
    return result


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file."""
    return one.exists() and other.exists() and one.samefile(other)


def differences(one: Namespace, other: Namespace) -> dict[str, tuple[Any, Any]]:
    """Values by dotted key in which two configurations differ; a key that one of them lacks is None there."""
    ours, theirs = flatten(one), flatten(other)
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves of a configuration by dotted key, as plain values; lists of plain values are leaves."""
    if isinstance(value, Namespace):
        value = vars(value)
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (list, tuple)) and any(isinstance(entry, (Namespace, Mapping)) for entry in value):
        items = list(enumerate(value))
    if items:
        found: dict[str, Any] = {}
        for key, entry in items:
            if not (path == "" and key in ("config", "__path__")):  # the parser's own
                found |= flatten(entry, f"{path}.{key}" if path else str(key))
        return found
    return {path: plain(value)}


def plain(value: Any) -> Any:
    """A leaf as JSON would hold it."""
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if isinstance(value, (bool, int, float, str, dict)) or value is None else str(value)


def shown(value: Any) -> str:
    """A value as a command line takes it, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def describe_changes(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """One line for each changed value."""
    return [f"changed: {key}: {shown(old)} -> {shown(new)}" for key, (old, new) in changes.items()]


def append_history(output_dir: Path, step: int, **facts: Any) -> None:
    """Add to a run's ``history.jsonl`` what was changed, and when.

    The file holds one JSON object a line: ``step``, the facts, and ``versions`` of the software; a run that was only stopped and
    went on has none. A line that is there already, of a start that was killed, is not repeated.

    Args:
        output_dir: Folder of the run.
        step: Steps done.
        **facts: What to record, JSON values.
    """
    from generative.core.logging import whole_file

    path = output_dir / HISTORY_FILE
    versions = {name: version(name) for name in ("triptych", "torch", "diffusers")} | {"python": platform.python_version()}
    line = json.dumps({"step": step, **facts, "versions": versions}) + "\n"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    if before.endswith(line):
        return
    with whole_file(path) as partial:
        partial.write_text(before + line, encoding="utf-8")
