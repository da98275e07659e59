"""Samplers by name with options, as text: ``heun:churn=40``, ``ode:method=midpoint``, ``PNDMScheduler``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_type_hints

import diffusers

from generative.core.errors import UserError
from generative.core.options import conform
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.samplers.adaptive import AdaptiveODESampler
from generative.diffusion.samplers.ancestral import AncestralSampler
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.choose import check_sampler, default_sampler
from generative.diffusion.samplers.ddim import DDIMSampler
from generative.diffusion.samplers.dpm_solver import DPMSolverSampler
from generative.diffusion.samplers.fit import SCHEDULERS
from generative.diffusion.samplers.gamma import GammaSampler
from generative.diffusion.samplers.heun import HeunSampler
from generative.diffusion.samplers.ldm_ddim import LDMDDIMSampler
from generative.diffusion.samplers.ode import ODESampler
from generative.diffusion.samplers.sde import SDESampler

SAMPLERS: MappingProxyType[str, type[Sampler]] = MappingProxyType(
    {
        "ancestral": AncestralSampler,
        "ddim": DDIMSampler,
        "dopri5": AdaptiveODESampler,
        "dpm-solver": DPMSolverSampler,
        "gamma": GammaSampler,
        "heun": HeunSampler,
        "ldm-ddim": LDMDDIMSampler,
        "ode": ODESampler,
        "sde": SDESampler,
    }
)
# Options that say what is sampled rather than how: they are the saved sampler's, unless given.
CARRIED = ("clip_sample", "variance", "sigma_min", "sigma_max")
STOCHASTIC = MappingProxyType({"eta": "ddim:eta=...", "churn": "heun:churn=..."})
"""Options that add noise, which a user may look for in another sampler, and where they are."""


def named_sampler(text: str, formulation: Formulation, saved: Any = None) -> Any:
    """The sampler that a text names.

    Args:
        text: A name of ``SAMPLERS`` or of a scheduler of diffusers, then a colon and options, ``option=value``, with commas
            between them. Those that are not given have the sampler's own defaults.
        formulation: What the denoiser was trained under.
        saved: The pipeline's own sampler; the new one clips and takes variances as that one does.

    Raises:
        UserError: If there is no such sampler or option, a value is of a wrong type, or the sampler does not fit the formulation.
    """
    name, _, rest = text.partition(":")
    if name not in SAMPLERS and name not in SCHEDULERS:
        known = ", ".join((*SAMPLERS, *SCHEDULERS))
        raise UserError(f"there is no sampler named '{name}'; known: {known}")
    kind: Any = SAMPLERS[name] if name in SAMPLERS else getattr(diffusers, name)
    options = read_options(name, rest, options_of(kind))
    hints = get_type_hints(kind.__init__) if name in SAMPLERS else {}
    given = {key: fit_value(name, key, value, hints.get(key)) for key, value in options.items()}
    if name in SAMPLERS:
        given = carried(kind, formulation, saved) | given
    try:
        return check_sampler(kind(**given), formulation)
    except UserError:
        raise
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"sampler '{text}' is refused by diffusers: {str(error).splitlines()[0]}") from error


def options_of(kind: type) -> dict[str, Any]:
    """Options of a sampler's constructor and their defaults."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    return {each.name: each.default for each in parameters if each.kind is not each.VAR_KEYWORD}


def describe_options(kind: type) -> str:
    """Options of a sampler with their defaults, as they are given: ``churn=0.0,order=2``."""
    return ",".join(f"{name}={str(default).lower()}" for name, default in options_of(kind).items())


def read_options(name: str, text: str, known: Mapping[str, Any]) -> dict[str, str]:
    """Values of options by name, as text.

    Raises:
        UserError: If one is unknown, given twice or has no value.
    """
    found: dict[str, str] = {}
    for part in text.split(",") if text else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise UserError(f"options of sampler '{name}' are given as option=value with commas between them, got '{part}'")
        if key not in known:
            elsewhere = f" ({key} is noise within the steps of '{STOCHASTIC[key]}')" if key in STOCHASTIC else ""
            raise UserError(f"sampler '{name}' has no option {key}{elsewhere}; it takes {', '.join(known) or 'none'}")
        if key in found:
            raise UserError(f"option {key} of sampler '{name}' is given twice; give it once")
        found[key] = value
    return found


def fit_value(name: str, key: str, text: str, hint: Any) -> Any:
    """A value of an option of a type; of a scheduler of diffusers, which says none that holds, what the text looks like.

    Raises:
        UserError: If it is of another type.
    """
    value = literal(text)
    if hint is None:
        return value
    try:
        return conform(f"option {key} of sampler '{name}'", value, hint)
    except UserError:
        if isinstance(value, str):
            raise
    return conform(f"option {key} of sampler '{name}'", text, hint)


def literal(text: str) -> Any:
    """None, a truth value, a number, or the text itself."""
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def carried(kind: type[Sampler], formulation: Formulation, saved: Any) -> dict[str, Any]:
    """What a sampler takes over from the formulation's usual one and from the saved one."""
    usual = default_sampler(formulation)
    sources = [usual.config if isinstance(usual, kind) else {}, saved.config if isinstance(saved, Sampler) else {}]
    known = options_of(kind)
    return {key: config[key] for config in sources for key in CARRIED if key in known and key in config}
