"""A denoiser that is exact for Gaussian data, in any formulation: what samplers make of noise is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from generative.core.sampling import SampleState
from generative.diffusion.denoiser import DenoiserOutput, Predict
from generative.diffusion.formulations.base import Formulation, over_image
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant

MEAN, STD = 0.4, 0.3

CONTINUOUS: dict[str, Formulation] = {
    "linear": Interpolant(),
    "linear, time scaled": Interpolant(time_scale=1000.0),
    "linear, data at 1, shifted": Interpolant(data_time=1, shift=3.0),
    "linear, noise predicted": Interpolant(prediction_type="epsilon", min_level=1e-3, max_level=0.999),
    "linear, score predicted": Interpolant(prediction_type="score", min_level=1e-3, max_level=0.999),
    "linear, data predicted": Interpolant(prediction_type="sample"),
    "gvp": Interpolant("gvp", data_time=1),
    "vp": Interpolant("vp", data_time=1, min_level=1e-3),
    "edm": EDM(),
    "vp-sde": ContinuousDiffusion("vp_sde", min_time=1e-3, time_scale=999.0),
    "cosine": ContinuousDiffusion("cosine", "v_prediction"),
    "sigmoid": ContinuousDiffusion("sigmoid", start=-3.0, end=3.0, network_time="gamma"),
    "cosine, half data, v": ContinuousDiffusion("cosine", "v_prediction", data_scale=0.5),
}
GAUSSIAN: dict[str, Formulation] = {
    "noise": GaussianDiffusion(),
    "data": GaussianDiffusion(prediction_type="sample"),
    "v": GaussianDiffusion(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
}


def exact_start(formulation: Formulation, sample: Tensor, times: Tensor) -> Tensor:
    """E[x_0 | x_t] for data N(MEAN, STD^2)."""
    alpha, sigma = (over_image(factor, sample) for factor in formulation.alpha_sigma(times))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (sample - alpha * MEAN)


def exact_output(formulation: Formulation, sample: Tensor, times: Tensor) -> DenoiserOutput:
    """The output of a network that has learnt the data."""
    start = exact_start(formulation, sample, times)
    alpha, sigma = (over_image(factor, sample) for factor in formulation.alpha_sigma(times))
    if formulation.prediction_type == "sample" and not isinstance(formulation, EDM):
        return DenoiserOutput(formulation.config.get("data_scale", 1.0) * start)
    if formulation.prediction_type == "velocity":
        # At the noise's very start sigma may be 0 in nothing but the data's end, where x_0 is the sample itself.
        variance = alpha**2 * STD**2 + sigma**2
        noise = sigma * (sample - alpha * MEAN) / variance
        alpha_rate, sigma_rate = (over_image(rate, sample) for rate in formulation.rates(times))
        return DenoiserOutput(alpha_rate * start + sigma_rate * noise)
    return formulation.output_of(start, sample, times)


def exact_predict(formulation: Formulation) -> Predict:
    """A ``Predict`` of the exact denoiser."""
    return lambda state, times: exact_output(formulation, state.sample, times)


def exact_end(formulation: Formulation, start: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Where the probability-flow ODE takes a sample of the first time at the last, in closed form."""
    alpha, sigma = formulation.alpha_sigma(first)
    alpha_end, sigma_end = formulation.alpha_sigma(last)
    spread = ((alpha_end**2 * STD**2 + sigma_end**2) / (alpha**2 * STD**2 + sigma**2)).sqrt()
    return alpha_end * MEAN + spread * (start - alpha * MEAN)


def noise_state(count: int = 4, size: int = 4) -> SampleState:
    """Standard normal noise (count, 1, size, size)."""
    return SampleState(torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0)))
