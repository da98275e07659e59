"""Schedulers and what was trained: which fit, how they are adapted, and that those that do return the data's distribution."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import Predict, SampleState, sample_loop
from generative.core.seeding import ImageNoise
from generative.diffusion.fit import (
    EDM_SCHEDULERS,
    FLOW_SCHEDULERS,
    FLOW_SOLVERS,
    GAUSSIAN_SCHEDULERS,
    class_name,
    fit_scheduler,
    knows_pure_noise,
    noise_level_of,
    takes,
)
from generative.diffusion.schedule import DiffusersSampler

MEAN, STD = 0.3, 0.5
BETAS: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "zero terminal signal": {"rescale_betas_zero_snr": True},
}
# As good as the solver of fewest digits is in 50 steps.
TOLERANCE = 0.07


def make(name: str, **config: Any) -> Any:
    """A scheduler by its class name; data of a Gaussian is not to be clipped."""
    return getattr(diffusers, name)(**({"clip_sample": False} if name.startswith("DD") else {}), **config)


def gaussian_betas(prediction: str, betas: str) -> Any:
    """A training scheduler with a table of betas."""
    return make("DDPMScheduler", prediction_type=prediction, **BETAS[betas])


def expected_start(sample: Tensor, signal: Tensor | float, noise: Tensor | float) -> Tensor:
    """E[x_0 | x] of x = signal x_0 + noise n, for x_0 of the Gaussian."""
    gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)
    return MEAN + gain * (sample - signal * MEAN)


def exact(training: Any) -> Predict:
    """The best prediction there is for data of the Gaussian."""

    def flow(state: SampleState, timestep: Any) -> Tensor:
        sigma = float(timestep) / training.config.num_train_timesteps
        start = expected_start(state.sample, 1 - sigma, sigma)
        return (state.sample - start) / sigma if sigma else -start

    def gaussian(state: SampleState, timestep: Any) -> Tensor:
        abar, position = training.alphas_cumprod.double(), float(timestep)
        below = int(position)
        log_sigmas = 0.5 * ((1 - abar) / abar).clamp(max=1e14).log()  # between timesteps, as solvers interpolate
        above = min(below + 1, len(abar) - 1)
        sigma = (log_sigmas[below] + (position - below) * (log_sigmas[above] - log_sigmas[below])).exp()
        signal = (1 + sigma**2).rsqrt()
        start = expected_start(state.sample.double(), signal, signal * sigma)
        noise = (state.sample.double() - signal * start) / (signal * sigma)
        kinds = {"epsilon": noise, "sample": start, "v_prediction": signal * noise - signal * sigma * start}
        return kinds[training.config.prediction_type].float()

    def edm(state: SampleState, timestep: Any) -> Tensor:
        sigma, data = (4 * torch.as_tensor(timestep)).exp(), training.config.sigma_data
        sample = state.sample * (sigma**2 + data**2).sqrt()  # the network sees it scaled (arXiv 2206.00364, table 1)
        start = expected_start(sample, 1.0, sigma)
        skip = data**2 / (sigma**2 + data**2)
        return (start - skip * sample) / (sigma * data / (sigma**2 + data**2).sqrt())

    if class_name(training) in EDM_SCHEDULERS:
        return edm
    return flow if class_name(training).startswith("FlowMatch") else gaussian


def moments(scheduler: Any, predict: Predict, steps: int = 50) -> tuple[float, float]:
    """Mean and deviation of what the loop makes of noise."""
    sampler = DiffusersSampler(scheduler)
    noise = ImageNoise([torch.Generator().manual_seed(seed) for seed in range(16)])
    sampler.set_timesteps(steps, torch.device("cpu"))
    state = SampleState(noise.randn(3, 12, 12) * sampler.init_noise_sigma)
    sample = sample_loop(predict, sampler, state, steps, noise).sample
    return float(sample.mean()), float(sample.std())


def check(scheduler: Any, training: Any) -> None:
    """The scheduler, fitted, returns the Gaussian."""
    mean, std = moments(fit_scheduler(scheduler, training), exact(training))
    assert abs(mean - MEAN) < TOLERANCE / 2 and abs(std - STD) < TOLERANCE


def takers(prediction: str, betas: str) -> list[str]:
    """Schedulers that are said to fit."""
    names = [name for name, predictions in GAUSSIAN_SCHEDULERS.items() if prediction in predictions]
    return [name for name in names if knows_pure_noise(name) or not betas.startswith("zero")]


CASES = [
    (prediction, betas, name)
    for prediction, betas in (
        ("epsilon", "scaled"),
        ("v_prediction", "cosine"),
        ("sample", "sigmoid"),
        ("v_prediction", "zero terminal signal"),
    )
    for name in takers(prediction, betas)
]


@pytest.mark.parametrize(("prediction", "betas", "name"), CASES)
def test_a_default_scheduler_is_made_to_return_the_gaussian(prediction: str, betas: str, name: str) -> None:
    check(make(name), gaussian_betas(prediction, betas))


def test_what_is_not_said_to_fit_is_refused() -> None:
    training = gaussian_betas("sample", "zero terminal signal")
    fitting = takers("sample", "zero terminal signal")
    assert len(fitting) == 7 and len(GAUSSIAN_SCHEDULERS) == 16
    for name in set(GAUSSIAN_SCHEDULERS) - set(fitting):
        with pytest.raises(UserError, match=f"{name} does not fit .*; use {', '.join(fitting)}"):
            fit_scheduler(make(name), training)


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_default_scheduler_is_made_to_return_the_gaussian_of_a_flow(name: str, shift: float) -> None:
    training = make("FlowMatchEulerDiscreteScheduler", shift=shift)
    check(make(name), training)
    fitted = fit_scheduler(getattr(diffusers, name).from_config(training.config), training)
    assert fitted.config.get("flow_shift", fitted.config.get("shift")) == shift
    check(fitted, training)


@pytest.mark.parametrize("table", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_other_tables_of_sigmas_still_return_the_gaussian_of_a_flow(name: str, table: str) -> None:
    options = {table: True} if name in FLOW_SOLVERS else {table: True, "invert_sigmas": True}
    check(make(name, **options), make("FlowMatchEulerDiscreteScheduler"))


@pytest.mark.parametrize("name", EDM_SCHEDULERS)
@pytest.mark.parametrize("trained", EDM_SCHEDULERS)
def test_a_default_scheduler_is_made_to_return_the_gaussian_of_edm(name: str, trained: str) -> None:
    check(make(name), make(trained, sigma_data=0.7))


@pytest.mark.parametrize(
    ("scheduler", "training", "reason"),
    [
        (make("DDIMScheduler"), make("FlowMatchEulerDiscreteScheduler"), "DDIMScheduler does not fit .* flow matching; use Flow"),
        (make("EDMEulerScheduler"), make("FlowMatchEulerDiscreteScheduler"), "EDMEulerScheduler does not fit"),
        (
            make("LCMScheduler"),
            make("DDPMScheduler"),
            r"LCMScheduler does not fit .* \(betas\) with prediction_type epsilon; use DDIM",
        ),
        (make("DDIMInverseScheduler"), make("DDPMScheduler"), "DDIMInverseScheduler does not fit"),
        (make("FlowMatchEulerDiscreteScheduler"), make("DDPMScheduler"), "FlowMatchEulerDiscreteScheduler does not fit"),
        (make("EDMEulerScheduler"), make("DDPMScheduler"), "EDMEulerScheduler does not fit"),
        (
            make("DDPMScheduler"),
            make("EDMEulerScheduler"),
            "trained for EDM; use EDMDPMSolverMultistepScheduler, EDMEulerScheduler",
        ),
        (make("PNDMScheduler"), gaussian_betas("sample", "linear"), "PNDMScheduler does not fit .* prediction_type sample; use"),
        (make("FlowMatchLCMScheduler"), make("FlowMatchEulerDiscreteScheduler"), "FlowMatchLCMScheduler does not fit"),
        (
            make("UniPCMultistepScheduler"),
            make("FlowMatchEulerDiscreteScheduler", num_train_timesteps=1),
            "use FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler$",
        ),
        (
            make("DDIMScheduler"),
            make("DDPMScheduler", rescale_betas_zero_snr=True),
            "zero terminal signal .* use v_prediction or sample",
        ),
        (make("DDIMScheduler"), make("CMStochasticIterativeScheduler"), "CMStochasticIterativeScheduler has no betas"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_fit_is_refused_and_what_can_is_named(scheduler: Any, training: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        fit_scheduler(scheduler, training)


def test_a_scheduler_that_fits_is_left_as_it_is() -> None:
    training = make("DDPMScheduler")
    for scheduler in (training, make("DDIMScheduler"), make("EulerDiscreteScheduler", use_karras_sigmas=True)):
        assert fit_scheduler(scheduler, training) is scheduler
    flow = make("FlowMatchEulerDiscreteScheduler")
    scheduler = make("FlowMatchEulerDiscreteScheduler", shift=3.0, use_karras_sigmas=True)
    assert fit_scheduler(scheduler, flow) is scheduler


def guided(scheduler: Any, training: Any, interval: tuple[float, float], steps: int = 8) -> tuple[int, int]:
    """Steps whose noise level lies within an interval: as ``noise_level_of`` says, and by the scheduler's own sigmas."""
    fitted = fit_scheduler(scheduler, training)
    level, sampler = noise_level_of(fitted), DiffusersSampler(fitted)
    timesteps = sampler.set_timesteps(steps, torch.device("cpu"))
    said = [interval[0] <= level(timestep) <= interval[1] for timestep in timesteps]
    sigmas: Any = getattr(sampler.scheduler, "sigmas", None)
    true = [float(timestep) / 1000 for timestep in timesteps]
    if class_name(training).startswith("FlowMatch"):
        true = [float(sigma) for sigma in sigmas[: len(timesteps)]]
    elif sigmas is not None:
        abar = training.alphas_cumprod.double()
        table = ((1 - abar) / abar).sqrt().log()
        true = [float((table - float(sigma)).abs().argmin()) / 1000 for sigma in sigmas[: len(timesteps)].log()]
    assert not all(said)
    return sum(said), sum(interval[0] <= place <= interval[1] for place in true)


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"timestep_spacing": "trailing"},
)


