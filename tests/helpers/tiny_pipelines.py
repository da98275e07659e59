"""Pipelines that several folders of tests save and sample: random weights, milliseconds."""

from __future__ import annotations

import torch

from generative.gan.sagan import SAGANGenerator
from pipelines import GANImagePipeline


def tiny_gan(num_classes: int = 3) -> GANImagePipeline:
    """A SAGAN of 8x8 pixels without attention, the same at every call."""
    torch.manual_seed(0)
    generator = SAGANGenerator(resolution=8, channels=4, z_dim=4, num_classes=num_classes, attention_resolutions=())
    return GANImagePipeline(generator.eval())
