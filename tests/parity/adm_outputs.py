"""How the outputs of ADM's parity files follow from their inputs: one step of a shortened chain, and the losses of training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from outputs import Tensors
from torch import Tensor

from generative.convert.diffusion.adm_diffusion import step_variance
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.respacing import Respacing, ShortenedChain
from generative.diffusion.samplers.ancestral import add_step_noise, reverse_mean
from generative.diffusion.samplers.ddim import ddim_step, start_and_noise


def as_output(values: Tensor, learned: bool) -> DenoiserOutput:
    """What an official network gives, prediction and variances on one channel axis, as ours give it."""
    return DenoiserOutput(*values.chunk(2, dim=1)) if learned else DenoiserOutput(values)


def as_official(output: DenoiserOutput) -> Tensor:
    """Prediction and variances on one channel axis."""
    return output.prediction if output.variance is None else torch.cat([output.prediction, output.variance], dim=1)


def losses(trained: GaussianDiffusion, output: DenoiserOutput, inputs: Tensors) -> dict[str, Tensor]:
    """Loss of each image and its parts, by official name."""
    sample = trained.add_noise(inputs["x_start"], inputs["noise"], inputs["t"])
    parts = trained.losses(output, inputs["x_start"], inputs["noise"], sample, inputs["t"])
    named = {{"mse": "loss_mse", "variational_bound": "loss_vb"}[name]: value for name, value in parts.items()}
    return named | {"loss_total": torch.stack(list(parts.values())).sum(0)}


def told(trained: GaussianDiffusion, respacing: Respacing, index: Tensor) -> Tensor:
    """What the network is told at steps of a shortened chain."""
    return trained.network_time(torch.tensor(ShortenedChain(trained.process, respacing).timesteps)[index])


def ancestral(
    trained: GaussianDiffusion, respacing: Respacing, output: DenoiserOutput, x: Tensor, index: Tensor, noise: Tensor, clip: bool
) -> dict[str, Tensor]:
    """One ancestral step of each row at its own index, and the x_0 that it is made from."""
    process = ShortenedChain(trained.process, respacing).process
    mean, log_variance = reverse_mean(process, output, x, index, step_variance(trained), clip)
    is_noisy = (index > 0).reshape(-1, 1, 1, 1)
    start = process.predict_start(output.prediction, x, index)
    return {
        "sample": torch.where(is_noisy, add_step_noise(mean, log_variance, noise), mean),
        "pred_xstart": start.clamp(-1, 1) if clip else start,
    }


def ddim(
    trained: GaussianDiffusion, respacing: Respacing, output: DenoiserOutput, x: Tensor, index: Tensor, noise: Tensor, eta: float
) -> dict[str, Tensor]:
    """One DDIM step of each row at its own index, clipped, and the x_0 that it is made from."""
    process = ShortenedChain(trained.process, respacing).process
    mean, std = ddim_step(process, output, x, index, eta, clip=True)
    is_noisy = (index > 0).reshape(-1, 1, 1, 1)
    return {
        "sample": mean + is_noisy * std * noise,
        "pred_xstart": start_and_noise(process, output, x, index, clip=True)[0],
    }


def under(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of one step by their names in the file."""
    return {f"{prefix}/{name}": value for name, value in values.items()}
