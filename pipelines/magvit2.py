"""Class-conditional images from Open-MAGVIT2's transformer over sub-tokens and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from generative.autoregressive.options import SubTokenOptions
from generative.autoregressive.sub_token.magvit2 import MAGVIT2Transformer
from generative.autoregressive.sub_token.scheduler import SubTokenScheduler, sub_token_guidance
from generative.core.sampling import SampleState, classifier_free_guidance, sample_loop
from generative.core.seeding import ImageNoise
from generative.layers.linear import cast_weights
from generative.tokenizers.base import ImageTokenizer
from pipelines.branches import reserve_branches, tokens_before
from pipelines.tokens import TokenPipeline


class MAGVIT2Pipeline(TokenPipeline):
    """Samples sub-token by sub-token, positions in raster order, with a KV cache, then decodes the tokens.

    Args:
        transformer: Predicts each sub-token from the class, the tokens before it and the sub-tokens before it.
        tokenizer: Turns tokens into images.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
    """

    options_class = SubTokenOptions

    transformer: MAGVIT2Transformer
    tokenizer: ImageTokenizer

    def sample(self, class_labels: Tensor, options: SubTokenOptions, noise: ImageNoise) -> SampleState:
        """Draw sub-token after sub-token; see the base class."""
        scheduler, scale = self.plan(options)
        predict = classifier_free_guidance(self.predict, class_labels, self.num_classes, scale)
        state = self.prepare_state(class_labels, noise)
        with cast_weights(self.transformer):
            return sample_loop(predict, scheduler, state, scheduler.num_steps, noise, self.progress_bar)

    def plan(self, options: SubTokenOptions) -> tuple[SubTokenScheduler, Callable[[int], float]]:
        """Scheduler and guidance scale, checked; see ``ImagePipeline.plan``."""
        length, count = self.tokenizer.sequence_length, self.transformer.num_sub_tokens
        scale = sub_token_guidance(
            count,
            length,
            options.guidance_scale,
            options.guidance_schedule,
            options.guidance_interval,
            options.guidance_exponent,
        )
        return SubTokenScheduler(length, count, options.temperature, options.top_k, options.top_p), scale

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """Start from empty sub-tokens (B, L, K) and no cache."""
        shape = (len(class_labels), self.tokenizer.sequence_length, self.transformer.num_sub_tokens)
        return SampleState(sample=torch.zeros(shape, dtype=torch.int64, device=class_labels.device))

    def predict(self, state: SampleState, timestep: int, class_labels: Tensor) -> Tensor:
        """Logits of sub-token ``timestep % K`` of position ``timestep // K`` for all guidance branches.

        A branch that was left out of earlier steps (guidance off) first reads what it has missed.

        Args:
            state: Sub-tokens (B, L, K), filled before this one; its memory keeps caches and contexts.
            timestep: In [0, L K).
            class_labels: (branches, B) int64, for each branch the same at every step.

        Returns:
            (branches, B, 2^bits[k]) float32 logits.
        """
        num_branches, batch_size = class_labels.shape
        position, k = divmod(timestep, self.transformer.num_sub_tokens)
        self._read_position(state, position, class_labels)
        memory, known = state.memory, state.sample[:, position, :k]  # (B, k)
        logits = []
        for first, last in equal_runs(memory["intra_read"][:num_branches]):
            rows = slice(first * batch_size, last * batch_size)
            start = memory["intra_read"][first]
            cache = memory["intra_cache"].rows(rows.start, rows.stop)
            sub_tokens = known.repeat(last - first, 1)
            logits.append(self.transformer.predict_sub_token(start, memory["contexts"][rows], sub_tokens, cache))
            memory["intra_read"][first:last] = [k + 1] * (last - first)
        return torch.cat(logits).float().unflatten(0, (num_branches, batch_size))

    def _read_position(self, state: SampleState, position: int, class_labels: Tensor) -> None:
        """Bring the branches that have not read up to a position there, and keep their contexts."""
        num_branches, batch_size = class_labels.shape
        memory, transformer = state.memory, self.transformer
        cache, read = reserve_branches(memory, transformer.make_cache, num_branches, batch_size, position + 1)
        if len(memory.get("contexts", ())) < cache.batch_size:
            contexts = torch.zeros(
                cache.batch_size, transformer.config.hidden_size, device=cache.keys.device, dtype=transformer.dtype
            )
            old = memory.get("contexts", contexts[:0])
            contexts[: len(old)] = old
            # A branch that is new has read nothing; the others' slots of this position are made anew.
            memory |= {"contexts": contexts, "intra_cache": transformer.make_intra_cache(cache.batch_size)}
            memory["intra_read"] = [0] * len(read)
        for first, last in equal_runs(read[:num_branches]):
            if read[first] > position:
                continue
            rows = slice(first * batch_size, last * batch_size)
            before = tokens_before(state.sample, read[first], position + 1).repeat(last - first, 1, 1)  # (branches * B, S, K)
            labels = class_labels[first:last].flatten()
            contexts = transformer.extend(read[first], before, cache.rows(rows.start, rows.stop), labels)
            memory["contexts"][rows] = contexts[:, -1]
            read[first:last] = [position + 1] * (last - first)
            memory["intra_read"][first:last] = [0] * (last - first)

    def decode(self, state: SampleState) -> Tensor:
        """Decode the sub-tokens into images (B, 3, H, W) in [-1, 1]."""
        return self.tokenizer.decode(self.transformer.join(state.sample))


def equal_runs(values: Sequence[int]) -> list[tuple[int, int]]:
    """Where runs of equal values start and stop."""
    starts = [index for index, value in enumerate(values) if index == 0 or value != values[index - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))
