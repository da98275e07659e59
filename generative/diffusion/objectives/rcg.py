"""Training of a denoiser of images that is conditioned on their representations (RCG, arXiv 2312.03701)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generative.core.ema import EMAProfiles
from generative.core.objective import OptimizerFactory
from generative.core.types import Batch, Networks, StepContext
from generative.diffusion.denoiser import Condition
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.objectives.representation_condition import RepresentationCondition
from generative.diffusion.options import RCGOptions
from generative.tokenizers.encoded_objective import drop_labels
from generative.tokenizers.representation import RepresentationEncoder

if TYPE_CHECKING:
    from pipelines.rcg import RCGPipeline

REPRESENTATION = "representation"
"""Where a micro-batch's representations wait in its ``StepContext.cache``."""


class RCGObjective(DiffusionObjective):
    """Denoising under a representation of the image in the place of its class, on pixels or latents.

    Args:
        denoiser: One whose config has a ``representation_dim``, such as ``DiT`` or ``ADMUNet``.
        formulation: See ``DiffusionObjective``.
        optimizer: Likewise.
        representation_encoder: Encodes the images.
        representation_diffusion: Run or pipeline folder of the representation diffusion that samples begin with.
        ema: See ``DiffusionObjective``.
        label_dropout: Share of representations replaced by the null one; None takes the denoiser's ``class_dropout_prob``.
        sampler: See ``DiffusionObjective``.
        sampling: Likewise.
        autoencoder: Likewise.

    Raises:
        UserError: If the parts do not fit one another, or options contradict one another.
    """

    def __init__(
        self,
        denoiser: ModelMixin,
        formulation: Formulation,
        optimizer: OptimizerFactory,
        representation_encoder: RepresentationEncoder,
        representation_diffusion: Path,
        ema: EMAProfiles | None = None,
        label_dropout: float | None = None,
        sampler: SchedulerMixin | None = None,
        sampling: RCGOptions = RCGOptions(),
        autoencoder: ModelMixin | None = None,
    ) -> None:
        super().__init__(denoiser, formulation, optimizer, ema, label_dropout, sampler, sampling, autoencoder)
        takes = denoiser.config.get("representation_dim")
        self.condition = RepresentationCondition(representation_encoder, representation_diffusion, takes, type(denoiser).__name__)
        self.null_label: int = denoiser.config.num_classes
        self.num_classes = self.condition.num_classes
        self.uses_labels = self.num_classes > 1
        self.frozen = self.frozen | self.condition.frozen
        self.loss_extractors = self.condition.loss_extractors

    def inputs(self, batch: Batch, context: StepContext) -> tuple[Tensor, Tensor]:
        """Images or latents, and labels (B,): the null label where the representation is dropped, else 0."""
        context.cache[REPRESENTATION] = self.condition.encode(batch)
        data = self.encoder.encode(batch, context.generator)
        labels = torch.zeros_like(batch["class_labels"])
        return data, drop_labels(labels, self.null_label, self.label_dropout, context.generator)

    def conditions(self, x_start: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Condition]:
        """What is noised, under its representation."""
        return x_start, Condition(labels, vector=context.cache[REPRESENTATION])

    def identity(self) -> Mapping[str, Any]:
        """The formulation, and what encodes the representations."""
        return {**super().identity(), **self.condition.identity()}

    def representation_fingerprint(self) -> str | None:
        """The representation encoder's."""
        return self.condition.fingerprint

    def pipeline(self, networks: Networks) -> RCGPipeline:
        """Pipeline of the denoiser with the sampler and the representation diffusion."""
        from pipelines.rcg import RCGPipeline

        formulation, sampler = copy.deepcopy((self.formulation, self.sampler))
        denoiser = cast("ModelMixin", networks["denoiser"])
        return RCGPipeline(
            denoiser,
            sampler,
            self.frozen.get("autoencoder"),
            self.sampling_defaults(),
            formulation=formulation,
            representation=self.condition.representation(denoiser),
        )
