"""Schedulers and what was trained: which fit, how they are adapted, and that those that do return the data's distribution."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.guidance import is_inside
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.samplers.diffusers_scheduler import DiffusersSampler
from generative.diffusion.samplers.fit import (
    EDM_SCHEDULERS,
    FLOW_SCHEDULERS,
    FLOW_SOLVERS,
    GAUSSIAN_SCHEDULERS,
    class_name,
    fit_scheduler,
    formulation_of,
    knows_pure_noise,
    takes,
    training_scheduler_of,
)

sys.path.append(str(Path(__file__).parents[1]))
from exact import MEAN, STD, exact_predict  # noqa: E402

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


def moments(scheduler: Any, formulation: Formulation, steps: int = 50) -> tuple[float, float]:
    """Mean and deviation of what a scheduler makes of noise with the best prediction there is."""
    noise = ImageNoise([torch.Generator().manual_seed(seed) for seed in range(16)])
    state = SampleState(noise.randn(3, 12, 12))
    sample = DiffusersSampler(scheduler).sample(exact_predict(formulation), state, steps, noise, formulation).sample
    return float(sample.mean()), float(sample.std())


def check(scheduler: Any, training: Any) -> None:
    """The scheduler, fitted, returns the Gaussian."""
    formulation = formulation_of(training)
    mean, std = moments(fit_scheduler(scheduler, formulation), formulation)
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
            fit_scheduler(make(name), formulation_of(training))


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_default_scheduler_is_made_to_return_the_gaussian_of_a_flow(name: str, shift: float) -> None:
    training = make("FlowMatchEulerDiscreteScheduler", shift=shift)
    check(make(name), training)
    fitted = fit_scheduler(getattr(diffusers, name).from_config(training.config), formulation_of(training))
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
        fit_scheduler(scheduler, formulation_of(training))


def test_a_scheduler_that_fits_is_left_as_it_is() -> None:
    training = make("DDPMScheduler")
    for scheduler in (training, make("DDIMScheduler"), make("EulerDiscreteScheduler", use_karras_sigmas=True)):
        assert fit_scheduler(scheduler, formulation_of(training)) is scheduler
    flow = Interpolant()
    scheduler = make("FlowMatchEulerDiscreteScheduler", shift=3.0, use_karras_sigmas=True)
    assert fit_scheduler(scheduler, flow) is scheduler


def guided(scheduler: Any, training: Any, interval: tuple[float, float], steps: int = 8) -> tuple[int, int]:
    """Steps whose noise level lies within an interval: as the formulation says, and by the scheduler's own sigmas."""
    formulation = formulation_of(training)
    fitted = fit_scheduler(scheduler, formulation)
    said = [is_inside(interval, level) for level in levels_of(fitted, formulation, steps)]
    sampler = DiffusersSampler(fitted)
    timesteps = sampler.set_timesteps(steps, torch.device("cpu"))
    sigmas: Any = getattr(sampler.scheduler, "sigmas", None)
    true = [float(timestep) / 1000 for timestep in timesteps]
    if class_name(training).startswith("FlowMatch"):
        true = [float(sigma) for sigma in sigmas[: len(timesteps)]]
    elif sigmas is not None:
        abar = training.alphas_cumprod.double()
        table = ((1 - abar) / abar).sqrt().log()
        true = [float((table - float(sigma)).abs().argmin()) / 1000 for sigma in sigmas[: len(timesteps)].log()]
    assert not all(said)
    return sum(said), sum(is_inside(interval, place) for place in true)


def levels_of(fitted: Any, formulation: Formulation, steps: int) -> list[float]:
    """Noise level of each call of the denoiser."""
    levels: list[float] = []

    def predict(state: SampleState, time: Tensor) -> DenoiserOutput:
        levels.append(float(formulation.noise_level(time)))
        return exact_predict(formulation)(state, time)

    noise = ImageNoise([torch.Generator().manual_seed(0)])
    DiffusersSampler(fitted).sample(predict, SampleState(noise.randn(1, 2, 2)), steps, noise, formulation)
    return levels


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
@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
def test_edm_is_guided_by_its_noise(name: str, sigma_schedule: str) -> None:
    scheduler, formulation = make(name, sigma_schedule=sigma_schedule), EDM()
    sigmas = DiffusersSampler(scheduler).set_timesteps(8, torch.device("cpu")).mul(4).exp()
    levels = levels_of(fit_scheduler(scheduler, formulation), formulation, 8)
    assert levels == pytest.approx((sigmas / (1 + sigmas)).tolist(), rel=1e-4)
    assert sum(is_inside((0.2, 0.8), level) for level in levels) in (1, 2)


@pytest.mark.parametrize("name", ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_steps_in_two_halves_have_levels_too(name: str) -> None:
    formulation = GaussianDiffusion()
    levels = levels_of(fit_scheduler(make(name), formulation), formulation, 8)
    assert levels[0] == pytest.approx(0.999) and sum(is_inside((0.2, 0.8), level) for level in levels) in range(7, 11)


@pytest.mark.parametrize("data_time", [0, 1])
@pytest.mark.parametrize("prediction_type", ["velocity", "sample"])
def test_any_linear_interpolant_is_sampled_by_flow_schedulers(prediction_type: str, data_time: int) -> None:
    formulation = Interpolant("linear", prediction_type, data_time=data_time, time_scale=1.0)  # type: ignore[arg-type]
    mean, std = moments(fit_scheduler(make("FlowMatchEulerDiscreteScheduler"), formulation), formulation)
    assert abs(mean - MEAN) < TOLERANCE / 2 and abs(std - STD) < TOLERANCE


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_a_flow_of_any_time_scale_is_sampled(name: str) -> None:
    check(make(name), make("FlowMatchEulerDiscreteScheduler", num_train_timesteps=1))


def test_paths_that_diffusers_does_not_know_are_sampled_by_ours() -> None:
    with pytest.raises(
        UserError, match="trained as Interpolant, and no scheduler of diffusers does; take the sampler ode, sde or heun"
    ):
        fit_scheduler(make("FlowMatchEulerDiscreteScheduler"), Interpolant("gvp"))
    with pytest.raises(UserError, match="no scheduler of diffusers does"):
        fit_scheduler(make("FlowMatchEulerDiscreteScheduler"), Interpolant(prediction_type="epsilon"))


@pytest.mark.parametrize("betas", list(BETAS))
def test_a_chain_is_found_in_its_scheduler_to_the_bit(betas: str) -> None:
    training = gaussian_betas("v_prediction", betas)
    formulation = formulation_of(training)
    assert isinstance(formulation, GaussianDiffusion) and torch.equal(formulation.process.betas, training.betas.double())
    assert torch.equal(training_scheduler_of(formulation).betas, training.betas)
