"""Next-scale sampling (arXiv 2404.02905, section 3.2): draw all tokens of a scale, add them to the map, go on to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.autoregressive.next_scale.block_causal import scale_offsets
from generative.autoregressive.token_sampling import check_sampling_options, gumbel_softmax, invert_cdf, keep_most_probable
from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.tokenizers.base import ImageTokenizer
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer

# "More smooth" sampling of the official code: temperature of the relaxed draw at the first scale, how much of it the last scale
# loses, and its floor.
SMOOTH_TEMPERATURE, SMOOTH_DECAY, SMOOTH_FLOOR = 0.27, 0.95, 0.005


def check_pyramid(transformer: ModelMixin, tokenizer: ImageTokenizer) -> MultiScaleVQTokenizer:
    """Refuse a VAR and a tokenizer that do not speak of the same tokens; returns the tokenizer.

    Raises:
        UserError: If the tokenizer has no scales, or codes, scales or channels differ.
    """
    if not isinstance(tokenizer, MultiScaleVQTokenizer):
        raise UserError(f"VAR needs a multi-scale tokenizer (MultiScaleVQTokenizer), got a {type(tokenizer).__name__}")
    for name in ("num_codes", "patch_nums", "latent_channels"):
        ours, theirs = getattr(transformer.config, name), getattr(tokenizer, name)
        if (tuple(ours) if name == "patch_nums" else ours) != theirs:
            raise UserError(f"the transformer has {name}={ours} but the tokenizer has {theirs}")
    return tokenizer


def smooth_temperature(progress: float) -> float:
    """Temperature of the relaxed draw at a scale, ``progress`` = k / (S - 1)."""
    return max(SMOOTH_TEMPERATURE * (1 - SMOOTH_DECAY * progress), SMOOTH_FLOOR)


@dataclass(frozen=True)
class KnownTokens:
    """Tokens that are not drawn but given, for editing.

    Attributes:
        tokens: (B, L) int64 ids of all scales.
        is_known: (B, L) bool, True where the given id is taken.
    """

    tokens: Tensor
    is_known: Tensor


class NextScaleScheduler:
    """One scale per step; a ``generative.core.sampling.SamplingScheduler`` that owns the tokenizer's quantiser.

    The state's sample holds the ids of all scales (B, L), 0 where not reached yet. Its memory holds ``accumulated``, the map
    (B, C, h, w) of the scales so far, and ``inputs``, a list of what the network reads at scales 1, 2, ... (each (B, n_k, C)).

    Args:
        tokenizer: Adds scales to the map and resizes it.
        temperature: Divides the logits.
        top_k: See ``keep_most_probable``.
        top_p: See ``keep_most_probable``.
        more_smooth: Take mixtures of codes, weighted by a relaxed draw, in place of codes: smoother images, for looking at only
            (the paper's scores are without it). The ids are then those of the largest weights.
        known: Tokens that are given; None draws all.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(
        self,
        tokenizer: MultiScaleVQTokenizer,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        more_smooth: bool = False,
        known: KnownTokens | None = None,
    ) -> None:
        check_sampling_options(temperature, top_k, top_p)
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.more_smooth = more_smooth
        self.known = known
        self.offsets = scale_offsets(tokenizer.patch_nums)
        self.num_scales = len(tokenizer.patch_nums)

    def initial_state(self, batch_size: int) -> SampleState:
        """Nothing drawn yet: an empty map, no inputs."""
        sample = torch.zeros(batch_size, self.offsets[-1], dtype=torch.int64, device=self.tokenizer.device)
        return SampleState(sample=sample, memory={"accumulated": self.tokenizer.zero_map(batch_size), "inputs": []})

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> range:
        """Scales 0 to S - 1.

        Raises:
            UserError: If ``num_inference_steps`` is not S.
        """
        if num_inference_steps != self.num_scales:
            raise UserError(f"num_inference_steps must be {self.num_scales}, one for each scale, got {num_inference_steps}")
        return range(self.num_scales)

    def model_input(self, state: SampleState, timestep: int) -> SampleState:
        """The state itself: what the network reads is in its memory already."""
        return state

    def step(self, prediction: Tensor, timestep: int, state: SampleState, noise: ImageNoise) -> SampleState:
        """Draw the tokens of scale ``timestep`` from logits (B, n_k, V) and add them to the map."""
        places = slice(self.offsets[timestep], self.offsets[timestep + 1])
        ids, codes = self.draw(prediction, timestep, noise)  # (B, n_k), (B, n_k, C) or None
        if self.known is not None:
            given, is_known = self.known.tokens[:, places], self.known.is_known[:, places]
            ids = torch.where(is_known, given, ids)
            if codes is not None:
                codes = torch.where(is_known[..., None], self.tokenizer.codebook[given].to(codes.dtype), codes)
        tokens = state.sample.clone()
        tokens[:, places] = ids
        memory = dict(state.memory)
        memory["accumulated"] = self.tokenizer.add_scale(memory["accumulated"], ids if codes is None else codes, timestep)
        if timestep + 1 < self.num_scales:
            memory["inputs"] = [*memory["inputs"], self.tokenizer.next_input(memory["accumulated"], timestep)]
        return SampleState(sample=tokens, memory=memory)

    def draw(self, logits: Tensor, scale: int, noise: ImageNoise) -> tuple[Tensor, Tensor | None]:
        """Draw the tokens of a scale, each image from its own noise.

        Args:
            logits: (B, n_k, V).
            scale: k.
            noise: Gives a uniform number per token, or per token and code where ``more_smooth``.

        Returns:
            (B, n_k) int64 ids, and the mixtures of codes (B, n_k, C) that stand for them where ``more_smooth``.
        """
        _, num_tokens, num_codes = logits.shape
        logits = keep_most_probable(logits.float() / self.temperature, self.top_k, self.top_p)
        if not self.more_smooth:
            uniform = noise.rand(num_tokens)  # (B, n_k)
            ids = invert_cdf(logits.flatten(0, 1), uniform.flatten())
            return ids.unflatten(0, uniform.shape), None
        progress = scale / max(self.num_scales - 1, 1)
        weights = gumbel_softmax(logits * (1 + progress), noise.rand(num_tokens, num_codes), smooth_temperature(progress))
        return weights.argmax(dim=-1), weights @ self.tokenizer.codebook.float()
