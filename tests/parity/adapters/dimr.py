"""How the outputs of dimr parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from dpm_outputs import guided, solved
from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.dimr import dpm_solver, formulation, loss_coefficients
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Condition, DenoiserOutput
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.objectives.pyramid import PyramidObjective, to_resolution
from generative.layers.time_dependent import TimeDependentParameter

SOURCE = "dimr"
LOWEST_TIME, TIME_RANGE = -4.0, 8.0


def time_dependent(given: Given) -> Tensor:
    """The example of a parameter at the file's times."""
    inputs = given.inputs
    parameter = TimeDependentParameter(len(inputs["tdp_bias"]), 0.0)
    parts = {"high": "tdp_param0", "low": "tdp_param1", "gate_bias": "tdp_bias"}
    state = {name: inputs[theirs] for name, theirs in parts.items()}
    parameter.load_state_dict(state | {"gate_weight": inputs["tdp_weight"] - 1})
    return parameter(inputs["tdp_time"])


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, inputs, config = given.model, given.inputs, given.config
    process = formulation(config)
    strength = float(given.sampling.get("guidance", config.get("guidance_scale", 0.4)))
    coefficients = given.sampling.get("loss_coefficients", loss_coefficients(config))

    def labels(name: str) -> Tensor | None:
        """Of the file; a model without classes has none."""
        return inputs.get(name)

    def run(times: Tensor) -> list[Tensor]:
        output = model(inputs["x"], times, labels("y"))
        return [*output.pyramid, output.prediction]

    def noised() -> Tensor:
        return process.add_noise(inputs["x0"], inputs["noise"], inputs["n"] - 1)

    def loss() -> Tensor:
        optimizer: Callable[..., torch.optim.Optimizer] = functools.partial(torch.optim.AdamW, lr=0.0)
        objective = PyramidObjective(model, process, optimizer, coefficients)
        times, sample = inputs["n"] - 1, noised()
        given_labels = labels("y")
        output: DenoiserOutput = model(*process.network_input(sample, times), given_labels)
        condition = Condition(torch.zeros_like(times) if given_labels is None else given_labels)
        parts = objective.compare(output, inputs["x0"], inputs["noise"], sample, times, condition)
        return torch.stack(list(parts.values())).sum(0)

    def predict(trained: GaussianDiffusion) -> Callable[..., DenoiserOutput]:
        given_labels = labels("y_guided")
        chosen = torch.zeros(len(inputs["x"]), dtype=torch.int64) if given_labels is None else given_labels
        return guided(model, trained, chosen, strength)

    def guided_once() -> Tensor:
        # The file tells the network's times, ours are the steps they come from.
        config = process.config
        steps = ((inputs["log_snr"] - config.time_offset) / config.time_scale).round().long()
        return predict(process)(SampleState(inputs["x"]), steps).prediction

    def run_solver(start: str | None, steps: str) -> Tensor:
        first = torch.tensor(float(start or 1), dtype=torch.float64) * process.process.num_train_timesteps - 1
        return solved(predict(process), inputs["x"], dpm_solver(), process, int(steps), first)

    def same_time() -> Tensor:
        return run(inputs["n_same"] / 1000 * TIME_RANGE + LOWEST_TIME)[-1]

    betas = process.process.betas.float()
    return {
        r"forward/stage(\d+)": lambda stage: run(inputs["log_snr"])[int(stage)],
        "forward_same_time": same_time,
        "loss": loss,
        "xn": noised,
        r"target_width(\d+)": lambda width: to_resolution(inputs["noise"], int(width)),
        "guided": guided_once,
        r"dpm_solver_fast(?:_T([\d.]+))?_(\d+)steps": run_solver,
        "tdp_example": lambda: time_dependent(given),
        "betas_first3_last3": lambda: torch.cat([betas[:3], betas[-3:]]),
        "cum_alphas_at_n": lambda: process.process.alphas_cumprod[inputs["n"] - 1].float(),
    }
