"""Class-conditional images from a diffusion model or flow."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import CallCount, Condition, evaluator, has_memory
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.free_u import free_u_of, transformed_skips
from generative.diffusion.guidance.combined import Guidance
from generative.diffusion.guidance.components import check_classifier, check_guide, has_classes
from generative.diffusion.guidance.plan import plan_guidance
from generative.diffusion.image_size import sample_shape
from generative.diffusion.options import DiffusionOptions
from generative.diffusion.samplers.adaptive import AdaptiveODESampler
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.choose import as_sampler, check_sampler
from generative.diffusion.samplers.diffusers_scheduler import DiffusersSampler
from generative.diffusion.samplers.fit import formulation_of
from generative.diffusion.samplers.names import named_sampler
from generative.tokenizers.latents import check_latents, decode_latents, latent_stride
from pipelines.base import ImageGenerationPipeline

IMAGE_CHANNELS = 3


class DiffusionImagePipeline(ImageGenerationPipeline):
    """Images by denoising noise step by step.

    Another sampler can take the place of the saved one: one of ``generative.diffusion.samplers``, or a scheduler of diffusers,
    ``pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)``. It is adapted to the formulation (betas,
    prediction type, flow), and refused if it cannot be: ``generative.diffusion.samplers.fit`` lists which can.

    Attributes:
        num_evaluations: (B,) int64 evaluations of the denoiser that each image of the last call took; those of several branches
            of guidance count once, and steps that ``zero_init`` holds still not at all, except by the adaptive solver.

    Args:
        denoiser: Trained network, see ``generative.diffusion.objectives.denoising``.
        scheduler: Sampler.
        autoencoder: Decodes the denoiser's latents; None if it works on pixels.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
        training_scheduler: Of pipelines saved before formulations: the scheduler of diffusers that was trained with.
        formulation: What the denoiser was trained under; None takes what ``training_scheduler`` or else ``scheduler`` stands for.
        guide: A weaker denoiser of the same formulation to guide away from (autoguidance, self-improvement) by ``guide_scale``
            of the options; None for none.
        classifier: Of noised samples of the same formulation, ``(sample, time) -> logits``, whose gradient leads to the class by
            ``classifier_scale`` of the options; None for none.

    Raises:
        UserError: If the parts do not fit one another.
    """

    _optional_components = ["autoencoder", "training_scheduler", "formulation", "guide", "classifier"]
    model_cpu_offload_seq = "denoiser->guide->classifier->autoencoder"
    options_class = DiffusionOptions
    num_evaluations: Tensor | None = None

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
    ) -> None:
        super().__init__()
        self.register_to_config(sampling_defaults=sampling_defaults)
        check_latents(denoiser.config.in_channels, autoencoder)
        if formulation is None:
            formulation = formulation_of(training_scheduler or scheduler, bool(denoiser.config.get("learn_sigma")))
        self.register_modules(
            denoiser=denoiser,
            formulation=formulation,
            scheduler=scheduler,
            autoencoder=autoencoder,
            training_scheduler=None,
            guide=guide,
            classifier=classifier,
        )

    def register_modules(self, **modules: Any) -> None:
        """Register components; what must fit the denoiser is checked first, so that what is refused leaves no trace."""
        fixed = {name: modules.get(name) or getattr(self, name) for name in ("formulation", "denoiser")}
        super().register_modules(**{name: self._fitted(name, value, **fixed) for name, value in modules.items()})

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a sampler must fit what was trained, and is adapted to it, a guide and a classifier must fit."""
        if name in ("scheduler", "guide", "classifier") and value is not None:
            value = self._fitted(name, value, self.formulation, self.denoiser)
            if self.config[name][0] is None:
                # diffusers goes on to save nothing for a component that was absent when the pipeline was made.
                return super().register_modules(**{name: value})
        super().__setattr__(name, value)

    @staticmethod
    def _fitted(name: str, value: Any, formulation: Formulation, denoiser: ModelMixin) -> Any:
        """A component of this name as it fits the others.

        Raises:
            UserError: If it cannot.
        """
        if name == "scheduler" and value is not None:
            return check_sampler(value, formulation)
        if name == "guide" and value is not None:
            check_guide(value, denoiser)
        if name == "classifier" and value is not None:
            check_classifier(value, denoiser)
        return value

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes). Of a denoiser without classes, those that a classifier guides to."""
        is_classifiers = self.classifier is not None and not has_classes(self.denoiser.config)
        return int((self.classifier if is_classifiers else self.denoiser).config.num_classes)

    @property
    def minds_classes(self) -> bool:
        """Whether labels have an effect, on the denoiser or by a classifier."""
        return has_classes(self.denoiser.config) or self.classifier is not None

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.denoiser.config.sample_size * self.stride

    @property
    def stride(self) -> int:
        """Pixels per latent along an axis; 1 on pixels."""
        return latent_stride(self.autoencoder) if self.autoencoder else 1

    def sample(self, class_labels: Tensor, options: DiffusionOptions, noise: ImageNoise) -> SampleState:
        """Denoise from noise to data; see the base class."""
        return self.denoise(Condition(class_labels), options, noise)

    def denoise(self, condition: Condition, options: DiffusionOptions, noise: ImageNoise) -> SampleState:
        """Denoise from noise to data under any condition that the denoiser takes; begins with ``plan``."""
        sampler, guidance = self.plan(options)
        state, count = self.prepare_state(condition.class_labels, noise, options.size), CallCount()
        predict = guidance.bind(count.watch(evaluator(self.denoiser, self.formulation)), condition, self.formulation)
        with transformed_skips(self.denoiser, free_u_of(self.denoiser, options.free_u, options.free_u_version)):
            state = sampler.sample(predict, state, options.num_inference_steps, noise, self.formulation, self.progress_bar)
        self.num_evaluations = state.memory.get("num_evaluations", torch.full((len(condition.class_labels),), count.calls))
        return state

    def plan(self, options: DiffusionOptions) -> tuple[Sampler | DiffusersSampler, Guidance]:
        """The sampler and the guidance, once all options are checked; see ``ImagePipeline.plan``."""
        self.check_decodable()
        self.sample_shape(options.size, self.companions(options))
        guidance = self.guidance(options)
        free_u_of(self.denoiser, options.free_u, options.free_u_version)
        named = self.scheduler if options.sampler is None else named_sampler(options.sampler, self.formulation, self.scheduler)
        sampler = as_sampler(named)
        if isinstance(sampler, AdaptiveODESampler):
            if options.apg_momentum:
                raise UserError(
                    "apg_momentum remembers what was predicted before, and the adaptive solver tries steps again; set it to 0 or "
                    "take another sampler"
                )
            if has_memory(self.denoiser) or has_memory(self.guide):
                raise UserError(
                    "this denoiser remembers what it gave at the step before, and the adaptive solver tries steps again; take "
                    "another sampler, such as gamma or ode"
                )
        sampler.check(self.formulation, options.num_inference_steps)
        return sampler, guidance

    def guidance(self, options: DiffusionOptions) -> Guidance:
        """What guides, checked; see ``plan_guidance``."""
        return plan_guidance(options, self.denoiser, self.formulation, self.guide, self.classifier)

    def companions(self, options: DiffusionOptions) -> dict[str, ModelMixin]:
        """Networks by their role that options let run beside the denoiser."""
        guides = {"guide": self.guide} if options.guide_scale != 1 and self.guide is not None else {}
        return guides | ({"classifier": self.classifier} if options.classifier_scale and self.classifier is not None else {})

    def sample_shape(self, size: str | None, companions: dict[str, ModelMixin] | None = None) -> tuple[int, int]:
        """Height and width of samples for images of a size, see ``generative.diffusion.image_size.sample_shape``."""
        return sample_shape(size, self.denoiser, self.stride, companions or {})

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise, size: str | None = None) -> SampleState:
        """Standard normal noise (B, C, h, w), for images of the denoiser's own size or another one."""
        return SampleState(noise.randn(self.denoiser.config.in_channels, *self.sample_shape(size)))

    def check_decodable(self) -> None:
        """Refuse, before anything is drawn, to make latents that nothing decodes.

        Raises:
            UserError: If the denoiser's channels are not those of images and there is no autoencoder.
        """
        channels = self.denoiser.config.in_channels
        if self.autoencoder is None and channels != IMAGE_CHANNELS:
            raise UserError(
                f"the denoiser makes latents of {channels} channels (in_channels; images have {IMAGE_CHANNELS}) and the pipeline "
                "has no autoencoder; convert with --autoencoder DIR, or build the pipeline with autoencoder=..."
            )

    def decode(self, state: SampleState) -> Tensor:
        """Images (B, 3, H, W) of the final sample."""
        return state.sample if self.autoencoder is None else decode_latents(self.autoencoder, state.sample)
