"""What the adapters of dit and sit share: the official guided forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Module

from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Branch, Condition, DenoiserOutput, evaluator
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.guidance.extrapolation import Extrapolation

GUIDED_CHANNELS = 3  # the published samplers', whatever the number of channels


def guided_forward(model: Module, x: Tensor, t: Tensor, y: Tensor, scale: float, formulation: Formulation) -> Tensor:
    """The official guided forward: 2n rows, of which the first half of x is used; returns the conditional, then the null half.

    Both halves share the guided channels; the others stay as each half's branch predicted them.
    """
    half = len(x) // 2
    branches: list[DenoiserOutput] = []
    evaluate = evaluator(model, formulation)

    def recorded(state: SampleState, time: Tensor, wanted: Sequence[Branch]) -> list[DenoiserOutput]:
        branches.extend(evaluate(state, time, wanted))
        return branches

    guidance = Extrapolation(scale=scale, null_label=int(y[half]), channels=GUIDED_CHANNELS)
    guided = guidance.bind(recorded, Condition(y[:half]), formulation)(SampleState(x[:half]), t[:half])
    conditional, null = as_official(guided), as_official(branches[1])
    return torch.cat([conditional, torch.cat([conditional[:, :GUIDED_CHANNELS], null[:, GUIDED_CHANNELS:]], dim=1)])


def as_official(output: DenoiserOutput) -> Tensor:
    """Prediction and variances on one channel axis."""
    return output.prediction if output.variance is None else torch.cat([output.prediction, output.variance], dim=1)
