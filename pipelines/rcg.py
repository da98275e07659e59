"""Images from a denoiser that is conditioned on representations, which are made first (RCG, arXiv 2312.03701)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Condition
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.guidance.combined import Guidance
from generative.diffusion.options import RCGOptions
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.diffusers_scheduler import DiffusersSampler
from pipelines.diffusion import DiffusionImagePipeline
from pipelines.representation import RepresentationPipeline, RepresentationStage, check_representation


class RCGPipeline(RepresentationStage, DiffusionImagePipeline):
    """Makes a representation of no image, of a class where the representation diffusion has classes, then an image of it.

    Guidance is away from the null representation, by the denoiser; of the representation diffusion's options a call takes those
    that ``RCGOptions`` names ``representation_...``.

    Args:
        denoiser: One whose config has a ``representation_dim``.
        scheduler: See ``DiffusionImagePipeline``.
        autoencoder: Likewise.
        sampling_defaults: Likewise.
        training_scheduler: Likewise.
        formulation: Likewise.
        guide: Likewise.
        classifier: Likewise.
        representation: Makes the representations; None for a pipeline that is to get one (``generative rcg``).

    Raises:
        UserError: If the parts do not fit one another.
    """

    _optional_components = [*DiffusionImagePipeline._optional_components, "representation"]
    options_class = RCGOptions

    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        autoencoder: ModelMixin | None = None,
        sampling_defaults: dict[str, Any] | None = None,
        training_scheduler: SchedulerMixin | None = None,
        formulation: Formulation | None = None,
        guide: ModelMixin | None = None,
        classifier: ModelMixin | None = None,
        representation: RepresentationPipeline | None = None,
    ) -> None:
        super().__init__(denoiser, scheduler, autoencoder, sampling_defaults, training_scheduler, formulation, guide, classifier)
        takes = denoiser.config.get("representation_dim")
        if takes is None:
            raise UserError(f"the denoiser is a {type(denoiser).__name__} that takes no representations; set representation_dim")
        if representation is not None:
            check_representation(representation, takes, type(denoiser).__name__)
        self.register_modules(representation=representation)

    @property
    def num_classes(self) -> int:
        """Number of classes of the representations; labels are in [0, num_classes)."""
        return 1 if self.representation is None else self.representation.num_classes

    @property
    def minds_classes(self) -> bool:
        """Whether labels have an effect."""
        return self.num_classes > 1

    def sample(self, class_labels: Tensor, options: RCGOptions, noise: ImageNoise) -> SampleState:  # type: ignore[override]
        """Make representations, then denoise under them; see the base class."""
        self.plan(options)
        vector = self.sample_representations(class_labels, options, noise)
        return self.denoise(Condition(torch.zeros_like(class_labels), vector=vector), options, noise)

    def plan(self, options: RCGOptions) -> tuple[Sampler | DiffusersSampler, Guidance]:  # type: ignore[override]
        """The denoiser's sampler and guidance, once all options are checked; see ``ImagePipeline.plan``."""
        if self.representation is None:
            raise UserError(
                "the denoiser is conditioned on representations and the pipeline has no representation diffusion; put both into "
                "one with `generative rcg REPRESENTATION GENERATOR --output DIR`"
            )
        self.plan_representation(options)
        return super().plan(options)
