"""Reads what a run wrote down; whatever a run in progress has not written yet is named instead of failing."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from generative.core.errors import UserError
from generative.core.logging import DATA_FILE, EVALUATION_FILE, METRICS_FILE, read_metrics
from generative.core.safe_yaml import load_yaml

CONFIG_FILE = "config.yaml"
HISTORY_FILE = "history.jsonl"
SAMPLES_FOLDER = "samples"
REAL_GRID = "real.png"
GRID_NAME = re.compile(r"step-(\d+)\.png")
EVALUATION_PREFIX = "evaluation/"
LOSS_SUFFIX = "/loss"
# Longest header that a safetensors file may have, in bytes (the format's own limit).
MAX_SAFETENSORS_HEADER = 100_000_000

# Images seen and values, in training order.
Curve = tuple[list[float], list[float]]


@dataclass
class Run:
    """One run, as its folder tells it.

    Attributes:
        path: Its folder, as the user named it.
        name: What the page calls it.
        config_text: The resolved configuration, or None.
        config: The same, parsed; empty if there is none.
        entries: Lines of metrics.jsonl that have a step, oldest first.
        evaluation: Content of evaluation.json; empty if there is none.
        grids: Step and file of each sample grid, oldest first.
        real_grid: Grid of real images, or None.
        class_names: Names of the classes in the order of their labels; None if the run has not written them.
        missing: What is not there yet or cannot be read, in words.
        early_stop: Step at which the run has ended for want of improvement; None if it has not, or has gone on since.
    """

    path: Path
    name: str
    config_text: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    grids: list[tuple[int, Path]] = field(default_factory=list)
    real_grid: Path | None = None
    class_names: list[str] | None = None
    missing: list[str] = field(default_factory=list)
    early_stop: int | None = None

    @cached_property
    def images_seen(self) -> int | None:
        """Training images seen at the last sign of life, or None."""
        seen = [value for e in [*self.entries, self.evaluation] if (value := as_finite(e.get("images_seen"))) is not None]
        return int(max(seen)) if seen else None

    @cached_property
    def total_images(self) -> int | None:
        """Length of the run that the configuration asks for, in training images, or None."""
        value = as_finite(self.setting("trainer", "total_images"))
        return None if value is None else int(value)

    @cached_property
    def progress(self) -> float | None:
        """Share of the run that is done, in [0, 1], or None."""
        if self.images_seen is None or not self.total_images:
            return None
        return min(1.0, self.images_seen / self.total_images)

    @cached_property
    def scores(self) -> dict[str, float]:
        """The newest scores by name: evaluation.json's, or the last that metrics.jsonl holds if that is newer."""
        stored = numbers_of(self.evaluation.get("scores"))
        logged = self.evaluations[-1] if self.evaluations else None
        if logged is not None and (not stored or logged[0] > (as_finite(self.evaluation.get("step")) or 0)):
            return logged[1]
        return stored

    @cached_property
    def first_scores(self) -> dict[str, float]:
        """Scores at step 0, before any training; empty if none were taken."""
        return self.evaluations[0][1] if self.evaluations and self.evaluations[0][0] == 0 else {}

    @cached_property
    def real_scores(self) -> dict[str, float]:
        """Scores of as many real images."""
        return numbers_of(self.evaluation.get("real_scores"))

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What the scores depend on; empty if unknown."""
        protocol = self.evaluation.get("protocol")
        return protocol if isinstance(protocol, dict) else {}

    @cached_property
    def evaluations(self) -> list[tuple[float, dict[str, float]]]:
        """Step and scores of every evaluation, oldest first; of two at one step (a resumed run's) the later."""
        found: dict[float, dict[str, float]] = {}
        for entry in self.entries:
            scores = {k.removeprefix(EVALUATION_PREFIX): v for k, v in entry.items() if k.startswith(EVALUATION_PREFIX)}
            if scores := numbers_of(scores):
                found[entry["step"]] = scores
        return sorted(found.items())

    @cached_property
    def warnings(self) -> list[tuple[int, str]]:
        """Step and sentence of every warning that the run gave, oldest first."""
        return [(int(entry["step"]), entry["warning"]) for entry in self.entries if isinstance(entry.get("warning"), str)]

    @cached_property
    def loss_names(self) -> list[str]:
        """Every ``<phase>/loss`` that was logged, in the order of first appearance."""
        return list(dict.fromkeys(key for entry in self.entries for key in entry if key.endswith(LOSS_SUFFIX)))

    def curve(self, key: str) -> Curve:
        """Values of one key of metrics.jsonl over training images seen, finite ones only."""
        points = [(as_finite(entry.get("images_seen")), as_finite(entry.get(key))) for entry in self.entries]
        kept = {x: y for x, y in points if x is not None and y is not None}
        return sorted(kept), [kept[x] for x in sorted(kept)]

    @cached_property
    def training_seconds(self) -> float | None:
        """Time spent training, from the logged images per second (sampling, scoring and saving do not count), or None."""
        seconds = self.seconds_at([self.images_seen or 0])
        return None if seconds is None else seconds[0]

    def seconds_at(self, images: Sequence[float]) -> list[float] | None:
        """Time spent training until so many images were seen, see ``training_seconds``; None if no rate was logged.

        Args:
            images: In any order; between two entries time passes evenly.
        """
        ends, rates = self.curve("images_per_second")
        pairs = [(end, rate) for end, rate in zip(ends, rates, strict=True) if rate > 0]
        if not pairs:
            return None
        knots, times = [0.0], [0.0]
        for end, rate in pairs:
            times.append(times[-1] + (end - knots[-1]) / rate)
            knots.append(end)
        # The last few steps may fall between two entries.
        return [
            times[-1] + (place - knots[-1]) / pairs[-1][1] if place > knots[-1] else float(np.interp(place, knots, times))
            for place in images
        ]

    @cached_property
    def num_weights(self) -> int | None:
        """How many numbers the sampling pipeline's weight files hold (parameters and buffers), or None."""
        files = sorted((self.path / "pipeline").glob("*/*.safetensors"))
        counts = [count_weights(file) for file in files]
        return sum(c for c in counts if c) if counts and all(c is not None for c in counts) else None

    def images_at(self, step: int) -> int | None:
        """Training images seen at a step, or None if no entry tells how many a step takes."""
        for entry in self.entries:
            images = as_finite(entry.get("images_seen"))
            if entry["step"] > 0 and images is not None:
                return round(images * step / entry["step"])
        return None

    @property
    def grid_rows_per_class(self) -> int:
        """Rows of a grid that belong to a class: a tokenizer's are pairs, images above their reconstructions."""
        return 2 if str(self.setting("objective", "class_path")).endswith(".TokenizerObjective") else 1

    def setting(self, *keys: str) -> Any:
        """A value of the configuration by its path, or None."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def collect_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs.

    Args:
        folders: Their folders, ``runs/NAME``.

    Raises:
        UserError: If there is none, one is no run, or one is given twice.
    """
    if not folders:
        raise UserError("a report needs at least one run folder, got none")
    paths = [Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        check_is_run(path)
        if resolved.count(place) > 1:
            raise UserError(f"run '{path}' is given twice; name each run once")
    return [read_run(path, name) for path, name in zip(paths, distinct_names(resolved), strict=True)]


def is_run(folder: Path) -> bool:
    """Whether a folder holds anything that a run writes."""
    return any((folder / name).is_file() for name in (CONFIG_FILE, METRICS_FILE, EVALUATION_FILE))


def check_is_run(folder: Path) -> None:
    """Refuse a folder that no run wrote.

    Raises:
        UserError: Naming the runs inside it, if there are any.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"run '{folder}' {what}; give the folder of a run, such as runs/NAME")
    if is_run(folder):
        return
    inside = sorted(str(child) for child in folder.iterdir() if child.is_dir() and is_run(child))
    advice = f"did you mean {' '.join(inside)}" if inside else "give the folder that `generative train` wrote, such as runs/NAME"
    raise UserError(f"'{folder}' is not a run (it holds no {CONFIG_FILE}, {METRICS_FILE} or {EVALUATION_FILE}); {advice}")


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many parents as it takes to tell all apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def read_run(path: Path, name: str) -> Run:
    """Read one run's folder."""
    run = Run(path, name)
    run.config_text, run.config = read_config(path / CONFIG_FILE, run.missing)
    run.entries = read_entries(path, run.missing)
    run.evaluation = read_evaluation(path / EVALUATION_FILE, run.missing)
    run.class_names = read_class_names(path / DATA_FILE)
    run.early_stop = read_early_stop(path / HISTORY_FILE, run.entries)
    samples = path / SAMPLES_FOLDER
    if samples.is_dir():
        matches = [(match, file) for file in samples.iterdir() if (match := GRID_NAME.fullmatch(file.name))]
        run.grids = sorted((int(match[1]), file) for match, file in matches)
        run.real_grid = samples / REAL_GRID if (samples / REAL_GRID).is_file() else None
    if not run.grids:
        run.missing.append("no sample grid yet")
    if run.real_grid is None:
        run.missing.append(f"no grid of real images ({SAMPLES_FOLDER}/{REAL_GRID})")
    return run


def read_early_stop(path: Path, entries: Sequence[dict[str, Any]]) -> int | None:
    """Step at which a run has ended before its last one; None if it has not, or its log says that it went on."""
    try:
        steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        (step,) = {entry["step"] for entry in steps[-1:] if "stopped_early" in entry}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) and all(entry["step"] <= step for entry in entries) else None


def read_class_names(path: Path) -> list[str] | None:
    """Names of a run's classes; None if the file is missing (runs of before had none) or damaged."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["data"]["class_names"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def read_config(path: Path, missing: list[str]) -> tuple[str | None, dict[str, Any]]:
    """The text of a resolved configuration and its content."""
    if not path.is_file():
        missing.append(f"no {CONFIG_FILE}")
        return None, {}
    try:
        text = path.read_text(encoding="utf-8")
        content = load_yaml(text)
    except (UnicodeDecodeError, yaml.YAMLError):
        missing.append(f"{CONFIG_FILE} cannot be read")
        return None, {}
    return text, content if isinstance(content, dict) else {}


def read_entries(run: Path, missing: list[str]) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that have a step."""
    entries = [entry for entry in read_metrics(run) if as_finite(entry["step"]) is not None]
    log = run / METRICS_FILE
    if not entries and log.is_file() and log.stat().st_size:
        missing.append(f"{METRICS_FILE} cannot be read")
    elif not any("images_per_second" in entry for entry in entries):
        missing.append("no training step logged yet")
    return entries


def read_evaluation(path: Path, missing: list[str]) -> dict[str, Any]:
    """Content of evaluation.json."""
    if not path.is_file():
        missing.append("no evaluation yet")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        content = None
    if not isinstance(content, dict):
        missing.append(f"{EVALUATION_FILE} cannot be read")
        return {}
    if isinstance(content.get("skipped"), str):
        missing.append(f"no scores: {content['skipped']}")
    return content


def count_weights(path: Path) -> int | None:
    """How many numbers a safetensors file holds, from its header alone; None if it is none."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_SAFETENSORS_HEADER + 1
        if length > MAX_SAFETENSORS_HEADER:
            return None
        try:
            header = json.loads(file.read(length))
            return sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError):
            return None


def as_number(value: Any) -> float | None:
    """The value if it is a number (NaN is one), else None: files may hold anything."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def as_finite(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    number = as_number(value)
    return number if number is not None and math.isfinite(number) else None


def numbers_of(values: Any) -> dict[str, float]:
    """The entries of a mapping that are numbers."""
    if not isinstance(values, dict):
        return {}
    return {str(key): value for key, value in values.items() if as_number(value) is not None}
