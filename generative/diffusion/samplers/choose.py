"""Which sampler goes with a formulation: ours or a scheduler of diffusers, checked before anything runs."""

from __future__ import annotations

from typing import Any

from generative.core.errors import UserError
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.samplers.ancestral import AncestralSampler
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.diffusers_scheduler import DiffusersSampler
from generative.diffusion.samplers.fit import fit_scheduler, missing_variance, uses_learned_variance
from generative.diffusion.samplers.heun import HeunSampler
from generative.diffusion.samplers.ode import ODESampler


def default_sampler(formulation: Formulation) -> Sampler:
    """The usual sampler of a formulation: ancestral for a chain, Heun's for EDM, the ODE in even steps for the others."""
    if isinstance(formulation, GaussianDiffusion):
        return AncestralSampler(variance="learned" if formulation.config.learned_variance else "small")
    if isinstance(formulation, EDM):
        config = formulation.config
        return HeunSampler(sigma_min=config.sigma_min, sigma_max=config.sigma_max, rho=config.rho)
    return ODESampler()


def check_sampler(sampler: Any, formulation: Formulation) -> Any:
    """Refuse a sampler that does not fit what was trained; adapt a scheduler of diffusers that can be.

    Args:
        sampler: One of ours, or any scheduler of diffusers.
        formulation: What the denoiser was trained under.

    Returns:
        The sampler, or a scheduler of its class that fits.

    Raises:
        UserError: If it cannot sample from such a denoiser.
    """
    if isinstance(sampler, Sampler):
        sampler.check_formulation(formulation)
        return sampler
    fitted = fit_scheduler(sampler, formulation)
    if uses_learned_variance(fitted) and not formulation.config.get("learned_variance"):
        raise UserError(missing_variance(fitted))
    return fitted


def as_sampler(sampler: Any) -> Sampler | DiffusersSampler:
    """A sampler of ours as it is, a scheduler of diffusers as one."""
    return sampler if isinstance(sampler, Sampler) else DiffusersSampler(sampler)
