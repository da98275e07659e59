"""Learning rates that follow the batch size, where a configuration asks for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

RateScaling = Literal["none", "linear", "sqrt"]

BASE_BATCH_SIZE = 256
"""What papers give base rates for."""


def rate_factor(rule: RateScaling, batch_size: int, base_batch_size: int | None = None) -> float:
    """What learning rates that are meant for one batch size are multiplied by at another.

    Args:
        rule: ``linear``, B / B_0, for gradient descent (Goyal et al., arXiv 1706.02677, section 2.1); ``sqrt``, (B / B_0)^(1/2),
            for Adam and its kin, whose steps do not grow with the gradient (Malladi et al., arXiv 2205.10287); ``none``, 1.
        batch_size: B, images to an optimizer step, over all processes and micro-batches.
        base_batch_size: B_0, that of the rates given; None for 256.
    """
    ratio = batch_size / (base_batch_size or BASE_BATCH_SIZE)
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]


def describe_scaling(
    rule: RateScaling, batch_size: int, base_batch_size: int | None, before: Mapping[str, float], after: Mapping[str, float]
) -> str:
    """One line on rates that were scaled.

    Args:
        rule: As ``rate_factor``.
        batch_size: As ``rate_factor``.
        base_batch_size: As ``rate_factor``.
        before: Rate given, by optimizer.
        after: Rate that it trains with, before any schedule.
    """
    rates = ", ".join(f"'{name}' {before[name]:.6g} -> {after[name]:.6g}" for name in before)
    return (
        f"learning rates are for batches of {base_batch_size or BASE_BATCH_SIZE} and scaled to {batch_size} "
        f"(trainer.scale_lr {rule}): {rates}"
    )
