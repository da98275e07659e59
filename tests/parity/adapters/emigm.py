"""How the outputs of emigm parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from masked_autoencoder_outputs import FileNoise, Recorder, features, file_drawing, masked_rows, numbered
from outputs import Given, Table, Tensors
from torch import Tensor
from torch.nn import Module

from generative.autoregressive.continuous.diffusion_head import HeadSampler, draw_tokens
from generative.autoregressive.continuous.head_samplers import DPMSolverHeadSampler, head_sampler
from generative.autoregressive.continuous.objective import EMIGMObjective
from generative.autoregressive.continuous.schedulers import IndependentScheduler
from generative.autoregressive.masking import ScheduledMasking, mask_schedule, masking_time
from generative.convert.autoregressive.mar import chain_timesteps
from generative.core.sampling import SampleState, sample_loop
from pipelines.emigm import EMIGMPipeline

SOURCE = "emigm"
HEAD_GUIDANCE = 2.5  # of the solver's samples
# Settings of the files' runs: schedule, interval, solver, its steps, guidance and its growth, temperature.
RUNS = {
    0: ("exp", (0.1, 0.6), "dpm-solver", "8", 4.0, "constant", 1.0),
    1: ("cosine", (0.0, 1.0), "ddpm", "ddim5", 2.9, "linear", 0.95),
}
COSINE_OFFSET = 0.008


def unmask_probabilities(scheduler: IndependentScheduler, num_iterations: int) -> Tensor:
    """(N,) probability of becoming known, by iteration."""
    iterations = scheduler.set_timesteps(num_iterations, torch.device("cpu"))
    return torch.tensor([scheduler.unmask_probability(k) for k in iterations])


def no_drawing(*arguments: object) -> Tensor:
    """For schedulers that are only asked for their schedule."""
    raise AssertionError("nothing is to be drawn")


def loss(given: Given, schedule: str | None) -> Tensor:
    """Mean over masked rows, unweighted or with a schedule's weights."""
    inputs = given.inputs
    objective = EMIGMObjective(given.model, torch.optim.AdamW, diffusion_batch_mul=given.config.get("diffusion_batch_mul", 4))
    rows = masked_rows(inputs, objective.diffusion_batch_mul)
    masked = inputs["mask"] == 1
    tokens = given.model.patchify(inputs["latents"])
    mse, bound = objective.token_losses(given.model, tokens, masked, inputs["labels"], inputs["t"][rows], inputs["noise"][rows])
    weights = torch.ones_like(mse)
    if schedule is not None:
        weights = objective.copies(mask_schedule(schedule).weight(inputs["p_mask"])[masked])
    return ((mse + bound) * weights).mean().reshape(1)


def shared_mask(schedule: str, inputs: Tensors, config: Mapping[str, Any]) -> Tensor:
    """Masks of one count, each image's permutation of the first."""
    masking = ScheduledMasking(schedule, config.get("clamp_t_min", 0))
    base = masking.masked(masking_time(inputs["rm_t"], masking.min_time), inputs["rm_u"])
    return base[inputs["rm_perm"]]


def own_masks(schedule: str, inputs: Tensors) -> Tensor:
    """Masks of each image's own time."""
    masking = ScheduledMasking(schedule, per_image=True)
    return masking.masked(masking_time(inputs["rb_t"], 0.0)[:, None], inputs["rb_u"])


def solver_sample(network: Module, inputs: Tensors, steps: int, guided: bool) -> Tensor:
    """Tokens by DPM-Solver from the file's vectors."""
    names = ("step_z", "step_z_null") if guided else ("step_z",)
    condition = torch.stack([inputs[name] for name in names])
    scale = HEAD_GUIDANCE if guided else None
    return draw_tokens(network.head, condition, scale, DPMSolverHeadSampler(steps), FileNoise([inputs["step_x"]]))


