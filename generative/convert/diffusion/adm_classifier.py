"""Classifiers of noised images of openai/guided-diffusion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import NUMBER, POSITIVE, REQUIRED, UNUSED, Argument, Constructor, one_of
from generative.convert.base import OfficialSource
from generative.convert.diffusion.adm import TRUNK_ARGUMENTS, attention_sizes
from generative.convert.diffusion.adm_diffusion import DIFFUSION_ARGUMENTS, REPOSITORY, formulation
from generative.convert.diffusion.adm_keys import POOL_PATTERNS, POSITIONS, TRUNK_KEYS, our_key, our_tensor, read_options
from generative.convert.keys import names_of
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.adm_classifier import POOLS, ADMClassifier

if TYPE_CHECKING:
    from pipelines.classifier import NoisedClassifierPipeline

# ``classifier_scale`` is the guidance's; ``num_heads_upsample`` of a network without a decoder does nothing.
CONSTRUCTOR = Constructor(
    "EncoderUNetModel",
    REPOSITORY,
    {
        **TRUNK_ARGUMENTS,
        "out_channels": Argument("num_classes", REQUIRED, POSITIVE),
        "num_heads_upsample": UNUSED,
        "pool": Argument("pool", "adaptive", one_of(POOLS)),
        "classifier_scale": Argument(None, 1.0, NUMBER),
        "diffusion_steps": Argument(None, 1000, POSITIVE),
        **DIFFUSION_ARGUMENTS,
    },
)
HEAD_CHANNELS = 64
"""Of every classifier that the official ``create_classifier`` makes."""
# A pool's own key; ``spatial`` is what has none of them.
POOL_KEYS = {"attention": POSITIONS, "spatial_v2": "out.1.weight", "adaptive": "out.3.weight"}
# Width, multipliers and blocks of the published 64 x 64 one, whose chain is the cosine (its README's flags).
COSINE = (128, [1, 2, 3, 4], 4)


class ADMClassifierSource(OfficialSource):
    """Classifiers as ``EncoderUNetModel`` of openai/guided-diffusion builds them."""

    name = "adm_classifier"
    repository = REPOSITORY

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our classifier from official arguments.

        Args:
            config: Arguments of the official class; ``classifier_scale`` and options of ``create_gaussian_diffusion`` may be
                among them and are checked.

        Returns:
            ``{"model": ADMClassifier}``.

        Raises:
            UserError: If an option is unknown or has no equal here.
        """
        values = CONSTRUCTOR.values(config)
        self.formulation(config)
        sizes = attention_sizes(values["image_size"], values["attention_resolutions"], len(values["channel_mult"]))
        return {"model": ADMClassifier(**CONSTRUCTOR.read(config), attention_resolutions=sizes)}

    def formulation(self, config: Mapping[str, Any]) -> GaussianDiffusion:
        """How the images that it was trained on were noised, as official options say."""
        values = CONSTRUCTOR.values(config)
        return formulation(values, values["diffusion_steps"], learn_sigma=False)

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; attention's convolutions of one pixel become linear layers.

        Args:
            module: ``model``.
            state: Official tensors.
            network: Our classifier.

        Raises:
            UserError: If a key is unknown.
        """
        names = names_of(CONSTRUCTOR.owner, state, partial(our_key, head=POOL_PATTERNS[network.config.pool]))
        return {name: our_tensor(key, state[key]) for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        Args:
            state: Official tensors by key.

        Returns:
            What ``build`` takes; ``image_size`` is None where the pool's positions do not tell it. None for another layout.
        """
        if any(key not in state for key in TRUNK_KEYS) or any(key.startswith("output_blocks.") for key in state):
            return None
        options = read_options(state)
        pool = next((name for name, key in POOL_KEYS.items() if key in state), "spatial")
        last = {"attention": "out.2.c_proj.weight", "spatial": "out.2.weight"}.get(pool, "out.3.weight")
        size = None
        if pool == "attention":
            size = math.isqrt(state[POSITIONS].shape[1] - 1) * 2 ** (len(options["channel_mult"]) - 1)
        shape = (options["model_channels"], options["channel_mult"], options["num_res_blocks"])
        return {
            **options,
            "image_size": size,
            "out_channels": state[last].shape[0],
            "num_head_channels": HEAD_CHANNELS,
            "pool": pool,
            "noise_schedule": "cosine" if shape == COSINE else "linear",
        }

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> NoisedClassifierPipeline:
        """Pipeline that tells classes; ``generative sample --classifier`` takes its folder.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.classifier import NoisedClassifierPipeline

        return NoisedClassifierPipeline(networks["model"], self.formulation(config))
