"""Options of sampling of GANs."""

from __future__ import annotations

from dataclasses import dataclass

from generative.core.options import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class GANOptions(SamplingOptions):
    """Options of ``GANImagePipeline``.

    Attributes:
        truncation: Threshold (or scale: the pipeline's ``truncation_law`` says which) of a GAN's noise, in standard deviations:
            smaller gives better and less varied images (arXiv 1809.11096, section 3.1). None does not truncate.
    """

    truncation: float | None = None
