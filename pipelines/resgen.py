"""Class-conditional images from ResGen and a tokenizer of residual codes, by iterative parallel decoding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from generative.autoregressive.masked.parallel_decoding import masked_counts
from generative.autoregressive.masked.resgen import ResGenTransformer, check_residual_match
from generative.autoregressive.masked.residual_decoding import ResidualScheduler, sum_known
from generative.autoregressive.options import ResGenOptions
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.tokenizers.rvq import RVQTokenizer
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
    options_class = ResGenOptions

    def sample(self, class_labels: Tensor, options: ResGenOptions, noise: ImageNoise) -> SampleState:
        """Fill in the codes; guidance acts on weights and means of the mixtures. See the base class."""
        scheduler, scale = self.plan(options)
        channels = self.transformer.num_guided
        predict = classifier_free_guidance(self.predict, class_labels, self.num_classes, scale, channels=channels)
        state = self.prepare_state(class_labels, noise)
        return sample_loop(predict, scheduler, state, options.num_inference_steps, noise, self.progress_bar)

    def plan(self, options: ResGenOptions) -> tuple[ResidualScheduler, float | Callable[[int], float]]:
        """Scheduler and guidance scale, checked; see ``ImagePipeline.plan``."""
        network = self.transformer
        scheduler = ResidualScheduler(
            self.tokenizer.codebooks_tensor,
            network.sequence_length,
            network.mixture,
            network.scale_of,
            options.choice_temperature,
            options.temperature,
            options.top_k,
            options.top_p,
        )
        masked_counts(scheduler.num_codes, options.num_inference_steps)  # refuses what cannot be
        return scheduler, options.step_scale()

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
