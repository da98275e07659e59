"""Checkpoints of the DiT authors' code (facebookresearch/DiT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin

from generative.convert.arguments import POSITIVE, Argument, Constructor, one_of
from generative.convert.diffusion.dit_layout import NETWORK_ARGUMENTS, SAMPLING_STEPS, DiTLayoutSource
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.samplers.ancestral import AncestralSampler

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

# The official linear schedule for 1,000 steps; other lengths scale both ends by 1000 / steps (arXiv 2006.11239, section 4).
LINEAR_STEPS, LINEAR_BETA_START, LINEAR_BETA_END = 1000, 1e-4, 0.02
CONSTRUCTOR = Constructor(
    "DiT",
    "facebookresearch/DiT",
    {
        **NETWORK_ARGUMENTS,
        "noise_schedule": Argument(None, "linear", one_of(("linear", "squaredcos_cap_v2"))),
        "diffusion_steps": Argument(None, LINEAR_STEPS, POSITIVE),
    },
)


def formulation(config: Mapping[str, Any]) -> GaussianDiffusion:
    """The official noise schedule, with a learned variance where the network has one.

    Args:
        config: Official options; ``noise_schedule``, ``diffusion_steps`` and ``learn_sigma`` are read.

    Raises:
        UserError: If an option is unknown or of the wrong kind.
    """
    values = CONSTRUCTOR.values(config)
    num_steps = values["diffusion_steps"]
    return GaussianDiffusion(
        num_train_timesteps=num_steps,
        beta_schedule=values["noise_schedule"],
        beta_start=LINEAR_BETA_START * LINEAR_STEPS / num_steps,
        beta_end=LINEAR_BETA_END * LINEAR_STEPS / num_steps,
        learned_variance=values["learn_sigma"],
    )


class DiTSource(DiTLayoutSource):
    """DiT as ``models.py`` of facebookresearch/DiT builds it."""

    name = "dit"
    repository = "facebookresearch/DiT"
    constructor = CONSTRUCTOR

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline with the official sampler; the autoencoder, which no DiT checkpoint holds, is the caller's to add.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        trained = formulation(config)
        defaults = {"num_inference_steps": min(SAMPLING_STEPS, trained.config.num_train_timesteps)}
        sampler = AncestralSampler(variance="learned" if trained.config.learned_variance else "large")
        return DiffusionImagePipeline(
            networks["model"], sampler, sampling_defaults=defaults | self.guidance_defaults(config), formulation=trained
        )
