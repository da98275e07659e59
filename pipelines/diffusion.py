"""Class-conditional images from a diffusion model or flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput, ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import Predict, SampleState, classifier_free_guidance, sample_loop, unguided
from generative.core.seeding import ImageNoise
from generative.diffusion.fit import fit_scheduler, missing_variance, noise_level_of, uses_learned_variance
from generative.diffusion.guidance import timestep_guidance
from generative.diffusion.schedule import DiffusersSampler
from generative.tokenizers.latents import check_latents, decode_latents, latent_stride
from pipelines.base import ClassLabels, ImageGenerationPipeline, OutputType

IMAGE_CHANNELS = 3


class DiffusionImagePipeline(ImageGenerationPipeline):
    """Images by denoising noise step by step.

    Another scheduler of diffusers can take the place of the saved one, whether a diffusion or a flow was trained:
    ``pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)``. It is adapted to what was trained (betas,
    prediction type, flow), and refused if it cannot be: ``generative.diffusion.fit`` lists which can.

    Args:
        denoiser: Trained network, see ``generative.diffusion.objective``.
        scheduler: Sampler.
        autoencoder: Decodes the denoiser's latents; None if it works on pixels.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
        training_scheduler: What the denoiser was trained with; None (pipelines saved before it was kept) takes ``scheduler``.

    Raises:
        UserError: If the parts do not fit one another.
    """

    _optional_components = ["autoencoder", "training_scheduler"]
    model_cpu_offload_seq = "denoiser->autoencoder"

    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        autoencoder: ModelMixin | None = None,
        sampling_defaults: dict[str, Any] | None = None,
        training_scheduler: SchedulerMixin | None = None,
    ) -> None:
        super().__init__()
        self.register_to_config(sampling_defaults=sampling_defaults)
        check_latents(denoiser.config.in_channels, autoencoder)
        if training_scheduler is None:
            training_scheduler = type(scheduler).from_config(scheduler.config)
        self.register_modules(
            denoiser=denoiser, training_scheduler=training_scheduler, scheduler=scheduler, autoencoder=autoencoder
        )

    def register_modules(self, **modules: Any) -> None:
        """Register components; a scheduler is fitted first, so that one that is refused leaves no trace."""
        if modules.get("scheduler") is not None:
            trained = modules.get("training_scheduler") or self.training_scheduler
            modules["scheduler"] = self.fit_scheduler(modules["scheduler"], trained, modules.get("denoiser") or self.denoiser)
        super().register_modules(**modules)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a scheduler is fitted to what was trained."""
        if name == "scheduler" and value is not None:
            value = self.fit_scheduler(value, self.training_scheduler, self.denoiser)
        super().__setattr__(name, value)

    def fit_scheduler(
        self, scheduler: SchedulerMixin, training_scheduler: SchedulerMixin, denoiser: ModelMixin
    ) -> SchedulerMixin:
        """The scheduler, adapted to what was trained; see ``generative.diffusion.fit.fit_scheduler``.

        Raises:
            UserError: If it cannot be, or wants a variance that the denoiser does not predict.
        """
        scheduler = fit_scheduler(scheduler, training_scheduler)
        if uses_learned_variance(scheduler) and denoiser.config.get("learn_sigma") is False:
            raise UserError(missing_variance(scheduler))
        return scheduler

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes)."""
        return self.denoiser.config.num_classes

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.denoiser.config.sample_size * (latent_stride(self.autoencoder) if self.autoencoder else 1)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_channels: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Generate one image per class label.

        Args:
            class_labels: Label, or (B,) labels, in [0, num_classes).
            num_inference_steps: Steps asked of the scheduler.
            guidance_scale: Classifier-free guidance s in u + s (c - u); 1 is none and costs half as much.
            guidance_interval: ``(low, high)``: guide only where low <= noise level <= high, so (0, 1) is everywhere, 0 the clean
                end and 1 pure noise: timestep / num_train_timesteps of a diffusion, sigma of a flow, however steps are spaced.
            guidance_channels: Guide only the first so many channels; 3 is DiT's published sampler on its 4 latent channels. None
                guides all (never the variance values).
            generator: One CPU generator per image, or one for all, or None.
            output_type: ``pil``, ``np``, ``pt`` or ``uint8``.
            return_dict: Wrap the images in ``ImagePipelineOutput``.

        Returns:
            The images.

        Raises:
            UserError: If an argument is out of range, or guidance is asked of a denoiser without a null condition.
        """
        sampler = self.plan(num_inference_steps, guidance_scale, guidance_interval, guidance_channels)
        labels = self.check_class_labels(class_labels)
        noise = self.image_noise(generator, len(labels))
        state = self.prepare_state(labels, noise)
        state.sample = state.sample * sampler.init_noise_sigma
        predict = self.bind_guidance(labels, guidance_scale, guidance_interval, guidance_channels)
        state = sample_loop(predict, sampler, state, num_inference_steps, noise, self.progress_bar)
        return self.postprocess(self.decode(state), output_type, return_dict)

    def plan(
        self,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_interval: tuple[float, float] | None,
        guidance_channels: int | None,
    ) -> DiffusersSampler:
        """The sampler with its timesteps, once all options are checked; see ``ImagePipeline.plan``."""
        self.check_decodable()
        self.guidance(guidance_scale, guidance_interval, guidance_channels)
        sampler = DiffusersSampler(self.scheduler)
        sampler.set_timesteps(num_inference_steps, self.device)
        return sampler

    def guidance(
        self, guidance_scale: float, interval: tuple[float, float] | None, channels: int | None
    ) -> Callable[[Any], float]:
        """Guidance scale at a timestep, see ``__call__``.

        Raises:
            UserError: If an argument is out of range, or the denoiser has no null condition to guide from.
        """
        data_channels = self.denoiser.config.in_channels
        if channels is not None and not 1 <= channels <= data_channels:
            raise UserError(f"guidance_channels must be in 1..{data_channels}, the channels of this denoiser, got {channels}")
        schedule = timestep_guidance(guidance_scale, interval, noise_level_of(self.scheduler))
        if guidance_scale != 1 and not getattr(self.denoiser.config, "class_dropout_prob", 0):
            raise UserError(
                f"guidance_scale {guidance_scale} needs a denoiser with a null condition, and this one has none; use 1"
            )
        return schedule

    def bind_guidance(
        self, class_labels: Tensor, guidance_scale: float, interval: tuple[float, float] | None, channels: int | None
    ) -> Predict:
        """Prediction for labels (B,) under classifier-free guidance, see ``__call__``."""
        schedule = self.guidance(guidance_scale, interval, channels)
        if guidance_scale == 1:
            return unguided(self.predict, class_labels)
        channels = channels or self.denoiser.config.in_channels
        return classifier_free_guidance(self.predict, class_labels, self.num_classes, schedule, channels)

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """Standard normal noise (B, C, h, w)."""
        config = self.denoiser.config
        return SampleState(noise.randn(config.in_channels, config.sample_size, config.sample_size))

    def predict(self, state: SampleState, timestep: Any, class_labels: Tensor) -> Tensor:
        """Evaluate the denoiser for K guidance branches in one forward pass.

        Args:
            state: (B, C, h, w) sample.
            timestep: Scalar, or (B,) for timesteps of their own.
            class_labels: (K, B) int64; ``num_classes`` is the null condition.

        Returns:
            (K, B, C', h, w) float32.
        """
        branches, batch_size = class_labels.shape
        sample = state.sample.to(self.denoiser.dtype).repeat(branches, 1, 1, 1)  # (K B, C, h, w)
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(batch_size).repeat(branches)
        prediction = self.denoiser(sample, timesteps, class_labels.flatten())  # (K B, C', h, w)
        return prediction.float().unflatten(0, (branches, batch_size))

    def check_decodable(self) -> None:
        """Refuse, before anything is drawn, to make latents that nothing decodes.

        Raises:
            UserError: If the denoiser's channels are not those of images and there is no autoencoder.
        """
        channels = self.denoiser.config.in_channels
        if self.autoencoder is None and channels != IMAGE_CHANNELS:
            raise UserError(
                f"the denoiser makes latents of {channels} channels and the pipeline has no autoencoder; "
                "convert with --autoencoder DIR, or build the pipeline with autoencoder=..."
            )

    def decode(self, state: SampleState) -> Tensor:
        """Images (B, 3, H, W) of the final sample."""
        return state.sample if self.autoencoder is None else decode_latents(self.autoencoder, state.sample)
