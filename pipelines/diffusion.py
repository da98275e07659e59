"""Class-conditional images from a diffusion model or flow."""

from __future__ import annotations

from typing import Any

from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generative.core.errors import UserError
from generative.core.guidance import GuidanceInterval
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Condition, Predict, evaluator
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.guidance.extrapolation import Extrapolation
from generative.diffusion.options import DiffusionOptions
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.choose import as_sampler, check_sampler
from generative.diffusion.samplers.diffusers_scheduler import DiffusersSampler
from generative.diffusion.samplers.fit import formulation_of
from generative.tokenizers.latents import check_latents, decode_latents, latent_stride
from pipelines.base import ImageGenerationPipeline

IMAGE_CHANNELS = 3


class DiffusionImagePipeline(ImageGenerationPipeline):
    """Images by denoising noise step by step.

    Another sampler can take the place of the saved one: one of ``generative.diffusion.samplers``, or a scheduler of diffusers,
    ``pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)``. It is adapted to the formulation (betas,
    prediction type, flow), and refused if it cannot be: ``generative.diffusion.samplers.fit`` lists which can.

    Args:
        denoiser: Trained network, see ``generative.diffusion.objectives.denoising``.
        scheduler: Sampler.
        autoencoder: Decodes the denoiser's latents; None if it works on pixels.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
        training_scheduler: Of pipelines saved before formulations: the scheduler of diffusers that was trained with.
        formulation: What the denoiser was trained under; None takes what ``training_scheduler`` or else ``scheduler`` stands for.

    Raises:
        UserError: If the parts do not fit one another.
    """

    _optional_components = ["autoencoder", "training_scheduler", "formulation"]
    model_cpu_offload_seq = "denoiser->autoencoder"
    options_class = DiffusionOptions

    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        autoencoder: ModelMixin | None = None,
        sampling_defaults: dict[str, Any] | None = None,
        training_scheduler: SchedulerMixin | None = None,
        formulation: Formulation | None = None,
    ) -> None:
        super().__init__()
        self.register_to_config(sampling_defaults=sampling_defaults)
        check_latents(denoiser.config.in_channels, autoencoder)
        if formulation is None:
            formulation = formulation_of(training_scheduler or scheduler, bool(denoiser.config.get("learn_sigma")))
        self.register_modules(
            denoiser=denoiser, formulation=formulation, scheduler=scheduler, autoencoder=autoencoder, training_scheduler=None
        )

    def register_modules(self, **modules: Any) -> None:
        """Register components; a sampler is checked first, so that one that is refused leaves no trace."""
        if modules.get("scheduler") is not None:
            modules["scheduler"] = check_sampler(modules["scheduler"], modules.get("formulation") or self.formulation)
        super().register_modules(**modules)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a sampler must fit what was trained, and is adapted to it."""
        if name == "scheduler" and value is not None:
            value = check_sampler(value, self.formulation)
        super().__setattr__(name, value)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes)."""
        return self.denoiser.config.num_classes

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.denoiser.config.sample_size * (latent_stride(self.autoencoder) if self.autoencoder else 1)

    def sample(self, class_labels: Tensor, options: DiffusionOptions, noise: ImageNoise) -> SampleState:
        """Denoise from noise to data; see the base class."""
        sampler, guidance = self.plan(options)
        predict, state = self.bind(guidance, class_labels), self.prepare_state(class_labels, noise)
        return sampler.sample(predict, state, options.num_inference_steps, noise, self.formulation, self.progress_bar)

    def plan(self, options: DiffusionOptions) -> tuple[Sampler | DiffusersSampler, Extrapolation]:
        """The sampler and the guidance, once all options are checked; see ``ImagePipeline.plan``."""
        self.check_decodable()
        guidance = self.guidance(options.guidance_scale, options.guidance_interval, options.guidance_channels)
        sampler = as_sampler(self.scheduler)
        sampler.check(self.formulation, options.num_inference_steps)
        return sampler, guidance

    def guidance(
        self, guidance_scale: float = 1.0, guidance_interval: GuidanceInterval | None = None, guidance_channels: int | None = None
    ) -> Extrapolation:
        """Classifier-free guidance; arguments as in a call.

        Raises:
            UserError: If one is out of range, or the denoiser has no null condition.
        """
        channels, null_label = self.denoiser.config.in_channels, self.denoiser.null_label
        if guidance_channels is not None and not 1 <= guidance_channels <= channels:
            raise UserError(f"guidance_channels must be in 1..{channels}, the channels of this denoiser, got {guidance_channels}")
        if guidance_scale != 1 and null_label is None:
            raise UserError(
                f"guidance_scale {guidance_scale} needs a denoiser with a null condition, and this one has none; use 1"
            )
        return Extrapolation(scale=guidance_scale, null_label=null_label, interval=guidance_interval, channels=guidance_channels)

    def bind(self, guidance: Extrapolation, class_labels: Tensor) -> Predict:
        """The guided prediction for labels (B,): what samplers call."""
        return guidance.bind(evaluator(self.denoiser, self.formulation), Condition(class_labels), self.formulation)

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """Standard normal noise (B, C, h, w)."""
        config = self.denoiser.config
        return SampleState(noise.randn(config.in_channels, config.sample_size, config.sample_size))

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
