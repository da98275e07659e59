"""What the adapters of u-vit and dimr share: official runs of DPM-Solver, and guidance as cond + s (cond - uncond)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Module

from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Condition, Predict, evaluator
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.guidance.extrapolation import Extrapolation
from generative.diffusion.samplers.dpm_solver import DPMSolverSampler, FormulationSchedule


def guided(model: Module, process: Formulation, labels: Tensor, strength: float) -> Predict:
    """The denoiser under labels, guided where it has a null condition."""
    null_label = model.null_label
    scale = 1.0 if null_label is None else 1 + strength
    assert null_label is None or isinstance(null_label, int)
    return Extrapolation(scale=scale, null_label=null_label).bind(evaluator(model, process), Condition(labels), process)


def solved(predict: Predict, init: Tensor, solver: DPMSolverSampler, process: Formulation, steps: int, start: Tensor) -> Tensor:
    """The sample at the end of a run of DPM-Solver that begins with ``init`` as it is at a time of the process."""
    state = SampleState(init.double())
    schedule = FormulationSchedule(process)
    _, end = schedule.ends()
    if isinstance(process, ContinuousDiffusion):
        # The official grid ends at the log-SNR of that time in float32, where 1 - alpha^2 has three good digits.
        alpha, sigma = process.alpha_sigma(end.float())
        end = schedule.times_of((alpha.log() - sigma.log()).double())
    for reached in solver.solve(predict, state, start, end, steps, process):
        state = reached
    return state.sample.float()
