"""Representations of images by diffusion, and what pipelines share that make images of them (RCG, arXiv 2312.03701)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Condition, evaluator
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.guidance.combined import Guidance
from generative.diffusion.guidance.plan import plan_guidance
from generative.diffusion.options import DiffusionOptions
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.choose import as_sampler, check_sampler
from generative.diffusion.samplers.diffusers_scheduler import DiffusersSampler
from generative.diffusion.samplers.names import named_sampler
from pipelines import load_any_pipeline
from pipelines.base import ImagePipeline

PREFIX = "representation_"
"""Of the representation diffusion's options among a generator's."""


class RepresentationPipeline(ImagePipeline):
    """Representations of images that are nowhere: vectors by denoising noise step by step.

    Args:
        denoiser: ``(sample (B, D, 1, 1), time (B,), class_labels (B,)) -> DenoiserOutput``.
        scheduler: Sampler.
        formulation: What the denoiser was trained under.
        representation_encoder: What encodes images so, see ``RepresentationEncoder.config``.
        sampling_defaults: See ``ImagePipeline.sampling_defaults``.
    """

    purpose = "makes representations of images and no images"
    advice = "train a generator on it: `generative train digits/rcg --objective.init_args.representation_diffusion RUN`"
    evaluator = "generative.diffusion.objectives.representation_evaluation.RepresentationEvaluator"
    options_class = DiffusionOptions

    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        formulation: Formulation,
        representation_encoder: dict[str, Any] | None = None,
        sampling_defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_to_config(sampling_defaults=sampling_defaults, representation_encoder=representation_encoder)
        scheduler = check_sampler(scheduler, formulation)
        self.register_modules(denoiser=denoiser, scheduler=scheduler, formulation=formulation)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes). 1 where the class has no effect."""
        config = self.denoiser.config
        return int(config.num_classes) if config.class_conditional else 1

    @property
    def image_size(self) -> int:
        """Height and width of the images that its encoder looks at, in pixels."""
        return int((self.config.representation_encoder or {}).get("input_size", 1))

    @property
    def dim(self) -> int:
        """D, numbers of a representation."""
        return int(self.denoiser.config.in_channels)

    def plan(self, options: DiffusionOptions) -> tuple[Sampler | DiffusersSampler, Guidance]:
        """The sampler and the guidance, once all options are checked; see ``ImagePipeline.plan``."""
        guidance = plan_guidance(options, self.denoiser, self.formulation)
        if options.size is not None:
            raise UserError(f"size {options.size} is of images, and a representation has none; leave it out")
        if options.free_u is not None:
            raise UserError("free_u changes the decoder of a U-Net, and a representation diffusion has none; leave it out")
        named = self.scheduler if options.sampler is None else named_sampler(options.sampler, self.formulation, self.scheduler)
        sampler = as_sampler(named)
        sampler.check(self.formulation, options.num_inference_steps)
        return sampler, guidance

    def sample(self, class_labels: Tensor, options: DiffusionOptions, noise: ImageNoise) -> Tensor:
        """Denoise from noise to representations (B, D) float32; begins with ``plan``.

        Args:
            class_labels: (B,) int64 in [0, num_classes).
            options: Of sampling.
            noise: One random stream per representation.
        """
        sampler, guidance = self.plan(options)
        predict = guidance.bind(evaluator(self.denoiser, self.formulation), Condition(class_labels), self.formulation)
        state = SampleState(noise.randn(self.dim, 1, 1))
        state = sampler.sample(predict, state, options.num_inference_steps, noise, self.formulation, self.progress_bar)
        return state.sample.flatten(1)

    @torch.no_grad()
    def __call__(
        self, class_labels: Any, *, generator: Sequence[torch.Generator] | torch.Generator | None = None, **options: Any
    ) -> Tensor:
        """Make one representation per class label.

        Args:
            class_labels: (B,) labels; all of them 0 where the class has no effect.
            generator: A list with one CPU generator per representation, one generator, or None.
            **options: Fields of ``DiffusionOptions``, over the pipeline's ``sampling_defaults``.

        Returns:
            (B, D) float32.

        Raises:
            UserError: If an argument is out of range.
        """
        labels = torch.as_tensor(class_labels, device=self.device).reshape(-1)
        if bool(((labels < 0) | (labels >= self.num_classes)).any()):
            raise UserError(f"class labels must be in 0..{self.num_classes - 1}, got {labels.tolist()}")
        if not isinstance(generator, Sequence):
            seeds = torch.randint(2**62, (len(labels),), generator=generator).tolist()
            generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        if len(generator) != len(labels):
            raise UserError(f"give one generator per representation, got {len(generator)} for {len(labels)}")
        return self.sample(labels, self.merge_options(options), ImageNoise(generator, self.device))


