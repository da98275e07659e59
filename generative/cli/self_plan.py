"""What self-improvement is asked for, and where it puts things."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.core.runtime import Precision

SAMPLES, TRAINING, BASE = "samples", "training", "base"
"""Folders of the output, beside ``pipeline``."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the command is asked for.

    Attributes:
        run: The run, a checkpoint of it, or a pipeline folder.
        output: Where everything goes.
        configs: What the copy is trained by; none for the run's own.
        num_samples: N.
        num_images: Length of the training, in samples seen.
        num_checkpoints: How many of the training are kept, at equal distances.
        scale: w.
        learning_rate: Of the copy; None for the run's.
        average: Which of the run is the base; None for the one that samples.
        options: Of sampling.
        seed: Of the samples.
        batch_size: Samples at a time.
        mixed_precision: In which they are made.
        overrides: Of the configuration.
        trust_code: Allow the configuration to name classes of any module.
    """

    run: Path
    output: Path
    configs: tuple[str, ...]
    num_samples: int
    num_images: int
    num_checkpoints: int
    scale: float
    learning_rate: float | None
    average: str | None
    options: Mapping[str, Any]
    seed: int
    batch_size: int
    mixed_precision: Precision
    overrides: tuple[str, ...]
    trust_code: bool

    def __post_init__(self) -> None:
        for name, value in (
            ("samples", self.num_samples),
            ("images", self.num_images),
            ("checkpoints", self.num_checkpoints),
            ("batch-size", self.batch_size),
        ):
            if value < 1:
                raise UserError(f"--{name} must be at least 1, got {value}")
        for name, number in (("scale", self.scale), ("learning-rate", self.learning_rate)):
            if number is not None and not 0 < number < math.inf:
                raise UserError(f"--{name} must be above 0, got {number}")
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f"output '{self.output}' is a file; give a folder")