def toy_sample(inputs: Tensors, steps: int) -> Tensor:
    """The solver on the file's analytic noise model."""
    sampler = DPMSolverHeadSampler(steps)

    def predict(state: SampleState, timestep: int) -> Tensor:
        angle = (sampler.model_time(timestep) / 1000 + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2
        signal, noise = math.cos(angle), math.sin(angle)
        conditional, null = (
            noise * (state.sample - signal * inputs[name]) / (0.25 * signal**2 + noise**2) for name in ("toy_c", "toy_u")
        )
        return null + HEAD_GUIDANCE * (conditional - null)

    return sample_loop(predict, sampler, SampleState(inputs["step_x"]), steps, FileNoise([])).sample


class ReplayScheduler(IndependentScheduler):
    """Takes the token that the official sampler took where none would have become known: a draw that no input tells.

    Attributes:
        recorded: (N, B, L) bool, what each iteration drew; None lets it choose as it does elsewhere.
    """

    recorded: Tensor | None = None

    def choose_one(self, timestep: int, uniform: Tensor) -> Tensor:
        return super().choose_one(timestep, uniform) if self.recorded is None else self.recorded[timestep]


def run_sampler(network: Module, inputs: Tensors, run: int, recorded: Tensors) -> dict[str, Tensor]:
    """One of the file's sampling runs."""
    strategy, interval, solver, steps, guidance, growth, temperature = RUNS[run]
    chain: HeadSampler = head_sampler(solver, chain_timesteps(steps), temperature)
    drawing = file_drawing(network.head, chain, iter(numbered(inputs, f"run{run}_noise_")))
    scheduler = ReplayScheduler(drawing, mask_schedule(strategy), guidance, growth, interval)
    scheduler.recorded = recorded.get(f"run{run}_to_predict")
    recorder = Recorder(scheduler)
    pipeline = EMIGMPipeline(network)
    pipeline.set_progress_bar_config(disable=True)
    uniform = inputs[f"run{run}_u"]
    state = pipeline.prepare_state(inputs["labels"], FileNoise([]))
    state.memory["uniform"] = uniform.transpose(0, 1)  # (B, N, L)
    state = pipeline.run(inputs["labels"], scheduler, len(uniform), FileNoise([]), state)
    return {
        f"run{run}_latents": network.unpatchify(state.sample),
        f"run{run}_to_predict": torch.stack(recorder.chosen),
        f"run{run}_cfg": torch.tensor(recorder.scales),
        f"run{run}_p_transfer": unmask_probabilities(scheduler, len(uniform)),
    }


def outputs(given: Given) -> Table:
    """The table of outputs; ``runN_to_predict`` of the file tells draws that no input does, see ``ReplayScheduler``."""
    network, inputs, config = given.model, given.inputs, given.config
    solver = DPMSolverHeadSampler(8)
    return {
        "z": lambda: features(network, inputs, null=False),
        "z_null": lambda: features(network, inputs, null=True),
        "loss_(?:unweighted|weighted_(.+))": lambda schedule: loss(given, schedule),
        "train_p_mask": lambda: masking_time(inputs["rm_t"], config.get("clamp_t_min", 0)),
        "train_mask_batch_(.+)": lambda schedule: own_masks(schedule, inputs),
        "train_mask_(.+)": lambda schedule: shared_mask(schedule, inputs, config),
        "p_transfer8_(.+)": lambda schedule: unmask_probabilities(IndependentScheduler(no_drawing, mask_schedule(schedule)), 8),
        "dpm_outer_times_8": lambda: solver.outer_times,
        "dpm_total_N": lambda: torch.tensor([solver.schedule.num_steps]),
        r"dpm_sample_nocfg_(\d+)": lambda steps: solver_sample(network, inputs, int(steps), guided=False),
        r"dpm_sample_(\d+)": lambda steps: solver_sample(network, inputs, int(steps), guided=True),
        r"dpm_toy_(\d+)": lambda steps: toy_sample(inputs, int(steps)),
        "run([01])_.+": lambda run: run_sampler(network, inputs, int(run), given.recorded),
    }
