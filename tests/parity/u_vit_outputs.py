"""How the outputs of u-vit and u-vit_pixel parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import torch
from dpm_outputs import guided, solved
from masked_autoencoder_outputs import FileNoise
from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.u_vit import dpm_solver, euler_maruyama, formulation, latent_formulation, pixel_formulation
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Condition, DenoiserOutput, evaluator
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.guidance.extrapolation import Extrapolation
from generative.layers.embeddings import timestep_embedding


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, inputs, config = given.model, given.inputs, given.config
    latent, pixel, process = latent_formulation(), pixel_formulation(), formulation(config)
    strength = config.get("guidance_s") or 0.0

    def labels(name: str) -> Tensor:
        """Of the file; a model without classes has none."""
        return inputs.get(name, torch.zeros(len(inputs["x"]), dtype=torch.int64))

    def loss(trained: Formulation, times: Tensor) -> Tensor:
        sample = trained.add_noise(inputs["x0"], inputs["noise"], times)
        output = model(*trained.network_input(sample, times), labels("y_loss"))
        return trained.losses(output, inputs["x0"], inputs["noise"], sample, times)["mse"]

    def run_solver(start: str | None, steps: str) -> Tensor:
        predict = guided(model, process, labels("y_guided"), strength)
        share = torch.tensor(float(start or 1), dtype=torch.float64)
        first = share if config.get("pixel") else share * latent.process.num_train_timesteps - 1
        return solved(predict, inputs["init"], dpm_solver(config), process, int(steps), first)

    def euler(is_stochastic: bool) -> Tensor:
        sampler, num_points = euler_maruyama(is_stochastic), int(config["em_steps"])
        draws = list(inputs["em_noise"]) if is_stochastic else [torch.zeros_like(inputs["init"])] * num_points
        _, sigma = pixel.alpha_sigma(pixel.sampling_times(1)[0])
        start = SampleState(inputs["init"].double() / sigma)
        predict = Extrapolation(scale=1.0).bind(evaluator(model, pixel), Condition(labels("y_guided")), pixel)
        return sampler.sample(predict, start, num_points, FileNoise(draws), pixel).sample

    def at_pixel_times() -> tuple[DenoiserOutput, Tensor, Tensor]:
        times = inputs["t01"].double()
        sample = pixel.add_noise(inputs["x0"], inputs["noise"], inputs["t01"])
        output = model(*pixel.network_input(sample, inputs["t01"]), labels("y_loss"))
        return output, sample, times

    def drift(scale: float) -> Tensor:
        """Of the reverse SDE (1) or of the ODE (0), towards noise."""
        output, sample, times = at_pixel_times()
        diffusion = euler_maruyama(bool(scale)).diffusion(times, pixel).reshape(-1, 1, 1, 1)
        return pixel.velocity(output, sample, times) - diffusion * pixel.score(output, sample, times)

    return {
        "forward": lambda: model(inputs["x"], inputs["n"], labels("y")).prediction,
        "forward_continuous": lambda: model(inputs["x"], inputs["t_continuous"], labels("y")).prediction,
        "timestep_sinusoid": lambda: timestep_embedding(inputs["t_continuous"], model.config.hidden_size),
        # Index 0 of the official table is clean data.
        "cum_alphas": lambda: torch.cat([torch.ones(1), latent.process.alphas_cumprod.float()]),
        "xn": lambda: latent.add_noise(inputs["x0"], inputs["noise"], inputs["n_loss"] - 1),
        "loss": lambda: loss(latent, inputs["n_loss"] - 1),
        "xt_vpsde": lambda: pixel.add_noise(inputs["x0"], inputs["noise"], inputs["t01"]),
        "loss_vpsde": lambda: loss(pixel, inputs["t01"]),
        "guided": lambda: at_network_time(given, strength),
        r"dpm_solver_(?:fast|pixel)(?:_T([\d.]+))?_(\d+)steps": run_solver,
        "euler_maruyama_sde": lambda: euler(True),
        "euler_maruyama_ode": lambda: euler(False),
        "score": lambda: pixel.score(*at_pixel_times()),
        "reverse_sde_drift": lambda: drift(1.0),
        "ode_drift": lambda: drift(0.0),
    }


class AtNetworkTime:
    """A process whose times are those that the network is told, as the file gives them."""

    def network_input(self, sample: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        return sample, times


def at_network_time(given: Given, strength: float) -> Tensor:
    """The guided prediction at the file's times, which are the network's."""
    inputs = given.inputs
    labels = inputs.get("y_guided", torch.zeros(len(inputs["x_guided"]), dtype=torch.int64))
    predict = guided(given.model, AtNetworkTime(), labels, strength)  # type: ignore[arg-type]
    return predict(SampleState(inputs["x_guided"]), inputs["t_guided"]).prediction
