"""From logits to tokens: temperature, top-k, top-p, draws from per-image noise, and the scheduler of raster order.

What is decoded by confidence (MaskGIT) is in ``generative.autoregressive.masked.parallel_decoding``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise


def check_sampling_options(temperature: float, top_k: int | None, top_p: float) -> None:
    """Refuse options outside their range.

    Raises:
        UserError: If temperature is not positive and finite, top_k is below 1, or top_p is outside (0, 1].
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UserError(f"temperature must be a positive number, got {temperature}; use top_k=1 for the most probable token")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}; leave it out (None) to keep every token")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be in (0, 1], got {top_p}; 1 keeps every token")


def sort_values(values: Tensor) -> Tensor:
    """Values (N, V) in ascending order along the rows, without gradients.

    On a CPU by numpy, whose vectorised sort takes 3 ms for 2,048 rows of 1,024 float32 where torch's takes 120 and its topk of
    900 takes 89 (one core of an AMD EPYC with AVX-512).
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))
    return values.sort(dim=-1).values


def keep_most_probable(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Rule out all but the ``top_k`` most probable tokens, then all but the nucleus of those (arXiv 1805.04833, 1904.09751).

    Ties stay: a token as probable as the last one kept is kept too, whatever its place in the codebook.

    Args:
        logits: (..., V) float32 or float64.
        top_k: At least 1; None, or V and more, for all.
        top_p: In (0, 1]; the fewest most probable tokens that sum to at least this are kept, one at least.

    Returns:
        (..., V), -inf where ruled out.
    """
    num_codes = logits.shape[-1]
    first = max(num_codes - top_k, 0) if top_k is not None else 0  # of those kept, in ascending order
    if first == 0 and top_p >= 1:
        return logits
    kept = sort_values(logits.flatten(0, -2))[:, first:]  # (N, K)
    place = torch.zeros(len(kept), 1, dtype=torch.int64, device=kept.device)
    if top_p < 1:
        up_to = kept.softmax(dim=-1).cumsum(dim=-1)  # (N, K) probability of a token and all less probable ones
        # A rounded sum may lie below 1 at the end too: the last, most probable one always stays.
        place = (up_to[:, :-1] <= 1 - top_p).sum(dim=-1, keepdim=True)  # (N, 1)
    least = kept.gather(1, place).view(*logits.shape[:-1], 1)
    return logits.masked_fill(logits < least, -torch.inf)


def invert_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution.

    Unlike ``torch.multinomial`` this takes each image's own random number, so an image does not depend on its neighbours.

    Args:
        logits: (B, V), -inf for tokens that must not be drawn.
        uniform: (B,) in [0, 1).

    Returns:
        (B,) int64; a token of probability 0 is never drawn.
    """
    device = logits.device
    if device.type == "mps":  # has no float64
        logits, uniform = logits.cpu(), uniform.cpu()
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)  # (B, V); float64, so that the last entries stay apart
    threshold = uniform.double()[:, None] * cumulative[:, -1:]  # below the last entry, whatever it sums to
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].to(device)  # (B,)


def sample_tokens(
    logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """Draw one token per row: temperature, then top-k, then top-p, then the draw.

    Args:
        logits: (B, V), any float dtype.
        uniform: (B,) in [0, 1), one number per image.
        temperature: Divides the logits; below 1 sharpens.
        top_k: Keep so many of the most probable tokens; None for all.
        top_p: Keep the nucleus of this mass.

    Returns:
        (B,) int64.
    """
    device = logits.device
    if device.type == "mps":  # has no float64, which the draw needs
        logits, uniform = logits.cpu(), uniform.cpu()
    return invert_cdf(keep_most_probable(logits.double() / temperature, top_k, top_p), uniform).to(device)


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Standard Gumbel numbers, -log(-log u) (arXiv 1611.01144, eq. 1), from uniform ones.

    Args:
        uniform: (...) in [0, 1), for example of ``ImageNoise.rand``; 0 is taken for the smallest positive number.

    Returns:
        (...) of the same dtype, finite.
    """
    finfo = torch.finfo(uniform.dtype)
    # -log u is clamped too: next to 1, u may round to 1 in a 16-bit dtype.
    return -(-uniform.clamp(min=finfo.tiny).log()).clamp(min=finfo.tiny).log()


def gumbel_softmax(logits: Tensor, uniform: Tensor, tau: float) -> Tensor:
    """A relaxed draw: softmax((logits + Gumbel noise) / tau) (arXiv 1611.01144, eq. 2); its limit at tau 0 is one-hot.

    VAR's "more smooth" sampling mixes code vectors with these weights.

    Args:
        logits: (..., V), -inf where ruled out.
        uniform: (..., V) in [0, 1), each image's rows from its own noise.
        tau: Above 0.

    Returns:
        (..., V) weights that sum to 1.

    Raises:
        UserError: If ``tau`` is not a positive number.
    """
    if not (tau > 0 and math.isfinite(tau)):
        raise UserError(f"tau of the relaxed draw must be a positive number, got {tau}")
    return ((logits + gumbel_noise(uniform)) / tau).softmax(dim=-1)


class RasterScheduler:
    """One token per step, in raster order; a ``generative.core.sampling.SamplingScheduler``.

    The state's sample is the token map (B, L); positions not reached yet hold 0.

    Args:
        num_tokens: L.
        temperature: See ``sample_tokens``.
        top_k: See ``sample_tokens``.
        top_p: See ``sample_tokens``.
    """

    def __init__(self, num_tokens: int, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> None:
        check_sampling_options(temperature, top_k, top_p)
        self.num_tokens = num_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> range:
        """Positions 0 to L - 1.

        Raises:
            UserError: If ``num_inference_steps`` is not L.
        """
        if num_inference_steps != self.num_tokens:
            raise UserError(f"num_inference_steps must be {self.num_tokens}, one for each token, got {num_inference_steps}")
        return range(self.num_tokens)

    def model_input(self, state: SampleState, timestep: int) -> SampleState:
        """The state itself: tokens need no scaling."""
        return state

    def step(self, prediction: Tensor, timestep: int, state: SampleState, noise: ImageNoise) -> SampleState:
        """Draw the token at position ``timestep`` from logits (B, V) with one uniform number per image."""
        token = sample_tokens(prediction, noise.rand(), self.temperature, self.top_k, self.top_p)  # (B,)
        tokens = state.sample.clone()
        tokens[:, timestep] = token
        return SampleState(sample=tokens, memory=state.memory)
