"""How a conditional and a weaker prediction make the guided one: what the plain extrapolation may be replaced by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from generative.core.sampling import SampleState
from generative.diffusion.formulations.base import Formulation


@dataclass(frozen=True)
class Moment:
    """When and of what two predictions were made.

    Attributes:
        state: The sample, and the memory of this run of sampling.
        time: Of the formulation: one element, or (B,).
        formulation: What the predictions mean.
        place: Which of several extrapolations asks, so that each remembers its own.
    """

    state: SampleState
    time: Tensor
    formulation: Formulation
    place: int = 0


class GuidanceRule(Protocol):
    """A rule; every image's prediction must follow from its own alone."""

    def combine(self, conditional: Tensor, weaker: Tensor, scale: float | Tensor, moment: Moment) -> Tensor:
        """The guided prediction.

        Args:
            conditional: (B, C, h, w) float32.
            weaker: The same.
            scale: s, or (B, 1, 1, 1); at 1 the conditional prediction is to come out.
            moment: When.
        """
