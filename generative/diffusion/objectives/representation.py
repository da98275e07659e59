"""Training of a representation diffusion: denoising of images' representations (RCG, arXiv 2312.03701, section 3)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generative.core.ema import EMAProfiles
from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.images import images_to_float
from generative.core.objective import OptimizerFactory
from generative.core.seeding import sample_generators
from generative.core.types import Batch, Networks, StepContext
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.objectives.representation_condition import encode_batch
from generative.diffusion.options import DiffusionOptions
from generative.tokenizers.encoded_objective import drop_labels
from generative.tokenizers.representation import RepresentationEncoder, describe_encoder, standardize

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline
    from pipelines.representation import RepresentationPipeline


class RepresentationObjective(DiffusionObjective):
    """Denoising of the vectors that a frozen encoder makes of images, or that a ``RepresentationDataset`` brings.

    Args:
        denoiser: Such as ``SimpleMLP``; its ``in_channels`` are the encoder's numbers.
        formulation: See ``DiffusionObjective``; RCG's is a ``GaussianDiffusion`` that predicts the data (``sample``).
        optimizer: Makes the optimizer.
        representation_encoder: Encodes the images.
        image_size: Height and width of the images, in pixels.
        ema: See ``DiffusionObjective``.
        label_dropout: Likewise.
        sampler: Likewise.
        sampling: Likewise.

    Raises:
        UserError: If the denoiser takes vectors of another width, or options contradict one another.
    """

    usage = "train a generator on it: `--objective.init_args.representation_diffusion {run}`"

    def __init__(
        self,
        denoiser: ModelMixin,
        formulation: Formulation,
        optimizer: OptimizerFactory,
        representation_encoder: RepresentationEncoder,
        image_size: int,
        ema: EMAProfiles | None = None,
        label_dropout: float | None = None,
        sampler: SchedulerMixin | None = None,
        sampling: DiffusionOptions = DiffusionOptions(num_inference_steps=250),
    ) -> None:
        if denoiser.config.in_channels != representation_encoder.dim:
            raise UserError(
                f"the denoiser takes representations of {denoiser.config.in_channels} numbers (in_channels) and the encoder "
                f"gives {describe_encoder(representation_encoder.config)}; make them equal"
            )
        super().__init__(denoiser, formulation, optimizer, ema, label_dropout, sampler, sampling)
        self.representation_encoder = representation_encoder.requires_grad_(False).eval()
        self.frozen = {"representation_encoder": representation_encoder}
        self.image_size = image_size
        self.uses_labels = bool(denoiser.config.class_conditional)

    def inputs(self, batch: Batch, context: StepContext) -> tuple[Tensor, Tensor]:
        """Representations (B, D, 1, 1), and labels (B,), some of them dropped."""
        vectors = encode_batch(self.representation_encoder, batch)[..., None, None]
        labels = batch["class_labels"] if self.uses_labels else torch.zeros_like(batch["class_labels"])
        return vectors, drop_labels(labels, self.num_classes, self.label_dropout, context.generator)

    def identity(self) -> Mapping[str, Any]:
        """The formulation, and what encodes the representations."""
        return {**super().identity(), "representation_encoder": dict(self.representation_encoder.config)}

    def encodings(self, batch: Batch, generator: torch.Generator) -> Batch:
        """``representations`` of a batch's images; see the base class."""
        return {"representations": encode_batch(self.representation_encoder, batch)}

    def representation_fingerprint(self) -> str | None:
        """The encoder's."""
        return self.representation_encoder.fingerprint

    def pipeline(self, networks: Networks) -> RepresentationPipeline:  # type: ignore[override] # it makes no images
        """Pipeline of the denoiser with the sampler."""
        from pipelines.representation import RepresentationPipeline

        formulation, sampler = copy.deepcopy((self.formulation, self.sampler))
        encoder = dict(self.representation_encoder.config)
        return RepresentationPipeline(
            cast("ModelMixin", networks["denoiser"]), sampler, formulation, encoder, self.sampling_defaults()
        )

    @torch.no_grad()
    def example_images(
        self, pipeline: ImagePipeline, requests: Sequence[SampleRequest], real: Tensor, seed: int, columns: int
    ) -> Tensor:
        """The training images whose representations are nearest to samples, a row for each class if there are any."""
        sampled = cast("RepresentationPipeline", pipeline)
        labels = [request.class_label if sampled.num_classes > 1 else 0 for request in requests]
        generators = sample_generators(seed, [request.class_label for request in requests], [r.index for r in requests])
        sampled.set_progress_bar_config(disable=True)
        vectors = sampled(labels, generator=generators)  # (N, D)
        device = next(self.representation_encoder.network.parameters()).device
        known = self.representation_encoder(images_to_float(real).to(device))  # (N, D)
        similarity = standardize(vectors.to(known.device)) @ standardize(known).T
        return real[similarity.argmax(dim=1).cpu()]
