"""Diffusion processes of openai/guided-diffusion: the options of its ``create_gaussian_diffusion`` and what they are here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from diffusers import ModelMixin

from generative.convert.arguments import FLAG, NUMBERS, POSITIVE, Argument, Constructor, Kind, is_whole, one_of
from generative.convert.base import NetworkFreeSource
from generative.convert.diffusion.dit import LINEAR_BETA_END, LINEAR_BETA_START, LINEAR_STEPS
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.gaussian_process import Variance
from generative.diffusion.respacing import respaced_timesteps
from generative.diffusion.samplers.ancestral import AncestralSampler

if TYPE_CHECKING:
    pass

REPOSITORY = "openai/guided-diffusion"
RESCALED_STEPS = 1000
"""Steps that ``rescale_timesteps`` and ``rescale_learned_sigmas`` count by."""


def is_respacing(value: Any) -> bool:
    """Whether a value says how a chain is shortened: text, or numbers of steps by section."""
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and len(value) > 0 and all(map(is_whole, value)))


RESPACING = Kind(
    "a respacing such as 250, ddim25 or 10,15,20",
    is_respacing,
    lambda value: value if isinstance(value, str) else ",".join(map(str, value)),
)
RESPACINGS = Kind(
    "a list of respacings",
    lambda value: isinstance(value, (list, tuple)) and all(map(is_respacing, value)),
    lambda value: [RESPACING.convert(each) for each in value],
)

# Options of the chain and of its sampling: they build no layer. ``learn_sigma`` and the number of steps stand under other names
# beside a network.
DIFFUSION_ARGUMENTS: Mapping[str, Argument] = MappingProxyType(
    {
        "sigma_small": Argument(None, False, FLAG),
        "noise_schedule": Argument(None, "linear", one_of({"linear": "linear", "cosine": "squaredcos_cap_v2"})),
        "use_kl": Argument(None, False, FLAG),
        "predict_xstart": Argument(None, False, FLAG),
        "rescale_timesteps": Argument(None, False, FLAG),
        "rescale_learned_sigmas": Argument(None, False, FLAG),
        "ancestral_respacing": Argument(None, "250", RESPACING),
        "ddim_respacing": Argument(None, "ddim25", RESPACING),
    }
)
CONSTRUCTOR = Constructor(
    "GaussianDiffusion",
    REPOSITORY,
    {
        "steps": Argument(None, LINEAR_STEPS, POSITIVE),
        "learn_sigma": Argument(None, False, FLAG),
        **DIFFUSION_ARGUMENTS,
        "all_respacings": Argument(None, (), RESPACINGS),
        "ddim_etas": Argument(None, (0.0,), NUMBERS),
    },
)


def formulation(values: Mapping[str, Any], num_steps: int, learn_sigma: bool) -> GaussianDiffusion:
    """The official process.

    Args:
        values: Of ``DIFFUSION_ARGUMENTS``, checked.
        num_steps: T.
        learn_sigma: Whether the variance is learned.
    """
    is_linear = values["noise_schedule"] == "linear"
    ends = {"beta_start": LINEAR_BETA_START, "beta_end": LINEAR_BETA_END} if is_linear else {}
    fixed: Literal["small", "large"] = "small" if values["sigma_small"] else "large"
    return GaussianDiffusion(
        num_train_timesteps=num_steps,
        beta_schedule=values["noise_schedule"],
        **{name: end * LINEAR_STEPS / num_steps for name, end in ends.items()},
        prediction_type="sample" if values["predict_xstart"] else "epsilon",
        learned_variance=learn_sigma,
        time_scale=RESCALED_STEPS / num_steps if values["rescale_timesteps"] else 1.0,
        loss="variational_bound" if values["use_kl"] else "mse",
        variance_weight=num_steps / RESCALED_STEPS if values["rescale_learned_sigmas"] else 1.0,
        fixed_variance=fixed,
    )


def step_variance(trained: GaussianDiffusion) -> Variance:
    """Which variance the official sampler steps back with."""
    return "learned" if trained.config.learned_variance else trained.config.fixed_variance


def official_sampler(values: Mapping[str, Any], trained: GaussianDiffusion) -> tuple[AncestralSampler, int]:
    """The sampler of the official scripts, which clip what is predicted, and its steps: 250 unless options say so."""
    respacing, length = values["ancestral_respacing"], trained.config.num_train_timesteps
    if respacing.isdigit():
        return AncestralSampler(variance=step_variance(trained), clip_sample=True), min(int(respacing), length)
    sampler = AncestralSampler(variance=step_variance(trained), clip_sample=True, respacing=respacing)
    return sampler, len(respaced_timesteps(length, respacing))


class ADMDiffusionSource(NetworkFreeSource):
    """A diffusion process by its options: no file holds one, and it has no network."""

    name = "adm_diffusion"
    repository = REPOSITORY
    owner = "a diffusion process"
    refusal = "a diffusion process alone makes no images; convert the checkpoint of a network with --source adm"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Check the options; there is nothing to build.

        Args:
            config: Arguments of ``create_gaussian_diffusion``, and which respacings and etas were sampled with.

        Returns:
            No networks.

        Raises:
            UserError: If an option is unknown or of the wrong kind.
        """
        self.formulation(config)
        return {}

    def formulation(self, config: Mapping[str, Any]) -> GaussianDiffusion:
        """What the options are here."""
        values = CONSTRUCTOR.values(config)
        return formulation(values, values["steps"], values["learn_sigma"])
