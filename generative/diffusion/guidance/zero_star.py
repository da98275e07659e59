"""CFG-Zero* (arXiv 2503.18886): guidance of flows whose velocity is not yet to be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import DenoiserOutput, Predict
from generative.diffusion.formulations.base import Formulation, over_image
from generative.diffusion.guidance.rule import Moment

SMALLEST_NORM = 1e-8
# Levels of even steps are rounded: the first step that is not to be zero lies at 1 - zero_init exactly.
ROUNDING = 1e-9


class ZeroStar:
    """a u + s (c - a u), a = <c, u> / |u|^2 for each image: the weaker velocity is first brought to its best length (eq. 13)."""

    def combine(self, conditional: Tensor, weaker: Tensor, scale: float | Tensor, moment: Moment) -> Tensor:
        """See ``GuidanceRule``; at scale 1 the conditional prediction comes out."""
        dims = tuple(range(1, weaker.dim()))
        length = (conditional * weaker).sum(dims, keepdim=True) / (weaker.square().sum(dims, keepdim=True) + SMALLEST_NORM)
        weaker = length * weaker
        return weaker + scale * (conditional - weaker)


def check_velocity(formulation: Formulation) -> None:
    """Refuse a formulation that is no flow.

    Raises:
        UserError: If the network predicts something else than a velocity.
    """
    if formulation.prediction_type != "velocity":
        raise UserError(
            f"guidance_rule zero-star is for flows that predict a velocity, and this denoiser ({type(formulation).__name__}) "
            f"predicts {formulation.prediction_type}; take plain or apg"
        )


@dataclass(frozen=True, kw_only=True)
class ZeroInit:
    """No velocity at the first steps, where the predicted one leads astray further than none does (section 4.2).

    Attributes:
        share: Of the noise levels, from pure noise on: K of N even steps are K / N. The network does not run there.

    Raises:
        UserError: If it is not in [0, 1).
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"zero_init must be in [0, 1), got {self.share}")

    def wrap(self, predict: Predict, formulation: Formulation) -> Predict:
        """A prediction that is zero at first."""

        def still(state: SampleState, time: Tensor) -> DenoiserOutput:
            levels = formulation.noise_level(time.reshape(-1).double()).tolist()
            moves = [level <= 1 - self.share + ROUNDING for level in levels]
            if not any(moves):
                return DenoiserOutput(torch.zeros_like(state.sample, dtype=torch.float32))
            output = predict(state, time)
            return output if all(moves) else output.map(lambda value: value * over_image(torch.tensor(moves), value))

        return still
