"""Class-conditional images from ResGen and a tokenizer of residual codes, by iterative parallel decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from generative.autoregressive.masked.parallel_decoding import masked_counts
from generative.autoregressive.masked.resgen import ResGenTransformer, check_residual_match
from generative.autoregressive.masked.residual_decoding import ResidualScheduler, sum_known
from generative.core.guidance import GuidanceInterval, GuidanceSchedule, step_guidance
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.tokenizers.rvq import RVQTokenizer
from pipelines.base import ClassLabels, OutputType
from pipelines.tokens import TokenPipeline


class ResGenPipeline(TokenPipeline):
    """Fills in residual codes, coarse to fine and the most confident first, in a few iterations, then decodes them.

    Args:
        transformer: Predicts the sum of each position's masked embeddings.
        tokenizer: Turns codes into images.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
    """

    transformer: ResGenTransformer
    tokenizer: RVQTokenizer
    check_components = staticmethod(check_residual_match)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels,
        num_inference_steps: int = 16,
        choice_temperature: float = 1.0,
        guidance_scale: float = 1.0,
        guidance_schedule: GuidanceSchedule = "constant",
        guidance_interval: GuidanceInterval | None = None,
        guidance_exponent: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Generate one image for each class label.

        Args:
            class_labels: One label, or a sequence or tensor (B,) of labels in [0, num_classes).
            num_inference_steps: Iterations, 1 to the number of codes of an image.
            choice_temperature: Randomness of which codes an iteration keeps, falling to 0 at the last; 0 keeps the surest.
            guidance_scale: Classifier-free guidance on weights and means of the mixtures, u + s (c - u); 1 is none.
            guidance_schedule: How guidance grows from the first of the iterations to the last; see ``GuidanceSchedule``.
            guidance_interval: ``(low, high)``: guide only where low < noise level <= high, the level being the share of the
                iterations that is still to come (1 at the first); None for all.
            guidance_exponent: Power of ``power_cosine``.
            temperature: Divides the logits of the Gaussians and multiplies their widths; below 1 gives more typical images.
            top_k: Draw from so many of the most probable Gaussians of a mixture; None for all.
            top_p: Draw from the most probable Gaussians that make up this share of the probability.
            generator: A list with one generator per image, one generator, or None; see ``image_noise``.
            output_type: ``pil``, ``np``, ``pt`` or ``uint8``; see ``postprocess``.
            return_dict: Return an ``ImagePipelineOutput`` rather than a tuple.

        Returns:
            The images.

        Raises:
            UserError: If an argument is out of range.
        """
        scheduler, scale = self.plan(
            num_inference_steps,
            choice_temperature,
            guidance_scale,
            guidance_schedule,
            guidance_interval,
            guidance_exponent,
            temperature,
            top_k,
            top_p,
        )
        labels = self.check_class_labels(class_labels)
        noise = self.image_noise(generator, len(labels))
        channels = self.transformer.num_guided
        predict = classifier_free_guidance(self.predict, labels, self.num_classes, scale, channels=channels)
        state = self.prepare_state(labels, noise)
        state = sample_loop(predict, scheduler, state, num_inference_steps, noise, self.progress_bar)
        return self.postprocess(self.decode(state), output_type, return_dict)

    def plan(
        self,
        num_inference_steps: int,
        choice_temperature: float,
        guidance_scale: float,
        guidance_schedule: GuidanceSchedule,
        guidance_interval: GuidanceInterval | None,
        guidance_exponent: float,
        temperature: float,
        top_k: int | None,
        top_p: float,
    ) -> tuple[ResidualScheduler, float | Callable[[int], float]]:
        """Scheduler and guidance scale, checked; see ``ImagePipeline.plan``."""
        network = self.transformer
        scheduler = ResidualScheduler(
            self.tokenizer.codebooks_tensor,
            network.sequence_length,
            network.mixture,
            network.scale_of,
            choice_temperature,
            temperature,
            top_k,
            top_p,
        )
        masked_counts(scheduler.num_codes, num_inference_steps)  # refuses what cannot be
        scale = step_guidance(guidance_scale, num_inference_steps, guidance_schedule, guidance_interval, guidance_exponent)
        return scheduler, scale

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """Start from ids (B, L, depth) of which none is known."""
        shape = (len(class_labels), self.transformer.sequence_length)
        ids = torch.zeros(*shape, self.tokenizer.depth, dtype=torch.int64, device=class_labels.device)
        num_known = torch.zeros(shape, dtype=torch.int64, device=class_labels.device)
        return SampleState(sample=ids, memory={"num_known": num_known, "codebooks": self.tokenizer.codebooks_tensor})

    def predict(self, state: SampleState, timestep: int, class_labels: Tensor) -> Tensor:
        """Mixtures of all positions for K guidance branches, in one forward pass.

        Args:
            state: Ids (B, L, depth); its memory has how many of each position are known.
            timestep: Iteration; the network does not read it, the counts tell.
            class_labels: (K, B) int64.

        Returns:
            (K, B, P, L) float32: the P numbers of a mixture come first, as guidance picks channels there.
        """
        num_branches = len(class_labels)
        num_known = state.memory["num_known"]  # (B, L)
        known = sum_known(state.sample, num_known, state.memory["codebooks"])  # (B, L, D)
        prediction = self.transformer(
            known.repeat(num_branches, 1, 1), num_known.repeat(num_branches, 1), class_labels.flatten()
        )  # (K * B, L, P)
        return prediction.float().transpose(1, 2).unflatten(0, tuple(class_labels.shape))  # (K, B, P, L)

    def decode(self, state: SampleState) -> Tensor:
        """Decode the ids into images (B, 3, H, W) in [-1, 1]."""
        return self.tokenizer.decode(state.sample.flatten(1))
