"""Class-conditional images from a transformer over tokens and a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from generative.autoregressive.decoding import GuidanceSchedule, RasterScheduler, position_guidance
from generative.autoregressive.transformer import ImageTransformer
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.layers.kv_cache import KVCache
from generative.tokenizers.base import ImageTokenizer, check_match
from pipelines.base import ClassLabels, ImageGenerationPipeline, OutputType


class AutoregressiveImagePipeline(ImageGenerationPipeline):
    """Samples token by token in raster order with a KV cache, then decodes the tokens.

    Args:
        transformer: Predicts each token from the class and the tokens before it.
        tokenizer: Turns tokens into images.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
    """

    model_cpu_offload_seq = "transformer->tokenizer"

    transformer: ImageTransformer
    tokenizer: ImageTokenizer

    def __init__(
        self, transformer: ImageTransformer, tokenizer: ImageTokenizer, sampling_defaults: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.register_to_config(sampling_defaults=sampling_defaults)
        check_match(transformer, tokenizer)
        self.register_modules(transformer=transformer, tokenizer=tokenizer)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes)."""
        return self.transformer.config.num_classes

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.tokenizer.image_size

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        guidance_schedule: GuidanceSchedule = "constant",
        guidance_interval: tuple[float, float] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Generate one image for each class label.

        Args:
            class_labels: One label, or a sequence or tensor (B,) of labels in [0, num_classes).
            guidance_scale: Classifier-free guidance on the logits, u + s (c - u); 1 is none and costs half.
            temperature: Divides the logits; below 1 gives more typical, less diverse images.
            top_k: Draw from so many of the most probable tokens; None for all.
            top_p: Draw from the most probable tokens that make up this share of the probability.
            guidance_schedule: ``constant``, or ``linear`` from 1 at the first token to ``guidance_scale`` at the last.
            guidance_interval: ``(start, stop)``: guide only this part of the sequence, as shares of its length; None for all.
            generator: A list with one generator per image, one generator, or None; see ``image_noise``.
            output_type: ``pil``, ``np``, ``pt`` or ``uint8``; see ``postprocess``.
            return_dict: Return an ``ImagePipelineOutput`` rather than a tuple.

        Returns:
            The images.

        Raises:
            UserError: If an argument is out of range.
        """
        labels = self.check_class_labels(class_labels)
        scale = position_guidance(guidance_scale, self.tokenizer.sequence_length, guidance_schedule, guidance_interval)
        scheduler = RasterScheduler(self.tokenizer.sequence_length, temperature, top_k, top_p)
        noise = self.image_noise(generator, len(labels))
        predict = classifier_free_guidance(self.predict, labels, self.num_classes, scale)
        state = self.prepare_state(labels, noise)
        state = sample_loop(predict, scheduler, state, scheduler.num_tokens, noise, self.progress_bar)
        return self.postprocess(self.decode(state), output_type, return_dict)

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """Start from an empty token map (B, L) and no cache."""
        shape = (len(class_labels), self.tokenizer.sequence_length)
        return SampleState(sample=torch.zeros(shape, dtype=torch.int64, device=class_labels.device))

    def predict(self, state: SampleState, timestep: int, class_labels: Tensor) -> Tensor:
        """Logits of the token at position ``timestep`` for K guidance branches, in one forward pass.

        The cache has a block of B rows for each branch. A branch that was left out of earlier steps (guidance off) first reads
        the tokens it has missed, in one pass, so that the cache is right whatever the guidance schedule.

        Args:
            state: Token map (B, L), filled before ``timestep``; its memory keeps the cache.
            timestep: Position, in [0, L).
            class_labels: (K, B) int64, for each branch the same at every step.

        Returns:
            (K, B, V) float32 logits.
        """
        num_branches, batch_size = class_labels.shape
        cache, read = self._cache(state, num_branches, batch_size)
        before = state.sample.roll(1, dims=1)  # (B, L); entry i is token i - 1, entry 0 is not read
        for branch in range(num_branches):
            if read[branch] < timestep:
                missed = torch.arange(read[branch], timestep, device=before.device)
                rows = cache.rows(branch * batch_size, (branch + 1) * batch_size)
                self.transformer.extend(before[:, missed], missed, rows, class_labels[branch])
            read[branch] = timestep + 1
        rows = cache.rows(0, num_branches * batch_size)
        token = before[:, timestep].repeat(num_branches)  # (K * B,)
        logits = self.transformer.decode_step(token, timestep, rows, class_labels.flatten())  # (K * B, V)
        return logits.float().unflatten(0, (num_branches, batch_size))  # (K, B, V)

    def decode(self, state: SampleState) -> Tensor:
        """Decode the token map into images (B, 3, H, W) in [-1, 1]."""
        return self.tokenizer.decode(state.sample)

    def _cache(self, state: SampleState, num_branches: int, batch_size: int) -> tuple[KVCache, list[int]]:
        """Cache of at least ``num_branches`` branches, and how many slots each branch has read."""
        cache: KVCache | None = state.memory.get("cache")
        read: list[int] = state.memory.setdefault("read", [])
        if cache is None or cache.batch_size < num_branches * batch_size:
            larger = self.transformer.make_cache(num_branches * batch_size)
            if cache is not None:
                larger.keys[:, : cache.batch_size] = cache.keys
                larger.values[:, : cache.batch_size] = cache.values
            state.memory["cache"] = cache = larger
            read.extend([0] * (num_branches - len(read)))
        return cache, read
