"""Class-conditional images from eMIGM (arXiv 2503.07197)."""

from __future__ import annotations

from torch import Tensor

from generative.autoregressive.continuous.head_samplers import head_sampler
from generative.autoregressive.continuous.schedulers import IndependentScheduler, check_iterations
from generative.autoregressive.masking import mask_schedule
from generative.autoregressive.options import EMIGMOptions
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from pipelines.continuous import ContinuousTokenPipeline


class EMIGMPipeline(ContinuousTokenPipeline):
    """Tokens become known independently at even times; each is drawn by the diffusion head. Arguments as its base class."""

    options_class = EMIGMOptions

    def sample(self, class_labels: Tensor, options: EMIGMOptions, noise: ImageNoise) -> SampleState:
        """Draw tokens as they become known; see the base class."""
        scheduler = self.plan(options)
        state = self.prepare_state(class_labels, noise)
        state.memory["uniform"] = noise.rand(options.num_inference_steps, self.network.num_tokens)  # what decides when
        return self.run(class_labels, scheduler, options.num_inference_steps, noise, state)

    def plan(self, options: EMIGMOptions) -> IndependentScheduler:
        """The scheduler, checked; see ``ImagePipeline.plan``."""
        self.check_decodable()
        draw = self.head_drawing(head_sampler(options.solver, options.num_diffusion_steps, options.temperature))
        schedule = mask_schedule(self.network.config.mask_strategy if options.mask_strategy is None else options.mask_strategy)
        check_iterations(options.num_inference_steps)
        return IndependentScheduler(draw, schedule, options.guidance_scale, options.guidance_schedule, options.guidance_interval)
