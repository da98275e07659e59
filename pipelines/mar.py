"""Class-conditional images from MAR (arXiv 2406.11838)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from generative.autoregressive.continuous.head_samplers import AncestralHeadSampler
from generative.autoregressive.continuous.schedulers import RandomOrderScheduler, check_iterations
from generative.core.guidance import GuidanceSchedule
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from pipelines.base import ClassLabels, OutputType
from pipelines.continuous import ContinuousTokenPipeline


class MARPipeline(ContinuousTokenPipeline):
    """Next-set prediction in random order; each token is drawn by the diffusion head. Arguments as its base class."""

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels,
        num_inference_steps: int = 64,
        num_diffusion_steps: int | Sequence[int] = 100,
        guidance_scale: float = 1.0,
        guidance_schedule: GuidanceSchedule = "linear",
        temperature: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Generate one image per class label.

        Args:
            class_labels: Label, or (B,) labels, in [0, num_classes).
            num_inference_steps: Iterations, at each of which a set of tokens is drawn at once; one per token at most is useful.
            num_diffusion_steps: Steps of the diffusion head, spread evenly over its 1,000; or the timesteps, ascending.
            guidance_scale: Classifier-free guidance s in u + s (c - u) on the head's noise (official ``cfg``); 1 is none and
                costs half as much.
            guidance_schedule: Growth of the guidance with the share of known tokens, see ``GuidanceSchedule``; published:
                ``linear``.
            temperature: Factor on the noise of the head's steps; published: 1 with guidance, 0.95 without.
            generator: One CPU generator per image, or one for all, or None.
            output_type: ``pil``, ``np``, ``pt`` or ``uint8``.
            return_dict: Wrap the images in ``ImagePipelineOutput``.

        Returns:
            The images.

        Raises:
            UserError: If an argument is out of range.
        """
        scheduler = self.plan(num_inference_steps, num_diffusion_steps, guidance_scale, guidance_schedule, temperature)
        labels = self.check_class_labels(class_labels)
        noise = self.image_noise(generator, len(labels))
        state = self.run(labels, scheduler, num_inference_steps, noise, self.prepare_state(labels, noise))
        return self.postprocess(self.decode(state), output_type, return_dict)

    def plan(
        self,
        num_inference_steps: int,
        num_diffusion_steps: int | Sequence[int],
        guidance_scale: float,
        guidance_schedule: GuidanceSchedule,
        temperature: float,
    ) -> RandomOrderScheduler:
        """The scheduler, checked; see ``ImagePipeline.plan``."""
        self.check_decodable()
        draw = self.head_drawing(AncestralHeadSampler(num_diffusion_steps, temperature))
        check_iterations(num_inference_steps)
        return RandomOrderScheduler(draw, guidance_scale, guidance_schedule)

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """No token is known; each image has an order of its own."""
        state = super().prepare_state(class_labels, noise)
        state.memory["order"] = noise.rand(self.network.num_tokens).argsort(dim=1)
        return state
