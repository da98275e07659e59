"""Scores of a model with the protocol of each: of its run's evaluation, and of files that ``fid-score`` wrote."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generative.core.errors import UserError
from generative.report.collect import Run, as_number, numbers_of
from generative.report.scores import SHOWN_HASH_DIGITS, comparability, describe, protocol_facts

SPREADS = ("_std", "_stderr")
_CSV_FACTS = ("samples", "step", "reference", "protocol", "networks", "resizers", "num_real", "num_fake", "error")
_PLACE = re.compile(r"(?<![\w.~:/-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+(?=[^\s/\\])")


@dataclass(frozen=True)
class ScoreSet:
    """Scores under one protocol.

    Attributes:
        origin: Who took them, and of which state of the model.
        scores: By name.
        facts: What they depend on: what it is, and in words.
        notes: What a reader must know before comparing them.
        num_fake: Generated images, where it is known.
        extractor: The network, where there is one for all.
        seed: Of the samples, where it is known.
        real_scores: Of as many real images, under the same protocol; empty if they were not taken.
        input_size: Pixels that the network sees, where there is one for all and they are known.
    """

    origin: str
    scores: dict[str, float]
    facts: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)
    num_fake: int | None = None
    extractor: str | None = None
    seed: int | None = None
    real_scores: dict[str, float] = field(default_factory=dict)
    input_size: int | None = None


def without_places(text: str) -> str:
    """The same text with absolute paths cut to their last part: where files lay on one machine is nobody's business."""
    return _PLACE.sub("", text)


def run_scores(run: Run, step: int | None) -> ScoreSet | None:
    """Scores that a run took of itself while it trained.

    Args:
        run: The run.
        step: Of the state that is published; None for the newest.

    Returns:
        Those of that step, or else the newest before it, which they say; None where there are none.
    """
    found = dict(run.evaluations)
    stored, at = numbers_of(run.evaluation.get("scores")), run.evaluation.get("step")
    if stored and isinstance(at, int):
        found[at] = stored
    fitting = [number for number in found if number and (step is None or number <= step)]
    if not fitting or not run.protocol:
        return None
    taken = int(max(fitting))
    seen = run.images_at(taken)
    origin = f"while it trained, at step {taken:,}" + (f" ({seen:,} images seen)" if seen is not None else "")
    notes = (
        [f"these weights are of step {step:,}, the scores of the one before it that was scored"]
        if step not in (None, taken)
        else []
    )
    if warning := comparability([run]):
        notes.append(warning)
    return ScoreSet(
        origin,
        found[taken],
        [(name, without_places(text.partition("; the row of")[0])) for name, text in protocol_facts([run])],
        notes,
        whole(run.protocol.get("num_fake")),
        str(run.protocol["extractor"]) if run.protocol.get("extractor") and not run.protocol.get("other_networks") else None,
        whole(run.protocol.get("seed")),
        run.real_scores,
        whole(run.protocol.get("input_size")),
    )


def file_scores(path: Path, source: Path) -> ScoreSet:
    """Scores of a file that ``fid-score --json`` or ``--csv`` wrote.

    Args:
        path: The file.
        source: What is published: of a file about several sets of samples, those of this one are taken.

    Raises:
        UserError: If it cannot be read, is no such file, holds no scores, or does not say which are meant.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--scores '{path}' cannot be read; give a file that fid-score --json or --csv wrote") from error
    sets = json_sets(text) if path.suffix.lower() == ".json" else csv_sets(text)
    if not sets:
        raise UserError(f"--scores '{path}' holds no scores of fid-score; give a file that its --json or --csv wrote")
    if len(sets) > 1:
        own = [place for place in sets if is_within(Path(place), source)]
        if len(own) != 1:
            raise UserError(
                f"--scores '{path}' is about several sets of samples ({', '.join(sets)}) and "
                f"{'none' if not own else 'more than one'} of them is '{source}'; give a file of one"
            )
        sets = {own[0]: sets[own[0]]}
    return next(iter(sets.values()))


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or in it."""
    return path.resolve().is_relative_to(folder.resolve())


def json_sets(text: str) -> dict[str, ScoreSet]:
    """Scores by the set of samples, of a file of ``fid-score --json``; empty if it is none."""
    try:
        record = json.loads(text)
        results = record["results"]
        found = {str(result["path"]): json_set(record, result) for result in results}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return {place: each for place, each in found.items() if each.scores}


def json_set(record: dict[str, Any], result: dict[str, Any]) -> ScoreSet:
    """One result of such a file."""
    facts = [("samples", result["samples"]), ("reference", record["reference"]), ("protocol", record["protocol"])]
    protocols = result["protocols"]
    for protocol in protocols:
        digest = str(protocol.get("weights_sha256") or "unknown")[:SHOWN_HASH_DIGITS]
        facts.append(
            (
                "network",
                f"{protocol.get('extractor', 'unknown')} (weights sha256 {digest}), images resized by "
                f"{protocol.get('resizer', 'unknown')} to {protocol.get('input_size') or '?'} px, "
                f"{protocol.get('normalization') or 'unknown normalisation'}",
            )
        )
        facts.append(("images", f"{protocol.get('num_fake', '?')} generated against {protocol.get('num_real', '?')} real ones"))
        facts += [(str(name), describe(parameters)) for name, parameters in dict(protocol.get("metrics") or {}).items()]
    names = {str(protocol.get("extractor")) for protocol in protocols}
    sizes = {whole(protocol.get("input_size")) for protocol in protocols}
    return ScoreSet(
        "by fid-score",
        numbers_of(result["scores"]),
        [(name, without_places(str(text))) for name, text in facts],
        [without_places(str(note)) for note in [*record.get("notes", ()), *result.get("notes", ())]],
        whole(protocols[0].get("num_fake")) if protocols else None,
        names.pop() if len(names) == 1 else None,
        input_size=sizes.pop() if len(sizes) == 1 else None,
    )


def csv_sets(text: str) -> dict[str, ScoreSet]:
    """Scores by the set of samples, of a file of ``fid-score --csv``; empty if it is none."""
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or not {"samples", "reference", "protocol", "networks"} <= rows[0].keys():
        return {}
    found = {}
    for row in rows:
        scores = {
            name: value for name, text in row.items() if name and name not in _CSV_FACTS and (value := number(text)) is not None
        }
        facts = [
            ("samples", row["samples"]),
            ("reference", row["reference"]),
            ("protocol", row["protocol"]),
            ("network", f"{row['networks']} (name@sha256 of its weights), images resized by {row.get('resizers') or 'unknown'}"),
            ("images", f"{row.get('num_fake') or '?'} generated against {row.get('num_real') or '?'} real ones"),
        ]
        if scores:
            extractor = (row["networks"] or "").partition("@")[0]
            count = number(row.get("num_fake"))
            found[row["samples"]] = ScoreSet(
                "by fid-score",
                scores,
                [(name, without_places(fact or "")) for name, fact in facts],
                num_fake=None if count is None else int(count),
                extractor=extractor if "+" not in (row["networks"] or "") and extractor else None,
            )
    return found


def number(text: str | None) -> float | None:
    """The number that a cell holds, or None."""
    try:
        return float(text) if text else None
    except ValueError:
        return None


def whole(value: Any) -> int | None:
    """The value if it is a whole number, else None: files may hold anything."""
    return value if isinstance(value, int) and as_number(value) is not None else None
