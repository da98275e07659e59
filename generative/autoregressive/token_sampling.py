"""From logits to tokens: temperature, top-k, top-p, draws from per-image noise, guidance schedules, and the scheduler of raster
order. What is decoded by confidence (MaskGIT) is in ``generative.autoregressive.masked.parallel_decoding``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState, is_interval
from generative.core.seeding import ImageNoise

GuidanceSchedule = Literal["constant", "linear", "cosine"]
GUIDANCE_SCHEDULES: tuple[GuidanceSchedule, ...] = ("constant", "linear", "cosine")


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


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Rule out all but the ``top_k`` most probable tokens (arXiv 1805.04833); ties with the last one kept stay.

    Args:
        logits: (..., V).
        top_k: At least 1; V or more keeps all.

    Returns:
        (..., V), -inf where ruled out.
    """
    if top_k >= logits.shape[-1]:
        return logits
    least = logits.topk(top_k, dim=-1).values[..., -1:]  # (..., 1)
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Rule out all but the nucleus: the fewest most probable tokens that sum to at least ``top_p`` (arXiv 1904.09751).

    Args:
        logits: (..., V).
        top_p: In (0, 1]; 1 keeps all. At least one token is always kept.

    Returns:
        (..., V), -inf where ruled out.
    """
    if top_p >= 1:
        return logits
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)  # (..., V)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    outside = (mass_before >= top_p).scatter(-1, order, mass_before >= top_p)  # back to the order of the codes
    return logits.masked_fill(outside, -math.inf)


def invert_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution.

    Unlike ``torch.multinomial`` this takes each image's own random number, so an image does not depend on its neighbours.

    Args:
        logits: (B, V), -inf for tokens that must not be drawn.
        uniform: (B,) in [0, 1).

    Returns:
        (B,) int64; a token of probability 0 is never drawn.
    """
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)  # (B, V); float64, so that the last entries stay apart
    threshold = uniform.double()[:, None] * cumulative[:, -1:]  # below the last entry, whatever it sums to
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]  # (B,)


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
    logits = logits.double() / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    return invert_cdf(keep_top_p(logits, top_p), uniform).to(device)


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


def gumbel_sample(logits: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw from softmax(logits / temperature) as the argmax of logits / temperature + Gumbel noise (Gumbel-max trick).

    ``sample_tokens`` draws from the same distribution with one number per token rather than V; this one needs no sort, no sum
    and no float64.

    Args:
        logits: (..., V), -inf where ruled out.
        uniform: (..., V) in [0, 1), each image's rows from its own noise.
        temperature: 0 takes the most probable.

    Returns:
        (...) int64.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    return (logits / temperature + gumbel_noise(uniform)).argmax(dim=-1)


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


def check_guidance(
    guidance_scale: float,
    kind: GuidanceSchedule = "constant",
    interval: tuple[float, float] | None = None,
    exponent: float = 1.0,
) -> None:
    """Refuse guidance options outside their range.

    Raises:
        UserError: If the scale is negative or not finite, the kind is not known, the interval is not within
            0 <= start < stop <= 1, or the exponent is not positive.
    """
    if not (guidance_scale >= 0 and math.isfinite(guidance_scale)):
        raise UserError(f"guidance_scale must be 0 or more, got {guidance_scale}; 1 is no guidance")
    if kind not in GUIDANCE_SCHEDULES:
        raise UserError(f"guidance_schedule must be constant, linear or cosine, got {kind!r}")
    if interval is not None and (not is_interval(interval) or interval[0] == interval[1]):
        raise UserError(f"guidance_interval must be two numbers with 0 <= start < stop <= 1, got {interval!r}")
    if not (exponent > 0 and math.isfinite(exponent)):
        raise UserError(f"guidance_exponent must be a positive number, got {exponent}")


def guidance_schedule(
    kind: GuidanceSchedule,
    scale: float,
    progress: float,
    exponent: float = 1.0,
    interval: tuple[float, float] | None = None,
) -> float:
    """Guidance scale at one moment of sampling, in the convention u + s (c - u).

    ``constant`` is s. The ramps start without guidance, where little is decided yet and guidance costs most diversity:
    ``linear`` is 1 + (s - 1) p (Muse, arXiv 2301.00704; MAR, 2406.11838; VAR over its scales, 2404.02905, whose t gives
    s = 1 + t), ``cosine`` is 1 + (s - 1) (1 - cos(pi p^a)) / 2, the power-cosine ramp of MDTv2 (arXiv 2303.14389).

    Args:
        kind: ``constant``, ``linear`` or ``cosine``.
        scale: s at the end; 1 is no guidance.
        progress: p in [0, 1], the share of the sequence or of the steps that is done.
        exponent: a of ``cosine``; above 1 guidance comes later.
        interval: ``(start, stop)``: no guidance (1) unless start <= p < stop, or p = stop = 1 (arXiv 2404.07724). None for all.

    Raises:
        UserError: If an argument is out of range, see ``check_guidance``.
    """
    check_guidance(scale, kind, interval, exponent)
    if not 0 <= progress <= 1:
        raise UserError(f"progress must be in [0, 1], got {progress}")
    start, stop = interval or (0.0, 1.0)
    if not (start <= progress < stop or progress == stop == 1):
        return 1.0
    if kind == "constant":
        return float(scale)
    share = progress if kind == "linear" else (1 - math.cos(math.pi * progress**exponent)) / 2
    return 1 + (scale - 1) * share


def position_guidance(
    guidance_scale: float,
    num_tokens: int,
    kind: GuidanceSchedule = "constant",
    interval: tuple[float, float] | None = None,
    exponent: float = 1.0,
) -> float | Callable[[int], float]:
    """Guidance scale at each position or step, as ``classifier_free_guidance`` takes it.

    Args:
        guidance_scale: s; 1 is no guidance.
        num_tokens: L, or the number of steps.
        kind: See ``guidance_schedule``; the ramps go from 1 at the first position to s at the last.
        interval: ``(start, stop)``: guide only positions i with ``start <= i / L < stop`` (arXiv 2404.07724 for diffusion;
            LlamaGen's cfg_interval). None guides all.
        exponent: See ``guidance_schedule``.

    Returns:
        A number if it is the same everywhere, else a function of the position.

    Raises:
        UserError: If an argument is out of range, see ``check_guidance``.
    """
    check_guidance(guidance_scale, kind, interval, exponent)
    start, stop = interval or (0.0, 1.0)
    if guidance_scale == 1 or (kind == "constant" and (start, stop) == (0.0, 1.0)):
        return float(guidance_scale)

    def scale_at(position: int) -> float:
        if not start <= position / num_tokens < stop:
            return 1.0
        return guidance_schedule(kind, guidance_scale, position / max(num_tokens - 1, 1), exponent)

    return scale_at


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
