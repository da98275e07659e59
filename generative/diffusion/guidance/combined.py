"""All guidance of a run of sampling: away from what is weaker and towards a class, each with its own scale and interval."""

from __future__ import annotations

from dataclasses import dataclass

from generative.diffusion.denoiser import Condition, Evaluate, Predict
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.guidance.classifier import ClassifierGradient
from generative.diffusion.guidance.extrapolation import Extrapolation, extrapolated
from generative.diffusion.guidance.zero_star import ZeroInit


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Extrapolations, which add up (``extrapolated``), and a classifier's gradient on top of them.

    Attributes:
        extrapolations: Away from the null condition, from a guide, or from both.
        classifier: Towards the class; None for none.
        zero_init: Holds the extrapolated prediction at zero in the beginning; None does not.
    """

    extrapolations: tuple[Extrapolation, ...] = ()
    classifier: ClassifierGradient | None = None
    zero_init: ZeroInit | None = None

    def bind(self, evaluate: Evaluate, condition: Condition, formulation: Formulation) -> Predict:
        """The guided prediction under a condition: what samplers call."""
        predict = extrapolated(self.extrapolations, evaluate, condition, formulation)
        if self.zero_init is not None:
            predict = self.zero_init.wrap(predict, formulation)
        return predict if self.classifier is None else self.classifier.wrap(predict, condition, formulation)
