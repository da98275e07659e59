"""Class-conditional images from MAR (arXiv 2406.11838)."""

from __future__ import annotations

from torch import Tensor

from generative.autoregressive.continuous.head_samplers import AncestralHeadSampler
from generative.autoregressive.continuous.schedulers import RandomOrderScheduler, check_iterations
from generative.autoregressive.options import MAROptions
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from pipelines.continuous import ContinuousTokenPipeline


class MARPipeline(ContinuousTokenPipeline):
    """Next-set prediction in random order; each token is drawn by the diffusion head. Arguments as its base class."""

    options_class = MAROptions

    def sample(self, class_labels: Tensor, options: MAROptions, noise: ImageNoise) -> SampleState:
        """Draw set after set of tokens; see the base class."""
        scheduler = self.plan(options)
        state = self.prepare_state(class_labels, noise)
        return self.run(class_labels, scheduler, options.num_inference_steps, noise, state)

    def plan(self, options: MAROptions) -> RandomOrderScheduler:
        """The scheduler, checked; see ``ImagePipeline.plan``."""
        self.check_decodable()
        draw = self.head_drawing(AncestralHeadSampler(options.num_diffusion_steps, options.temperature))
        check_iterations(options.num_inference_steps)
        return RandomOrderScheduler(draw, options.guidance_scale, options.guidance_schedule)

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """No token is known; each image has an order of its own."""
        state = super().prepare_state(class_labels, noise)
        state.memory["order"] = noise.rand(self.network.num_tokens).argsort(dim=1)
        return state