@pytest.mark.parametrize("name", [name for name in GAUSSIAN_SCHEDULERS if not name.startswith("KDPM2")])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_many_steps_are_guided_as_have_their_noise_within_the_interval(name: str, options: dict[str, Any]) -> None:
    if all(takes(getattr(diffusers, name), option) for option in options):
        said, true = guided(make(name, **options), make("DDPMScheduler"), (0.21, 0.79))
        assert said == true and said >= 1


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_guided_by_its_sigmas(name: str, shift: float) -> None:
    training = make("FlowMatchEulerDiscreteScheduler", shift=shift)
    said, true = guided(getattr(diffusers, name).from_config(training.config), training, (0.21, 0.79))
    assert said == true and said >= 3


@pytest.mark.parametrize("name", EDM_SCHEDULERS)
@pytest.mark.parametrize("law", ["karras", "exponential"])
def test_edm_is_guided_by_the_place_in_its_table(name: str, law: str) -> None:
    scheduler = make(name, sigma_schedule=law)
    sampler, level = DiffusersSampler(scheduler), noise_level_of(scheduler)
    levels = [level(timestep) for timestep in sampler.set_timesteps(8, torch.device("cpu"))]
    assert levels == pytest.approx([1 - step / 7 for step in range(8)], abs=0.01)
    assert sum(0.2 <= value <= 0.8 for value in levels) == 4


@pytest.mark.parametrize("name", ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_steps_in_two_halves_have_levels_too(name: str) -> None:
    scheduler = make(name)
    level, sampler = noise_level_of(scheduler), DiffusersSampler(scheduler)
    levels = [level(timestep) for timestep in sampler.set_timesteps(8, torch.device("cpu"))]
    assert levels[0] == pytest.approx(0.999) and sum(0.2 <= value <= 0.8 for value in levels) in range(7, 11)
