"""Class-conditional images from a masked token transformer and a tokenizer, by iterative parallel decoding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from generative.autoregressive.masked.maskgit import MaskGITTransformer
from generative.autoregressive.masked.parallel_decoding import ParallelScheduler, masked_counts
from generative.autoregressive.options import MaskGITOptions
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.tokenizers.base import ImageTokenizer
from pipelines.tokens import TokenPipeline


class MaskGITPipeline(TokenPipeline):
    """Fills a masked token map in a few iterations, the most confident tokens first, then decodes the tokens.

    Args:
        transformer: Predicts the masked tokens.
        tokenizer: Turns tokens into images.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
    """

    options_class = MaskGITOptions

    transformer: MaskGITTransformer
    tokenizer: ImageTokenizer

    def sample(self, class_labels: Tensor, options: MaskGITOptions, noise: ImageNoise) -> SampleState:
        """Fill in the map; see the base class."""
        scheduler, scale = self.plan(options)
        predict = classifier_free_guidance(self.predict, class_labels, self.num_classes, scale)
        state = self.prepare_state(class_labels, noise)
        return sample_loop(predict, scheduler, state, options.num_inference_steps, noise, self.progress_bar)

    def plan(self, options: MaskGITOptions) -> tuple[ParallelScheduler, float | Callable[[int], float]]:
        """Scheduler and guidance scale, checked; see ``ImagePipeline.plan``."""
        scheduler = ParallelScheduler(
            self.tokenizer.sequence_length,
            self.transformer.mask_token,
            options.choice_temperature,
            options.temperature,
            options.top_k,
            options.top_p,
        )
        masked_counts(self.tokenizer.sequence_length, options.num_inference_steps)  # refuses what cannot be
        return scheduler, options.step_scale()

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
