"""How the outputs of rcg parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import torch
from masked_autoencoder_outputs import FileNoise
from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.rcg import RDM, formulation
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Condition, evaluator
from generative.diffusion.guidance.combined import Guidance
from generative.diffusion.samplers.ddim import start_and_noise
from generative.diffusion.samplers.ldm_ddim import LDMDDIMSampler, ldm_ddim_step, ldm_timesteps
from generative.layers.embeddings import timestep_embedding
from generative.tokenizers.representation import standardize

SOURCE = "rcg"


def outputs(given: Given) -> Table:
    """The table of outputs."""
    network, inputs = given.model, given.inputs
    trained = formulation(given.config)
    process = trained.process
    num_steps = given.sampling.get("ddim_steps", RDM.values(given.config)["ddim_steps"])
    timesteps = torch.tensor(ldm_timesteps(process.num_train_timesteps, num_steps))
    before = torch.cat([timesteps.new_zeros(1), timesteps[:-1]])
    labels = inputs["labels"]

    def step(eta: float) -> tuple[Tensor, Tensor]:
        """One step with the file's noise, and the x_0 that it is made from."""
        index = inputs["step_index"].reshape(1)
        at, x = timesteps[index], inputs["x_step"]
        output = network(x, at, labels)
        mean, std = ldm_ddim_step(process, output, x, at, before[index], eta)
        return mean + std * inputs["step_noise"], start_and_noise(process, output, x, at)[0]

    def whole(eta: float) -> Tensor:
        """All steps, with the file's noise."""
        evaluate = evaluator(network, trained)
        predict = Guidance().bind(evaluate, Condition(labels), trained)
        sampler = LDMDDIMSampler(eta=eta)
        state = SampleState(inputs["init"])
        return sampler.sample(predict, state, num_steps, FileNoise(list(inputs["sampler_noise"])), trained).sample

    def sigmas(eta: float) -> Tensor:
        kept, kept_before = process.alphas_cumprod[timesteps], process.alphas_cumprod[before]
        return (eta * ((1 - kept_before) / (1 - kept) * (1 - kept / kept_before)).sqrt()).float()

    def loss() -> Tensor:
        noised = trained.add_noise(inputs["x_start"], inputs["noise"], inputs["t_loss"])
        output = network(noised, inputs["t_loss"], labels)
        return trained.losses(output, inputs["x_start"], inputs["noise"], noised, inputs["t_loss"])["mse"].mean()

    def ends_of_table(steps: str, first: str, last: str) -> Tensor:
        table = ldm_timesteps(process.num_train_timesteps, int(steps))
        return torch.tensor([*table[: int(first)], *table[-int(last) :]])

    return {
        "forward": lambda: network(inputs["x"], inputs["t"], labels).prediction,
        "condition": lambda: network.label_embedding(labels)[:, None],
        "timestep_sinusoid": lambda: timestep_embedding(inputs["t"], network.config.hidden_size),
        "loss": loss,
        "x_noisy": lambda: trained.add_noise(inputs["x_start"], inputs["noise"], inputs["t_loss"]),
        "alphas_cumprod": lambda: process.alphas_cumprod.float(),
        "ddim_alphas": lambda: process.alphas_cumprod[timesteps].float(),
        "ddim_alphas_prev": lambda: process.alphas_cumprod[before].float(),
        r"ddim_sigmas_eta(\d+)": lambda eta: sigmas(float(eta)),
        "ddim_timesteps": timesteps,
        r"ddim(\d+)_timesteps_first(\d+)_last(\d+)": ends_of_table,
        r"ddim_eta(\d+)_step": lambda eta: step(float(eta))[0],
        "ddim_step_pred_x0": lambda: step(0.0)[1],
        r"ddim_eta(\d+)_full_sample": lambda eta: whole(float(eta)),
        "normalized_representation": lambda: standardize(inputs["raw_representation"]),
    }