def load_representation(folder: Path | str) -> RepresentationPipeline:
    """Load a representation diffusion.

    Args:
        folder: A run, a checkpoint or a pipeline folder.

    Raises:
        UserError: If it holds something else.
    """
    pipeline = load_any_pipeline(folder)
    if not isinstance(pipeline, RepresentationPipeline):
        raise UserError(
            f"'{folder}' holds a {type(pipeline).__name__}, which {pipeline.purpose}; give the run of a representation "
            "diffusion, such as that of `generative train digits/rcg_representation`"
        )
    return pipeline


def check_representation(representation: RepresentationPipeline, dim: int | None, network: str) -> None:
    """Refuse representations of another width than a generator takes.

    Args:
        representation: Makes them.
        dim: Numbers of those that the generator takes; None if it takes none.
        network: The generator's class, for the message.

    Raises:
        UserError: If they differ.
    """
    if dim is None:
        raise UserError(
            f"the {network} takes no representation; leave the representation diffusion out, or set representation_dim"
        )
    if representation.dim != dim:
        raise UserError(
            f"the representation diffusion makes representations of {representation.dim} numbers and the {network} takes {dim} "
            "(representation_dim); give one of the same encoder"
        )


class RepresentationOptions(Protocol):
    """Options of a pipeline with a representation diffusion."""

    @property
    def representation_num_inference_steps(self) -> int | None: ...

    @property
    def representation_guidance_scale(self) -> float | None: ...

    @property
    def representation_sampler(self) -> str | None: ...


class RepresentationStage(DiffusionPipeline):
    """A pipeline whose generator is conditioned on representations, which a ``RepresentationPipeline`` makes.

    Attributes:
        representation: Makes the representations; None for a generator that takes none.
    """

    representation: RepresentationPipeline | None

    def plan_representation(self, options: RepresentationOptions) -> DiffusionOptions | None:
        """Options of the representation diffusion, checked; None where there is none.

        Raises:
            UserError: If an option is out of range, or there is nothing that it is for.
        """
        names = ("num_inference_steps", "guidance_scale", "sampler")
        given = {name: getattr(options, PREFIX + name) for name in names if getattr(options, PREFIX + name) is not None}
        if self.representation is None:
            if given:
                raise UserError(f"{PREFIX}{next(iter(given))} is for a representation diffusion, and the pipeline has none")
            return None
        chosen: DiffusionOptions = self.representation.merge_options(given)
        self.representation.plan(chosen)
        return chosen

    def sample_representations(self, class_labels: Tensor, options: RepresentationOptions, noise: ImageNoise) -> Tensor | None:
        """Representations (B, D) of classes; None where the generator takes none."""
        chosen = self.plan_representation(options)
        if chosen is None or self.representation is None:
            return None
        return self.representation.sample(class_labels, chosen, noise)

    def to(self, *place: Any, **settings: Any) -> Self:
        """Move all networks, see ``DiffusionPipeline.to``."""
        super().to(*place, **settings)
        if self.representation is not None:
            self.representation.to(*place, **settings)
        return self

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Set how progress bars look, the representation diffusion's too."""
        super().set_progress_bar_config(**settings)
        if self.representation is not None:
            self.representation.set_progress_bar_config(**settings)
