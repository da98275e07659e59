"""Class-conditional images from eMIGM (arXiv 2503.07197)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from generative.autoregressive.continuous.head_samplers import SolverName, head_sampler
from generative.autoregressive.continuous.schedulers import IndependentScheduler, check_iterations
from generative.autoregressive.masking import mask_schedule
from generative.core.guidance import GuidanceInterval, GuidanceSchedule
from pipelines.base import ClassLabels, OutputType
from pipelines.continuous import ContinuousTokenPipeline


class EMIGMPipeline(ContinuousTokenPipeline):
    """Tokens become known independently at even times; each is drawn by the diffusion head. Arguments as its base class."""

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels,
        num_inference_steps: int = 16,
        num_diffusion_steps: int | Sequence[int] = 8,
        solver: SolverName = "dpm-solver",
        guidance_scale: float = 1.0,
        guidance_schedule: GuidanceSchedule = "constant",
        guidance_interval: GuidanceInterval | None = None,
        temperature: float = 1.0,
        mask_strategy: str | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Generate one image per class label.

        Args:
            class_labels: Label, or (B,) labels, in [0, num_classes).
            num_inference_steps: Iterations, at each of which some tokens are drawn at once.
            num_diffusion_steps: Evaluations of the diffusion head for a token; with ``ddpm`` also the timesteps, ascending.
            solver: ``dpm-solver`` (DPM-Solver++, singlestep, order 3) or ``ddpm``, ancestral with learned variance.
            guidance_scale: Classifier-free guidance s in u + s (c - u) on the head's noise (official ``cfg``); 1 is none.
            guidance_schedule: Growth of the guidance with the share of known tokens, see ``GuidanceSchedule``; published:
                ``constant``.
            guidance_interval: ``(low, high)``: guide only where low < noise level <= high, the level being the time in [0, 1]
                that an iteration ends at (1 where all is masked); others cost half as much. None guides all.
            temperature: Factor on the noise of ddpm's steps.
            mask_strategy: Schedule of the masks; None for the one it was trained with.
            generator: One CPU generator per image, or one for all, or None.
            output_type: ``pil``, ``np``, ``pt`` or ``uint8``.
            return_dict: Wrap the images in ``ImagePipelineOutput``.

        Returns:
            The images.

        Raises:
            UserError: If an argument is out of range.
        """
        scheduler = self.plan(
            num_inference_steps,
            num_diffusion_steps,
            solver,
            guidance_scale,
            guidance_schedule,
            guidance_interval,
            temperature,
            mask_strategy,
        )
        labels = self.check_class_labels(class_labels)
        noise = self.image_noise(generator, len(labels))
        state = self.prepare_state(labels, noise)
        state.memory["uniform"] = noise.rand(num_inference_steps, self.network.num_tokens)  # what decides when
        state = self.run(labels, scheduler, num_inference_steps, noise, state)
        return self.postprocess(self.decode(state), output_type, return_dict)

    def plan(
        self,
        num_inference_steps: int,
        num_diffusion_steps: int | Sequence[int],
        solver: SolverName,
        guidance_scale: float,
        guidance_schedule: GuidanceSchedule,
        guidance_interval: GuidanceInterval | None,
        temperature: float,
        mask_strategy: str | None,
    ) -> IndependentScheduler:
        """The scheduler, checked; see ``ImagePipeline.plan``."""
        self.check_decodable()
        draw = self.head_drawing(head_sampler(solver, num_diffusion_steps, temperature))
        schedule = mask_schedule(self.network.config.mask_strategy if mask_strategy is None else mask_strategy)
        check_iterations(num_inference_steps)
        return IndependentScheduler(draw, schedule, guidance_scale, guidance_schedule, guidance_interval)
