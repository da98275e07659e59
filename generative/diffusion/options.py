"""Options of sampling of diffusion models and flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from generative.core.options import GuidanceInterval, GuidanceSchedule, SamplingOptions

GuidanceRuleName = Literal["plain", "apg", "zero-star"]
GuideCondition = Literal["class", "null"]
FreeUVersion = Literal["v1", "v2"]
FreeUFactors = tuple[float, float, float, float]
"""``(b1, b2, s1, s2)``; see ``generative.diffusion.free_u.FreeU``."""


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(SamplingOptions):
    """Options of ``DiffusionImagePipeline``.

    Guidance composes: away from the null condition (``guidance_``), away from the pipeline's guide (``guide_``) and towards the
    class of its classifier (``classifier_``), each with a scale and an interval of its own.

    Attributes:
        num_inference_steps: Steps asked of the sampler.
        size: WIDTHxHEIGHT of the images in pixels, 320x192 being 320 wide and 192 high; also sizes never trained on, of networks
            for images of any size (FiT). None makes the network's own, and others take no other.
        guidance_scale: Classifier-free guidance s in u + s (c - u); 1 is none and costs half as much.
        guidance_interval: Guide only where low < noise level <= high, 0 being clean data and 1 pure noise (timestep / T of a
            diffusion, sigma of a flow, sigma / (1 + sigma) of EDM, whose papers give sigma: 0.19,1.61 is 0.16,0.617 here), so
            that 0,1 is everywhere, as none is.
        guidance_schedule: How the scales of classifier-free guidance and of the guide grow from 1 over 1 - noise level.
        guidance_exponent: Power of the schedule power_cosine; above 1 guidance comes later (falling_power_cosine: goes sooner).
        guidance_channels: Guide only the first so many channels; 3 is DiT's published sampler on its 4 latent channels. None
            guides all (never the variance values).
        guidance_rule: How predictions are combined, of classifier-free guidance and of the guide: plain, u + s (c - u); apg,
            adaptive projected guidance for large scales; zero-star, CFG-Zero* for flows.
        apg_parallel: Share that apg keeps of the part of guidance along the predicted data, which saturates colours; 1 keeps all.
        apg_threshold: Norm over an image above which apg shortens guidance; none shortens nothing.
        apg_momentum: Factor in (-1, 1) on the sum of earlier guidance that apg adds; negative in the paper, 0 is none.
        zero_init: Share of the noise levels, from pure noise on, at which zero-star keeps the velocity at 0; K of N steps: K/N.
        guide_scale: Guidance s away from the pipeline's guide, a weaker network (autoguidance, self-improvement): adds
            (s - 1) (c - guide); 1 is none and does not run it.
        guide_interval: Noise levels at which the guide acts, as guidance_interval.
        guide_condition: What the guide is told: the class, or null for its null condition.
        classifier_scale: Factor on the gradient of the pipeline's noised classifier; 0 is none and does not run it.
        classifier_interval: Noise levels at which the classifier acts, as guidance_interval.
        free_u: FreeU's factors b1,b2,s1,s2 on the two deepest widths of a U-Net's decoder, for example 1.2,1.4,0.9,0.2: b scales
            half of the decoder's features, s the low frequencies of the skips; none leaves the network alone. Not on a guide.
        free_u_version: v1 scales features by b, v2 as far as their mean stands out.
        sampler: Another sampler than the pipeline's, by name, with options after a colon: ancestral, ddim:eta=0.5,
            ldm-ddim:eta=1, heun:churn=40, ode:method=midpoint, dopri5:rtol=1e-4, sde:form=sigma, dpm-solver:order=2,
            gamma:method=ddim, or a scheduler of diffusers, UniPCMultistepScheduler:solver_order=3. `generative list
            samplers` tells all options; none takes the pipeline's.
    """

    num_inference_steps: int = 50
    size: str | None = None
    guidance_scale: float = 1.0
    guidance_interval: GuidanceInterval | None = None
    guidance_schedule: GuidanceSchedule = "constant"
    guidance_exponent: float = 1.0
    guidance_channels: int | None = None
    guidance_rule: GuidanceRuleName = "plain"
    apg_parallel: float = 0.0
    apg_threshold: float | None = None
    apg_momentum: float = 0.0
    zero_init: float = 0.0
    guide_scale: float = 1.0
    guide_interval: GuidanceInterval | None = None
    guide_condition: GuideCondition = "class"
    classifier_scale: float = 0.0
    classifier_interval: GuidanceInterval | None = None
    free_u: FreeUFactors | None = None
    free_u_version: FreeUVersion = "v2"
    sampler: str | None = None


@dataclass(frozen=True, kw_only=True)
class CascadeOptions(DiffusionOptions):
    """Options of ``CascadePipeline``: those of its base, and the upsampler's own; None is as that was saved.

    Attributes:
        upsampler_num_inference_steps: Steps asked of the upsampler's sampler.
        upsampler_guidance_scale: Classifier-free guidance of the upsampler, as guidance_scale.
        upsampler_guidance_interval: Noise levels at which the upsampler is guided, as guidance_interval.
        upsampler_sampler: Sampler of the upsampler by name, as sampler.
    """

    upsampler_num_inference_steps: int | None = None
    upsampler_guidance_scale: float | None = None
    upsampler_guidance_interval: GuidanceInterval | None = None
    upsampler_sampler: str | None = None


@dataclass(frozen=True, kw_only=True)
class RCGOptions(DiffusionOptions):
    """Options of ``RCGPipeline``: those of its denoiser, and some of its representation diffusion; None is as that was saved.

    Attributes:
        representation_num_inference_steps: Steps of the representation diffusion; none is as it was saved.
        representation_guidance_scale: Classifier-free guidance of the representation diffusion, as guidance_scale.
        representation_sampler: Sampler of the representation diffusion by name, such as ldm-ddim:eta=0; none is as it was saved.
    """

    representation_num_inference_steps: int | None = None
    representation_guidance_scale: float | None = None
    representation_sampler: str | None = None
