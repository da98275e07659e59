"""Class-conditional images from a transformer over tokens and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.autoregressive.next_token.transformer import ImageTransformer
from generative.autoregressive.options import NextTokenOptions
from generative.autoregressive.token_sampling import RasterScheduler
from generative.core.errors import UserError
from generative.core.guidance import step_guidance
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.layers.linear import cast_weights
from generative.tokenizers.base import ImageTokenizer
from generative.tokenizers.convolutional import ConvolutionalTokenizer
from pipelines.branches import reserve_branches, tokens_before
from pipelines.tokens import TokenPipeline


class AutoregressiveImagePipeline(TokenPipeline):
    """Samples token by token in raster order with a KV cache, then decodes the tokens.

    Args:
        transformer: Predicts each token from the class and the tokens before it.
        tokenizer: Turns tokens into images.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
    """

    options_class = NextTokenOptions

    transformer: ImageTransformer
    tokenizer: ImageTokenizer

    def __init__(
        self, transformer: ImageTransformer, tokenizer: ImageTokenizer, sampling_defaults: dict[str, Any] | None = None
    ) -> None:
        super().__init__(transformer, tokenizer, sampling_defaults)
        self._compiled_step: Callable[..., Tensor] | None = None

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels: of those that the default options make."""
        return self.merge_options().output_size or self.tokenizer.image_size

    def compile_decoding(self, **options: Any) -> None:
        """Compile the step that samples a token: one graph for all positions, at the price of attention over all of them.

        Args:
            **options: Of ``torch.compile``, for example ``mode="reduce-overhead"`` on a GPU.
        """
        self._compiled_step = torch.compile(self.transformer.decode_step, **options)

    def sample(self, class_labels: Tensor, options: NextTokenOptions, noise: ImageNoise) -> SampleState:
        """Draw token after token; see the base class."""
        scheduler, scale = self.plan(options)
        predict = classifier_free_guidance(self.predict, class_labels, self.num_classes, scale)
        state = self.prepare_state(class_labels, noise)
        with cast_weights(self.transformer):
            state = sample_loop(predict, scheduler, state, scheduler.num_tokens, noise, self.progress_bar)
        state.memory["output_size"] = options.output_size
        return state

    def plan(self, options: NextTokenOptions) -> tuple[RasterScheduler, float | Callable[[int], float]]:
        """Scheduler and guidance scale, checked; see ``ImagePipeline.plan``."""
        length = self.tokenizer.sequence_length
        scale = step_guidance(
            options.guidance_scale, length, options.guidance_schedule, options.guidance_interval, options.guidance_exponent
        )
        if scale != 1 and not self.transformer.config.null_class:
            raise UserError(
                f"guidance_scale must be 1, got {options.guidance_scale}; this transformer was trained without a null class "
                "(null_class)"
            )
        check_output_size(options.output_size)
        return RasterScheduler(length, options.temperature, options.top_k, options.top_p), scale

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
        length = self.transformer.sequence_length if self._compiled_step else timestep + 1  # of one shape for compiled code
        cache, read = reserve_branches(state.memory, self.transformer.make_cache, num_branches, batch_size, length)
        for branch in range(num_branches):
            if read[branch] < timestep:
                missed = tokens_before(state.sample, read[branch], timestep)
                rows = cache.rows(branch * batch_size, (branch + 1) * batch_size)
                self.transformer.extend_from(read[branch], missed, rows, class_labels[branch])
            read[branch] = timestep + 1
        rows = cache.rows(0, num_branches * batch_size)
        token = tokens_before(state.sample, timestep, timestep + 1)[:, 0].repeat(num_branches)  # (K * B,)
        if self._compiled_step is None:
            logits = self.transformer.decode_step(token, timestep, rows, class_labels.flatten())  # (K * B, V)
        else:
            position = torch.tensor([timestep], device=token.device)
            logits = self._compiled_step(token, position, rows, class_labels.flatten())  # (K * B, V)
        return logits.float().unflatten(0, (num_branches, batch_size))  # (K, B, V)

    def decode(self, state: SampleState) -> Tensor:
        """Decode the token map into images (B, 3, H, W), in [-1, 1] unless they are resized."""
        return decode_resized(self.tokenizer, state.sample, state.memory.get("output_size"))


def check_output_size(output_size: int | None) -> None:
    """Refuse an ``output_size`` that is not positive, with a ``UserError``."""
    if output_size is not None and output_size < 1:
        raise UserError(f"output_size must be at least 1 pixel, got {output_size}; leave it out to keep the tokenizer's size")


def decode_resized(tokenizer: ImageTokenizer, tokens: Tensor, output_size: int | None) -> Tensor:
    """Decode tokens and bring the images to a size by bicubic interpolation, as LlamaGen's sample_c2i_ddp.py does.

    Args:
        tokenizer: A convolutional one's images are not clamped before they are resized.
        tokens: (B, L) int64.
        output_size: Side in pixels; None for the tokenizer's.

    Returns:
        (B, 3, H, W) float32, in [-1, 1] if it is the tokenizer's size.
    """
    if output_size in (None, tokenizer.image_size):
        return tokenizer.decode(tokens)
    if isinstance(tokenizer, ConvolutionalTokenizer):
        images = tokenizer.reconstruct(tokenizer.ids_to_latents(tokens, tokenizer.grid_size))
    else:
        images = tokenizer.decode(tokens)
    return F.interpolate(images, size=(output_size, output_size), mode="bicubic")
