"""Adaptive projected guidance (APG, arXiv 2410.02416): large scales without burnt colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import over_image
from generative.diffusion.guidance.rule import Moment


@dataclass(frozen=True, kw_only=True)
class ProjectedGuidance:
    """c + (s - 1) x the difference of the two predicted x_0, without most of its part along x_0 itself (algorithm 1).

    The difference D of the conditional and the weaker x_0 is first added up over the evaluations, D_k + momentum x the sum
    before, then shortened to the norm ``threshold``, then split into a part parallel to the conditional x_0, which saturates
    colours, and the rest. Whatever is predicted, it works on x_0: predictions differ by a factor of the time. At clean data,
    where two predicted x_0 are the same, the difference is taken in the prediction's own unit.

    Sums are kept in the sampling state's memory, per image. They follow the order in which a sampler asks for predictions, every
    one of them counted: a step of Heun's method adds twice, and evaluations outside the interval of guidance add nothing.

    Attributes:
        parallel: eta, the share of the parallel part that is kept; 1 keeps all.
        threshold: r, norm of the difference over an image's whole x_0 above which it is shortened; None shortens nothing.
        momentum: beta in (-1, 1), negative in the paper; 0 keeps no sum.

    Raises:
        UserError: If a number is out of range.
    """

    parallel: float = 0.0
    threshold: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.parallel):
            raise UserError(f"apg_parallel must be a finite number, got {self.parallel}")
        if self.threshold is not None and not self.threshold > 0:
            raise UserError(f"apg_threshold must be a positive number or none, got {self.threshold}")
        if not -1 < self.momentum < 1:
            raise UserError(f"apg_momentum must be in (-1, 1), got {self.momentum}")

    def combine(self, conditional: Tensor, weaker: Tensor, scale: float | Tensor, moment: Moment) -> Tensor:
        """See ``GuidanceRule``."""
        factor = start_factor(conditional, moment)
        difference = factor * (conditional - weaker)
        if self.momentum:
            difference = difference + self.momentum * moment.state.memory.get(self._key(moment), 0.0)
            moment.state.memory[self._key(moment)] = difference
        dims = tuple(range(1, difference.dim()))
        if self.threshold is not None:
            norm = torch.linalg.vector_norm(difference, dim=dims, keepdim=True)
            difference = difference * (self.threshold / norm.clamp(min=self.threshold))
        start = moment.formulation.predict_start(DenoiserOutput(conditional), moment.state.sample, moment.time)
        start = start.to(difference.dtype)
        along = (difference * start).sum(dims, keepdim=True) / start.square().sum(dims, keepdim=True).clamp(min=1e-24) * start
        update = difference - along + self.parallel * along
        return conditional + (scale - 1) * update / factor

    @staticmethod
    def _key(moment: Moment) -> str:
        return f"projected guidance {moment.place}"


def start_factor(like: Tensor, moment: Moment) -> Tensor:
    """What a prediction's difference is multiplied by to be that of x_0, (B or 1, 1, 1, 1); 1 where they do not differ."""
    times = moment.time.reshape(-1)
    ones = torch.ones(len(times), 1, 1, 1, dtype=torch.float64, device=times.device)
    factor = moment.formulation.predict_start(DenoiserOutput(ones), torch.zeros_like(ones), times)
    return over_image(torch.where(factor == 0, 1.0, factor).to(like.dtype).reshape(-1), like)
