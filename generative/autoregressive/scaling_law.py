"""Power laws of loss against size (arXiv 2404.02905, section 5.2; 2001.08361)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from generative.core.errors import UserError

# Parts of a tensor's name whose weights are not counted: tables of classes, codes, positions and levels, and the layer that turns
# features into codes. What is left of a VAR are its blocks, 18 depth width^2 weights where adaptive norms are not shared (section
# 3.3), and two small layers.
NOT_COUNTED = re.compile(r"^(.*embed.*|head|lm_head|logits)$")
MIN_MODELS = 3
"""Two points lie on every power law."""
MAX_EXPONENT = 709.0
"""exp of more is infinite in float64."""


@dataclass(frozen=True)
class PowerLaw:
    """L = (beta N)^alpha.

    Attributes:
        alpha: Exponent, negative where larger models are better.
        log_beta: Natural logarithm of the factor on the number of weights: where loss hardly depends on size, the factor itself
            is beyond any float.
        correlation: Pearson's coefficient of log L and log N; the paper's are about -0.998.
    """

    alpha: float
    log_beta: float
    correlation: float

    @property
    def beta(self) -> float:
        """Factor on the number of weights; infinite beyond the range of floats."""
        return math.exp(self.log_beta) if self.log_beta < MAX_EXPONENT else math.inf

    def predict(self, size: float) -> float:
        """Loss at a number of weights."""
        return math.exp(self.alpha * (self.log_beta + math.log(size)))


def count_weights(shapes: Mapping[str, Sequence[int]]) -> int:
    """N: how many numbers a network's tensors hold, without embeddings and output head.

    Args:
        shapes: Shape of each tensor by name.
    """
    return sum(math.prod(shape) for name, shape in shapes.items() if not any(NOT_COUNTED.match(part) for part in name.split(".")))


def fit_power_law(sizes: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """Fit log L = alpha (log N + log beta) by least squares.

    Args:
        sizes: N of each model, positive.
        losses: L of each, positive.

    Raises:
        UserError: If there are fewer than ``MIN_MODELS``, a value is not positive and finite, or all sizes or all losses are the
            same.
    """
    if len(sizes) != len(losses) or len(sizes) < MIN_MODELS:
        raise UserError(f"a power law needs at least {MIN_MODELS} models, got {len(sizes)}")
    for name, values in (("size", sizes), ("loss", losses)):
        wrong = [value for value in values if not (value > 0 and math.isfinite(value))]
        if wrong:
            raise UserError(f"a power law needs positive numbers, got a {name} of {wrong[0]}")
        if len(set(values)) == 1:
            raise UserError(f"a power law needs models that differ, and all have a {name} of {values[0]:g}")
    x, y = [math.log(size) for size in sizes], [math.log(loss) for loss in losses]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    xx = sum((a - mean_x) ** 2 for a in x)
    yy = sum((b - mean_y) ** 2 for b in y)
    xy = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    alpha = xy / xx
    if alpha == 0:
        raise UserError("the losses do not depend on size at all, so there is no power law to fit")
    return PowerLaw(alpha, mean_y / alpha - mean_x, xy / math.sqrt(xx * yy))
