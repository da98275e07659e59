"""The end of a run whose score has not improved for a while."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


class EarlyStop:
    """Counts the evaluations since the best one.

    It follows from the logged evaluations, so a run that goes on counts on, and with more patience goes on longer. That of the
    untrained network does not count; one that is NaN is no improvement.

    Args:
        score: Name of the score.
        sign: 1.0 where higher is better, else -1.0.
        patience: Evaluations without improvement after which the run ends.

    Attributes:
        best: The best value so far, or None.
        best_step: Its step.
        waited: Evaluations since.
    """

    def __init__(self, score: str, sign: float, patience: int) -> None:
        self.score = score
        self.sign = sign
        self.patience = patience
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0

    def start(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Take up the evaluations of before; of two at one step the later.

        Args:
            entries: Of metrics.jsonl.
        """
        key = f"evaluation/{self.score}"
        for step, value in sorted({entry["step"]: entry[key] for entry in entries if key in entry}.items()):
            self.update(step, value)

    def update(self, step: int, value: Any) -> None:
        """Take the score of one evaluation."""
        if step == 0:
            return
        is_number = isinstance(value, (int, float)) and not math.isnan(value)
        if is_number and (self.best is None or self.sign * value > self.sign * self.best):
            self.best, self.best_step, self.waited = float(value), step, 0
        else:
            self.waited += 1

    @property
    def is_reached(self) -> bool:
        """Whether the run ends."""
        return self.waited >= self.patience

    def describe(self) -> str:
        """Why it ends, in words that follow "stopped early: "."""
        since = "at all" if self.best is None else f"since step {self.best_step} ({self.best:.6g})"
        return f"{self.score} has not improved in {self.waited} evaluations, {since}"
