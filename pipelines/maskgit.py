"""Class-conditional images from a masked token transformer and a tokenizer, by iterative parallel decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from generative.autoregressive.masked.maskgit import MaskGITTransformer
from generative.autoregressive.masked.parallel_decoding import ParallelScheduler, masked_counts
from generative.core.guidance import GuidanceInterval, GuidanceSchedule, step_guidance
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.tokenizers.base import ImageTokenizer
from pipelines.base import ClassLabels, OutputType
from pipelines.tokens import TokenPipeline


class MaskGITPipeline(TokenPipeline):
    """Fills a masked token map in a few iterations, the most confident tokens first, then decodes the tokens.

    Args:
        transformer: Predicts the masked tokens.
        tokenizer: Turns tokens into images.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
    """

    transformer: MaskGITTransformer
    tokenizer: ImageTokenizer

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels,
        num_inference_steps: int = 8,
        choice_temperature: float = 4.5,
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
            num_inference_steps: Iterations, 1 to the number of tokens; the paper's 8 (256 pixels) or 12 (512).
            choice_temperature: Randomness of which tokens an iteration keeps, falling to 0 at the last; 0 keeps the surest.
            guidance_scale: Classifier-free guidance on the logits, u + s (c - u); 1 is none and costs half.
            guidance_schedule: How guidance grows from the first of the iterations to the last; see ``GuidanceSchedule``.
            guidance_interval: ``(low, high)``: guide only where low < noise level <= high, the level being the share of the
                iterations that is still to come (1 at the first); None for all.
            guidance_exponent: Power of ``power_cosine``.
            temperature: Divides the logits; below 1 gives more typical, less diverse tokens.
            top_k: Draw from so many of the most probable tokens; None for all.
            top_p: Draw from the most probable tokens that make up this share of the probability.
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
        predict = classifier_free_guidance(self.predict, labels, self.num_classes, scale)
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
    ) -> tuple[ParallelScheduler, float | Callable[[int], float]]:
        """Scheduler and guidance scale, checked; see ``ImagePipeline.plan``."""
        scheduler = ParallelScheduler(
            self.tokenizer.sequence_length, self.transformer.mask_token, choice_temperature, temperature, top_k, top_p
        )
        masked_counts(self.tokenizer.sequence_length, num_inference_steps)  # refuses what cannot be
        scale = step_guidance(guidance_scale, num_inference_steps, guidance_schedule, guidance_interval, guidance_exponent)
        return scheduler, scale

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """Start from a token map (B, L) that is masked everywhere."""
        shape = (len(class_labels), self.tokenizer.sequence_length)
        return SampleState(sample=torch.full(shape, self.transformer.mask_token, device=class_labels.device))

    def predict(self, state: SampleState, timestep: int, class_labels: Tensor) -> Tensor:
        """Logits of all tokens for K guidance branches, in one forward pass.

        Args:
            state: Token map (B, L) with masks.
            timestep: Iteration; the network does not read it, the number of masks tells.
            class_labels: (K, B) int64.

        Returns:
            (K, B, L, V) float32 logits.
        """
        tokens = state.sample.repeat(len(class_labels), 1)  # (K * B, L)
        logits = self.transformer(tokens, class_labels.flatten())  # (K * B, L, V)
        return logits.float().unflatten(0, tuple(class_labels.shape))  # (K, B, L, V)

    def decode(self, state: SampleState) -> Tensor:
        """Decode the token map into images (B, 3, H, W) in [-1, 1]."""
        return self.tokenizer.decode(state.sample)
