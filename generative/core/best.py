"""The checkpoint of the best evaluation, kept beside the newest ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from generative.core import checkpoint as ckpt
from generative.core.errors import UserError
from generative.core.links import link_folder
from metrics.registry import EXTRACTORS

BEST_CHECKPOINT = "checkpoint-best"
LOWER_IS_BETTER = (
    "frechet_distance",
    "fid",
    "sfid",
    "fd_dinov2",
    "clip_fid",
    "kernel_distance",
    "cmmd",
    "gaussian_kernel_distance",
    "mind",
    "am_score",
    "lpips",
    "representation_distance",
)
HIGHER_IS_BETTER = (
    "inception_score",
    "classifier_score",
    "precision",
    "recall",
    "density",
    "coverage",
    "classification_accuracy",
    "noised_accuracy",
    "noised_top5_accuracy",
    "psnr",
    "ssim",
)
# The same score by classes, of reconstructions, averaged over subsets, extrapolated, with another estimator, or by quarter of the
# noise level.
PREFIXES = ("class_", "reconstruction_")
SUFFIXES = ("_mean", "_infinity", "_unbiased", "_q0", "_q1", "_q2", "_q3")


def is_higher_better(score: str) -> bool:
    """Which direction of a score is better, by its name alone: for whoever has no metric to ask.

    Args:
        score: Its name in ``evaluation.json``, for example ``frechet_distance``.

    Raises:
        UserError: If there is no such score.
    """
    name = score
    for extractor in EXTRACTORS:  # of the second network that gives a score of this name
        name = name.removesuffix(f"_{extractor}")
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    if name not in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER):
        known = ", ".join((*LOWER_IS_BETTER, *HIGHER_IS_BETTER))
        raise UserError(f"trainer.keep_best must be the name of a score in evaluation.json ({known}), got {score!r}")
    return name in HIGHER_IS_BETTER


class BestCheckpoint:
    """Keeps the checkpoint with the best score as ``checkpoint-best``, which is never deleted for being old.

    It is a whole checkpoint, of hard links to the one of its step: it can be sampled, scored and gone on from like any other.
    Which it is follows from the logged evaluations, so a run that was stopped goes on with the same one.

    Args:
        run: Folder of the run.
        score: Name of the score.
        directions: Whether higher is better, of every score that the evaluation may give; empty where it does not say.

    Raises:
        UserError: If there is no such score.

    Attributes:
        value: The best value so far, or None; the same on every process.
    """

    def __init__(self, run: Path, score: str, directions: Mapping[str, bool] | None = None) -> None:
        if directions and score not in directions:
            raise UserError(f"the evaluation has no score '{score}' for trainer.keep_best, it has {', '.join(directions)}")
        self.run = run
        self.score = score
        self.sign = 1.0 if (directions[score] if directions else is_higher_better(score)) else -1.0
        self.value: float | None = None

    def start(self, entries: Iterable[Mapping[str, Any]]) -> int | None:
        """Take up the evaluations of before: those whose checkpoint is still there.

        Args:
            entries: Of metrics.jsonl.

        Returns:
            Step whose checkpoint should become the best now, as a kill came between its evaluation and ``keep``; or None.
        """
        kept, key = self.kept_step(), f"evaluation/{self.score}"
        present = {kept, *(ckpt.step_of(path) for path in ckpt.list_checkpoints(self.run))}
        values = {entry["step"]: entry[key] for entry in entries if key in entry}
        best: int | None = None
        for step, value in sorted(values.items()):
            if step > 0 and step in present and self.improves(value):
                best, self.value = step, value
        return None if best == kept else best

    def kept_step(self) -> int | None:
        """Step of ``checkpoint-best``, or None where there is no whole one."""
        folder = self.run / BEST_CHECKPOINT
        try:
            ckpt.verify_manifest(folder)
            return int(ckpt.read_state(folder)["step"])
        except (UserError, KeyError, TypeError, ValueError):
            return None

    def improves(self, value: Any) -> bool:
        """Whether a value is better than the best so far; of equal ones the first stays."""
        if not isinstance(value, (int, float)) or math.isnan(value):
            return False
        return self.value is None or self.sign * value > self.sign * self.value

    def keep(self, step: int) -> None:
        """Make the checkpoint of a step the best; it must be there."""
        source = ckpt.checkpoint_path(self.run, step)
        ckpt.write_folder(self.run / BEST_CHECKPOINT, partial(link_folder, source, leave_out=(ckpt.MANIFEST,)))
