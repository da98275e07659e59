"""How the outputs of sit parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

from typing import Any

import torch
from dit_outputs import guided_forward
from masked_autoencoder_outputs import FileNoise
from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.sit import SDE, formulation, sde_sampler
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Branch, Condition, DenoiserOutput, evaluator
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.ode import ODESampler

SOURCE = "sit"
ODE_METHODS = {"euler": "euler", "heun2": "heun", "midpoint": "midpoint"}  # torchdiffeq's names


def unnamed_path(given: Given) -> str:
    """Path of the outputs whose name has none: the config's, unless that path's outputs are named."""
    path = given.config.get("path_type", "Linear")
    return "Linear" if f"loss_{path}" in given.recorded else path


def trained(given: Given, path: str | None = None, **change: Any) -> Interpolant:
    """The formulation of a path, with other official options than the config's."""
    return formulation({**given.config, "path_type": path or unnamed_path(given), **change})


def noised(given: Given, path: str | None) -> Tensor:
    """x_t of the file's data, noise and times."""
    inputs = given.inputs
    return trained(given, path).add_noise(inputs["x1"], inputs["x0"], inputs["t_loss"])


def loss(given: Given, path: str | None = None, **change: Any) -> Tensor:
    """Loss of each image, no label dropped."""
    inputs, training = given.inputs, trained(given, path, **change)
    sample = noised(given, path)
    output = given.model(sample, inputs["t_loss"], inputs["y_loss"])
    return training.losses(output, inputs["x1"], inputs["x0"], sample, inputs["t_loss"])["mse"]


def velocity_target(given: Given, path: str | None) -> Tensor:
    """u_t, whatever the config's network predicts."""
    inputs = given.inputs
    return trained(given, path, prediction="velocity").target(inputs["x1"], inputs["x0"], inputs["t_loss"])


def score(given: Given) -> Tensor:
    """The network's output read as a velocity, as a score."""
    inputs, flow = given.inputs, trained(given, prediction="velocity")
    output = given.model(inputs["x"], inputs["t_loss"], inputs["y"])
    return flow.score(output, inputs["x"], inputs["t_loss"])


def states(given: Given, sampler: Sampler, num_steps: int) -> list[Tensor]:
    """States after every step; the official samplers take the noise as it is, ours scale it to the first time."""
    process, labels = formulation(given.config), given.inputs["y_init"]
    evaluate = evaluator(given.model, process)

    def predict(state: SampleState, time: Tensor) -> DenoiserOutput:
        return evaluate(state, time, [Branch(Condition(labels))])[0]

    _, sigma = process.alpha_sigma(process.sampling_times(1)[0])
    start = SampleState(given.inputs["init"].double() / sigma)
    noise = FileNoise(list(given.inputs["sde_noise"])) if "sde_noise" in given.inputs else FileNoise([])
    return [state.sample.float() for state in sampler.states(predict, start, num_steps, noise, process)]


def sde_steps(given: Given) -> int:
    """Steps of the recorded SDE, the last one among them."""
    return int(SDE.values(given.config.get("sde", {}))["num_steps"])


def sde(given: Given, method: str, last_step: str | None, what: str) -> Tensor:
    """The recorded SDE by another method or last step."""
    change = {"sampling_method": method.capitalize()} | ({} if last_step is None else {"last_step": last_step})
    found = states(given, sde_sampler(given.config, **change), sde_steps(given))
    return torch.stack(found) if what == "trajectory" else found[-1]


def sde_grid(given: Given) -> Tensor:
    """Times of the SDE's steps."""
    return sde_sampler(given.config).grid(formulation(given.config), sde_steps(given))[0].float()


def ode(given: Given, method: str) -> Tensor:
    """The noise, then the states of the ODE at the points of an even grid."""
    num_steps = given.config.get("ode_num_steps", 50) - 1
    found = states(given, ODESampler(ODE_METHODS[method]), num_steps)  # type: ignore[arg-type]
    return torch.stack([given.inputs["init"], *found])


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, inputs, config = given.model, given.inputs, given.config
    channels = model.config.in_channels

    def guided() -> Tensor:
        scale = config.get("cfg_scale", 4.0)
        arguments = (inputs["x_cfg"], inputs["t_cfg"], inputs["y_cfg"], scale, formulation(config))
        return guided_forward(model, *arguments)[:, :channels]

    return {
        "forward": lambda: model(inputs["x"], inputs["t"], inputs["y"]).prediction,
        "forward_with_cfg": guided,
        "loss_noise_prediction_velocity_weight": lambda: loss(given, prediction="noise", loss_weight="velocity"),
        "loss_noise_prediction_likelihood_weight": lambda: loss(given, prediction="noise", loss_weight="likelihood"),
        "loss_noise_prediction": lambda: loss(given, prediction="noise", loss_weight=None),
        "loss_score_prediction": lambda: loss(given, prediction="score", loss_weight=None),
        r"loss_pred(?:_(Linear|GVP|VP))?": lambda path: model(noised(given, path), inputs["t_loss"], inputs["y_loss"]).prediction,
        r"loss(?:_(Linear|GVP|VP))?": lambda path: loss(given, path),
        r"xt(?:_(Linear|GVP|VP))?": lambda path: noised(given, path),
        r"ut(?:_(Linear|GVP|VP))?": lambda path: velocity_target(given, path),
        "score_from_velocity": lambda: score(given),
        r"ode_(\w+)/trajectory": lambda method: ode(given, method),
        r"sde_(euler|heun)(?:_last_(\w+))?/(trajectory|final)": lambda *groups: sde(given, *groups),
        "sde_grid": lambda: sde_grid(given),
    }
