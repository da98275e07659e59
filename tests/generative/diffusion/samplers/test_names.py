"""Samplers named on the command line."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import UniPCMultistepScheduler

from generative.core.errors import UserError
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.options import DiffusionOptions
from generative.diffusion.samplers.ancestral import AncestralSampler
from generative.diffusion.samplers.names import SAMPLERS, describe_options, named_sampler

CHAIN, FLOW = GaussianDiffusion(learned_variance=True), Interpolant()


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_name_makes_its_sampler(name: str) -> None:
    formulation = {"ancestral": CHAIN, "ddim": CHAIN, "ldm-ddim": CHAIN, "gamma": ContinuousDiffusion()}.get(name, FLOW)
    made = named_sampler(name, formulation)
    assert type(made) is SAMPLERS[name]
    said = named_sampler(f"{name}:{describe_options(type(made))}", formulation)  # what the list shows can be given
    same = [{key: value for key, value in each.config.items() if key[0] != "_" and key != "variance"} for each in (made, said)]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("text", "formulation", "options"),
    [
        ("heun:churn=40,churn_max=none,order=2", FLOW, {"churn": 40.0, "churn_max": None, "order": 2}),
        ("heun", EDM(sigma_max=20.0), {"sigma_max": 20.0}),
        ("heun:sigma_max=10", EDM(sigma_max=20.0), {"sigma_max": 10.0}),
        ("ode:method=midpoint", FLOW, {"method": "midpoint"}),
        ("ancestral", CHAIN, {"variance": "learned", "clip_sample": False}),
        ("ancestral:variance=small,clip_sample=true", CHAIN, {"variance": "small", "clip_sample": True}),
        ("ddim: eta=0.5, respacing=ddim25", CHAIN, {"eta": 0.5, "respacing": "ddim25"}),
        ("ldm-ddim:eta=1", CHAIN, {"eta": 1.0}),
        ("ddim:respacing=25", CHAIN, {"respacing": "25"}),
        ("UniPCMultistepScheduler:solver_order=3,use_karras_sigmas=true", CHAIN, {"solver_order": 3, "use_karras_sigmas": True}),
    ],
)
def test_options_are_read(text: str, formulation: Formulation, options: dict[str, Any]) -> None:
    config = named_sampler(text, formulation).config
    assert {key: config[key] for key in options} == options


def test_a_scheduler_is_fitted_to_what_was_trained() -> None:
    found = named_sampler("UniPCMultistepScheduler", GaussianDiffusion(beta_schedule="squaredcos_cap_v2"))
    assert isinstance(found, UniPCMultistepScheduler) and found.config.beta_schedule != "linear"


def test_what_the_saved_sampler_says_of_the_data_is_kept() -> None:
    assert named_sampler("ddim", CHAIN, AncestralSampler("learned", clip_sample=True)).config.clip_sample
    assert named_sampler("ancestral", CHAIN, AncestralSampler("large")).config.variance == "large"


@pytest.mark.parametrize(
    ("text", "formulation", "message"),
    [
        (
            "eular",
            FLOW,
            "there is no sampler named 'eular'; known: ancestral, ddim, dopri5, dpm-solver, gamma, heun, ldm-ddim, ode, sde, DD",
        ),
        ("ode:eta=0.5", FLOW, r"'ode' has no option eta \(eta is noise within the steps of 'ddim:eta=...'\); it takes method"),
        ("dopri5:churn=1", FLOW, "no option churn .churn is noise within the steps of 'heun:churn=...'.; it takes atol, rtol"),
        ("heun:churn", FLOW, "are given as option=value with commas between them, got 'churn'"),
        ("heun:churn=much", FLOW, "option churn of sampler 'heun' must be a number, got 'much'"),
        ("heun:order=1.5", FLOW, "option order of sampler 'heun' must be an integer, got"),
        ("heun:order=1,order=2", FLOW, "option order of sampler 'heun' is given twice"),
        ("heun:churn=-1", FLOW, "churn must be a finite number of 0 or more, got -1"),
        ("ddim:eta=0.5", FLOW, "goes back through a Gaussian chain, .* as Interpolant; take the sampler ode, sde or heun"),
        ("ddim:eta=inf", CHAIN, "eta must be a finite number of 0 or more, got inf"),
        ("ancestral:temperature=nan", CHAIN, "temperature must be a finite number of 0 or more, got nan"),
        ("heun:churn=inf", FLOW, "churn must be a finite number"),
        ("heun:churn_min=nan", FLOW, "churn_min must be a finite number"),
        ("heun:churn_max=-1", FLOW, "churn_max must be a finite number"),
        ("heun:noise_scale=inf", FLOW, "noise_scale must be a finite number"),
        ("heun:rho=inf", FLOW, "rho must be a positive number, got inf"),
        ("heun:sigma_max=inf", FLOW, "noise levels must satisfy"),
        ("heun:sigma_min=nan", FLOW, "noise levels must satisfy"),
        ("dopri5:rtol=inf", FLOW, "rtol must be a finite number"),
        ("dopri5:atol=nan", FLOW, "atol must be a finite number"),
        ("dopri5:atol=0,rtol=0", FLOW, "atol and rtol must not both be 0"),
        ("sde:diffusion_scale=inf", FLOW, "diffusion_scale must be a finite number"),
        ("sde:last_step_size=nan", FLOW, "last_step_size must be in"),
        ("ode", CHAIN, "no continuous time"),
        ("EDMEulerScheduler", CHAIN, "EDM"),
        ("UniPCMultistepScheduler:order=3", CHAIN, "'UniPCMultistepScheduler' has no option order; it takes num_train_timesteps"),
        ("DPMSolverMultistepScheduler:solver_type=euler", CHAIN, "is refused by diffusers: "),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(text: str, formulation: Formulation, message: str) -> None:
    with pytest.raises(UserError, match=message):
        named_sampler(text, formulation)


def test_the_help_names_every_sampler() -> None:
    assert all(name in (DiffusionOptions.__doc__ or "") for name in SAMPLERS)
