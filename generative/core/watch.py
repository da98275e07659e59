"""The watch over a run's history: signs of trouble become one-sentence warnings, each said once while it lasts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Entry = Mapping[str, Any]
"""One line of metrics.jsonl."""

EVALUATION_PREFIX = "evaluation/"

MAIN_SCORES = (
    "frechet_distance",
    "reconstruction_frechet_distance",
    "fid",
    "sfid",
    "fd_dinov2",
    "clip_fid",
    "kernel_distance",
    "kernel_distance_mean",
    "cmmd",
    "gaussian_kernel_distance",
)
"""Distances from the real images (lower is better), the first of which an evaluation has being its main score."""

RISING_EVALUATIONS = 3
"""So many evaluations in a row, each worse than the one before, are a trend (by chance alone: one case in 24)."""
WORST_OVER_BEST = 1.5
"""A score this many times its best is worth a warning at once."""
HISTORY_ENTRIES = 1000
"""Log entries kept for the rules; evaluations, which are few, are kept all."""


def main_score(entry: Entry) -> tuple[str, float] | None:
    """Name and value of an evaluation's main score; None if the entry holds none."""
    for name in MAIN_SCORES:
        value = entry.get(EVALUATION_PREFIX + name)
        if isinstance(value, (int, float)):
            return name, float(value)
    return None


def score_warnings(evaluations: Sequence[Entry]) -> dict[str, str]:
    """Warn of a bad trend of the main score.

    Args:
        evaluations: Entries that hold a main score, oldest first.

    Returns:
        A sentence by rule (``score_rising``, ``score_above_best``) of those that apply now; at most one.
    """
    points = [(entry["step"], score) for entry in evaluations if (score := main_score(entry)) is not None]
    # Another metric's numbers, of before a change of the configuration, do not compare.
    points = [(step, score) for step, score in points if score[0] == points[-1][1][0]]
    if len(points) < 2:
        return {}
    name = points[-1][1][0]
    values = [value for _, (_, value) in points]
    best = min(values)
    place = f"best was {best:.4g} at step {points[values.index(best)][0]}"
    advice = "the run may be collapsing or overfitting, keep the checkpoint nearest to the best"
    if best > 0 and values[-1] > WORST_OVER_BEST * best:
        factor = values[-1] / best
        return {"score_above_best": f"{name} is {values[-1]:.4g}, {factor:.2g} times its best: the {place}; {advice}"}
    recent = values[-RISING_EVALUATIONS - 1 :]
    if len(recent) > RISING_EVALUATIONS and all(earlier < later for earlier, later in pairwise(recent)):
        return {
            "score_rising": f"{name} rose {RISING_EVALUATIONS} evaluations running, to {values[-1]:.4g}: the {place}; {advice}"
        }
    return {}


class Watch:
    """Keeps a run's history and tells what is newly wrong with it.

    Args:
        rules: The objective's own: ``history -> sentence by rule`` of the rules that apply to its newest entries.
    """

    def __init__(self, rules: Callable[[Sequence[Entry]], Mapping[str, str]]) -> None:
        self.rules = rules
        self.history: deque[Entry] = deque(maxlen=HISTORY_ENTRIES)
        self.evaluations: list[Entry] = []
        self._active: set[str] = set()

    def resume(self, entries: Sequence[Entry]) -> None:
        """Take the history of a run that goes on; what applied at its end counts as said.

        Args:
            entries: Those kept, oldest first.
        """
        for entry in entries:
            self._keep(entry)
        self._active = set(self._find())

    def update(self, entry: Entry) -> dict[str, str]:
        """Take an entry.

        Args:
            entry: The newest.

        Returns:
            Sentence by rule, of the rules that apply now and did not at the entry before.
        """
        self._keep(entry)
        found = self._find()
        new = {rule: sentence for rule, sentence in found.items() if rule not in self._active}
        self._active = set(found)
        return new

    def _keep(self, entry: Entry) -> None:
        if main_score(entry) is not None:
            self.evaluations.append(entry)
        elif "warning" not in entry:
            self.history.append(entry)

    def _find(self) -> dict[str, str]:
        return {**self.rules(list(self.history)), **score_warnings(self.evaluations)}
