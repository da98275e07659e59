"""Options of sampling of diffusion models and flows."""

from __future__ import annotations

from dataclasses import dataclass

from generative.core.options import GuidanceInterval, SamplingOptions


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(SamplingOptions):
    """Options of ``DiffusionImagePipeline``.

    Attributes:
        num_inference_steps: Steps asked of the sampler.
        guidance_scale: Classifier-free guidance s in u + s (c - u); 1 is none and costs half as much.
        guidance_interval: Guide only where low < noise level <= high, 0 being clean data and 1 pure noise (timestep / T of a
            diffusion, sigma of a flow), so that 0,1 is everywhere, as none is.
        guidance_channels: Guide only the first so many channels; 3 is DiT's published sampler on its 4 latent channels. None
            guides all (never the variance values).
    """

    num_inference_steps: int = 50
    guidance_scale: float = 1.0
    guidance_interval: GuidanceInterval | None = None
    guidance_channels: int | None = None
