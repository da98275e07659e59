"""Images from MAGE and a tokenizer, conditioned on representations that are made first (RCG), on classes or on nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from generative.autoregressive.masked.mage import MAGETransformer
from generative.autoregressive.masked.parallel_decoding import ParallelScheduler, masked_counts
from generative.autoregressive.options import MAGEOptions
from generative.core.errors import UserError
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.tokenizers.base import ImageTokenizer
from pipelines.representation import RepresentationPipeline, RepresentationStage, check_representation
from pipelines.tokens import TokenPipeline


def mage_scheduler(transformer: MAGETransformer, options: MAGEOptions) -> ParallelScheduler:
    """The decoding that options ask for, see ``ParallelScheduler``."""
    return ParallelScheduler(
        transformer.sequence_length,
        transformer.mask_token,
        options.choice_temperature,
        options.temperature,
        options.top_k,
        options.top_p,
    )


class MAGEPipeline(RepresentationStage, TokenPipeline):
    """Makes a representation, fills in a masked token map under it in a few iterations, and decodes the tokens.

    Args:
        transformer: Predicts the masked tokens.
        tokenizer: Turns tokens into images.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
        representation: Makes what the transformer is conditioned on; None where that is a class or nothing.

    Raises:
        UserError: If the parts do not fit one another.
    """

    _optional_components = ["representation"]
    options_class = MAGEOptions

    transformer: MAGETransformer
    tokenizer: ImageTokenizer

    def __init__(
        self,
        transformer: MAGETransformer,
        tokenizer: ImageTokenizer,
        sampling_defaults: dict[str, Any] | None = None,
        representation: RepresentationPipeline | None = None,
    ) -> None:
        super().__init__(transformer, tokenizer, sampling_defaults)
        takes = transformer.config.representation_dim if transformer.config.condition == "representation" else None
        if representation is not None:
            check_representation(representation, takes, type(transformer).__name__)
        self.register_modules(representation=representation)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes): those of the representations where there are any."""
        return int(self.transformer.config.num_classes if self.representation is None else self.representation.num_classes)

    def sample(self, class_labels: Tensor, options: MAGEOptions, noise: ImageNoise) -> SampleState:
        """Make representations, then fill in the map; see the base class."""
        scheduler, scale = self.plan(options)
        vector = self.sample_representations(class_labels, options, noise)
        labels = class_labels if vector is None else torch.zeros_like(class_labels)
        predict = classifier_free_guidance(self.predict, labels, self.transformer.num_classes, scale)
        state = self.prepare_state(class_labels, noise)
        state.memory["vector"] = vector
        return sample_loop(predict, scheduler, state, options.num_inference_steps, noise, self.progress_bar)

    def plan(self, options: MAGEOptions) -> tuple[ParallelScheduler, float | Callable[[int], float]]:
        """Scheduler and guidance scale, checked; see ``ImagePipeline.plan``."""
        scheduler = mage_scheduler(self.transformer, options)
        masked_counts(self.transformer.sequence_length, options.num_inference_steps)  # refuses what cannot be
        scale = options.step_scale()
        if options.guidance_scale != 1 and self.transformer.null_label is None:
            raise UserError(
                f"guidance_scale {options.guidance_scale} needs a transformer with a null condition, and this one has none; use 1"
            )
        if self.transformer.config.condition == "representation" and self.representation is None:
            raise UserError(
                "this MAGETransformer is conditioned on representations and the pipeline has no representation diffusion; build "
                "it with representation=load_representation(RUN), or join both with `generative rcg`"
            )
        self.plan_representation(options)
        return scheduler, scale

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """Start from a token map (B, L) that is masked everywhere."""
        shape = (len(class_labels), self.transformer.sequence_length)
        return SampleState(sample=torch.full(shape, self.transformer.mask_token, device=class_labels.device))

    def predict(self, state: SampleState, timestep: int, class_labels: Tensor) -> Tensor:
        """Logits of all tokens for K guidance branches; see ``predict_with``."""
        return self.predict_with(self.transformer, state, timestep, class_labels)

    @staticmethod
    def predict_with(transformer: MAGETransformer, state: SampleState, timestep: int, class_labels: Tensor) -> Tensor:
        """Logits of all tokens for K guidance branches, in one forward pass.

        Args:
            transformer: Predicts.
            state: Token map (B, L) with masks; its memory has ``vector``, the representations (B, D) or None.
            timestep: Iteration; the network does not read it, the number of masks tells.
            class_labels: (K, B) int64; the null label stands for the null representation too.

        Returns:
            (K, B, L, V) float32 logits.
        """
        num_branches = len(class_labels)
        vector = state.memory.get("vector")
        vector = None if vector is None else vector.repeat(num_branches, 1)  # (K * B, D)
        logits = transformer(state.sample.repeat(num_branches, 1), class_labels.flatten(), vector)  # (K * B, L, V)
        return logits.float().unflatten(0, tuple(class_labels.shape))  # (K, B, L, V)

    def decode(self, state: SampleState) -> Tensor:
        """Decode the token map into images (B, 3, H, W) in [-1, 1]."""
        return self.tokenizer.decode(state.sample)
