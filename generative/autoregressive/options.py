"""Options of sampling of token models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from generative.core.options import GuidanceInterval, GuidanceSchedule, SamplingOptions

SolverName = Literal["dpm-solver", "ddpm"]


@dataclass(frozen=True, kw_only=True)
class GuidedOptions(SamplingOptions):
    """Guidance of token models.

    Attributes:
        guidance_scale: Classifier-free guidance s in u + s (c - u); 1 is none and costs half as much. Of VAR it is the scale at
            the last scale, the official cfg plus 1.
        guidance_schedule: How guidance grows from 1 to its scale over a token model's sequence, scales or steps.
    """

    guidance_scale: float = 1.0
    guidance_schedule: GuidanceSchedule = "constant"


@dataclass(frozen=True, kw_only=True)
class TokenOptions(GuidedOptions):
    """Options of models of discrete tokens.

    Attributes:
        guidance_interval: Guide only where low < noise level <= high, the noise level of a token model being the share of its
            sequence, scales or steps that is still to come: 1 at the start.
        temperature: Divides the logits of a token model; below 1 gives more typical, less diverse images.
        top_k: Draw from so many of the most probable tokens; none for all.
        top_p: Draw from the most probable tokens that make up this share of the probability.
    """

    guidance_interval: GuidanceInterval | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0


@dataclass(frozen=True, kw_only=True)
class NextTokenOptions(TokenOptions):
    """Options of ``AutoregressiveImagePipeline``.

    Attributes:
        guidance_exponent: Power of the schedule power_cosine; above 1 guidance comes later.
        output_size: Side to which the images are brought by bicubic interpolation, in pixels (LlamaGen makes 384 and is scored at
            256); none for the tokenizer's.
    """

    guidance_exponent: float = 1.0
    output_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class SubTokenOptions(SamplingOptions):
    """Options of ``MAGVIT2Pipeline``: some are one number for all sub-tokens, or one for each.

    Attributes:
        guidance_scale: Classifier-free guidance s in u + s (c - u), one number or one for each sub-token; 1 is none.
        guidance_schedule: How guidance grows from 1 to its scale over the positions.
        guidance_interval: Guide only where low < noise level <= high, the noise level of a token model being the share of its
            sequence, scales or steps that is still to come: 1 at the start.
        guidance_exponent: Power of the schedule power_cosine; above 1 guidance comes later.
        temperature: Divides the logits, one number or one for each sub-token, as the next two.
        top_k: Draw from so many of the most probable sub-tokens; none for all.
        top_p: Draw from the most probable sub-tokens that make up this share of the probability.
    """

    guidance_scale: float | Sequence[float] = 1.0
    guidance_schedule: GuidanceSchedule = "constant"
    guidance_interval: GuidanceInterval | None = None
    guidance_exponent: float = 1.0
    temperature: float | Sequence[float] = 1.0
    top_k: int | Sequence[int | None] | None = None
    top_p: float | Sequence[float] = 1.0


@dataclass(frozen=True, kw_only=True)
class VAROptions(TokenOptions):
    """Options of ``VARPipeline``; the paper's scores: guidance 2.5, top-k 900 of 4,096, top-p 0.96.

    Attributes:
        more_smooth: Mix codes by a relaxed draw: smoother images, for looking at only (VAR).
    """

    guidance_schedule: GuidanceSchedule = "linear"
    more_smooth: bool = False


@dataclass(frozen=True, kw_only=True)
class MaskGITOptions(TokenOptions):
    """Options of ``MaskGITPipeline``.

    Attributes:
        num_inference_steps: Iterations, 1 to the number of tokens; the paper's 8 (256 pixels) or 12 (512).
        choice_temperature: Randomness of which tokens an iteration keeps, falling to 0 at the last; 0 keeps the surest.
        guidance_exponent: Power of the schedule power_cosine; above 1 guidance comes later.
    """

    num_inference_steps: int = 8
    choice_temperature: float = 4.5
    guidance_exponent: float = 1.0

    def step_scale(self) -> float | Callable[[int], float]:
        """Guidance scale of each iteration, checked; see ``step_guidance``."""
        from generative.core.guidance import step_guidance  # it brings torch, and help is to answer without

        steps, interval = self.num_inference_steps, self.guidance_interval
        return step_guidance(self.guidance_scale, steps, self.guidance_schedule, interval, self.guidance_exponent)


@dataclass(frozen=True, kw_only=True)
class MAGEOptions(MaskGITOptions):
    """Options of ``MAGEPipeline``; the published scores: 20 iterations, choice temperature 6 (B) or 11 (L).

    Attributes:
        num_inference_steps: Iterations, 1 to the number of tokens.
        choice_temperature: Randomness of which tokens an iteration keeps, falling to 0 at the last; 0 keeps the surest.
        guidance_scale: Classifier-free guidance s in u + s (c - u), away from the null representation or class; 1 is none. The
            official cfg plus 1.
        guidance_schedule: How guidance grows; linear reaches its scale at the last iteration and begins above 1, as officially.
        representation_num_inference_steps: Steps of the representation diffusion; none is as it was saved.
        representation_guidance_scale: Classifier-free guidance of the representation diffusion, as guidance_scale.
        representation_sampler: Sampler of the representation diffusion by name, such as ldm-ddim:eta=0; none is as it was saved.
    """

    num_inference_steps: int = 20
    choice_temperature: float = 6.0
    guidance_schedule: GuidanceSchedule = "linear"
    representation_num_inference_steps: int | None = None
    representation_guidance_scale: float | None = None
    representation_sampler: str | None = None

    def step_scale(self) -> float | Callable[[int], float]:
        """Guidance scale of each iteration, checked; the progress of iteration k of N is (k + 1) / N."""
        from generative.core.guidance import check_guidance, scale_at

        scale, schedule, interval, exponent = (
            self.guidance_scale,
            self.guidance_schedule,
            self.guidance_interval,
            self.guidance_exponent,
        )
        check_guidance(scale, schedule, interval, exponent)
        if scale == 1:
            return 1.0
        steps = self.num_inference_steps
        return lambda step: scale_at(scale, (step + 1) / steps, schedule, interval, exponent, (steps - step) / steps)


@dataclass(frozen=True, kw_only=True)
class ResGenOptions(MaskGITOptions):
    """Options of ``ResGenPipeline``: those of Gaussians where others have tokens; temperature widens them too.

    Attributes:
        num_inference_steps: Iterations, 1 to the number of codes of an image.
    """

    num_inference_steps: int = 16
    choice_temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class MAROptions(GuidedOptions):
    """Options of ``MARPipeline``.

    Attributes:
        num_inference_steps: Iterations, at each of which a set of tokens is drawn at once; one per token at most is useful.
        num_diffusion_steps: Steps of the head that draws a continuous token, spread evenly over its 1,000; or the timesteps,
            ascending.
        temperature: Factor on the noise of the head's steps; published: 1 with guidance, 0.95 without.
    """

    guidance_schedule: GuidanceSchedule = "linear"
    num_inference_steps: int = 64
    num_diffusion_steps: int | Sequence[int] = 100
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EMIGMOptions(GuidedOptions):
    """Options of ``EMIGMPipeline``.

    Attributes:
        guidance_interval: Guide only where low < noise level <= high, the noise level being the time at which an iteration ends:
            1 where all is masked. Others cost half as much.
        num_inference_steps: Iterations, at each of which some tokens are drawn at once.
        num_diffusion_steps: Evaluations of the head that draws a continuous token; with ddpm also the timesteps, ascending.
        solver: Sampler of that head: DPM-Solver++ (singlestep, order 3), or ancestral with learned variance.
        temperature: Factor on the noise of ddpm's steps.
        mask_strategy: Schedule by which tokens become known (exp, cosine, linear, log, poly-X); none for the one it was trained
            with.
    """

    guidance_interval: GuidanceInterval | None = None
    num_inference_steps: int = 16
    num_diffusion_steps: int | Sequence[int] = 8
    solver: SolverName = "dpm-solver"
    temperature: float = 1.0
    mask_strategy: str | None = None
