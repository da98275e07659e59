"""What was published of a configuration's model: lines of the comment at the head of its file.

Each line is ``# Published: SCORE NUMBER, SCORE NUMBER HOW (SOURCE)``, the score that a model is known for first, or
``# Published: none known (WHY)``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SCORES = ("FID", "sFID", "IS", "rFID", "PSNR", "FD-DINOv2")
MARK = "# Published:"
_SCORE = rf"(?:{'|'.join(SCORES)}) \d+(?:\.\d+)?"
_LINE = re.compile(rf"{MARK} (?P<scores>{_SCORE}(?:, {_SCORE})*)(?:,? (?P<how>[^()]+))? \((?P<source>[^()]+)\)")
_NONE = re.compile(rf"{MARK} none known \((?P<reason>[^()]+)\)")


@dataclass(frozen=True)
class Published:
    """One line of what was published.

    Attributes:
        scores: Values by name, see ``SCORES``; empty where none is known.
        how: What the scores were got with (guidance, steps, length of training); empty where the source says no more.
        source: The paper with its table, or the file of a repository; where none is known, why.
    """

    scores: dict[str, float]
    how: str
    source: str


def read_published(path: Path) -> list[Published]:
    """What the comment at the head of a configuration says was published; a line in another form is passed over."""
    lines = (parse_published(line) for line in head_comment(path))
    return [line for line in lines if line is not None]


def head_comment(path: Path) -> list[str]:
    """The lines of comment at the head of a YAML file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def parse_published(line: str) -> Published | None:
    """Read one line of a comment; None if it says nothing of what was published, or not in the form of this module."""
    if none := _NONE.fullmatch(line):
        return Published({}, "", none["reason"])
    if found := _LINE.fullmatch(line):
        pairs = (score.split(" ") for score in found["scores"].split(", "))
        return Published({name: float(value) for name, value in pairs}, found["how"] or "", found["source"])
    return None


def headline(path: Path) -> str:
    """The first published score of a configuration in a few words, such as ``FID 2.27 at guidance 1.5``; empty without one."""
    for published in read_published(path):
        name, value = next(iter(published.scores.items()), ("", 0.0))
        if name:
            return f"{name} {value:g} {published.how.split(', ')[0]}".rstrip()
    return ""
