"""Pipelines that several folders of tests save and sample: random weights, milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.dit import DiT
from generative.diffusion.samplers.ode import ODESampler
from generative.gan.sagan import SAGANGenerator
from pipelines import DiffusionImagePipeline, GANImagePipeline


def tiny_gan(num_classes: int = 3) -> GANImagePipeline:
    """A SAGAN of 8x8 pixels without attention, the same at every call."""
    torch.manual_seed(0)
    generator = SAGANGenerator(resolution=8, channels=4, z_dim=4, num_classes=num_classes, attention_resolutions=())
    return GANImagePipeline(generator.eval())


def save_tiny_dit(
    folder: Path, seed: int = 0, formulation: Formulation | None = None, autoencoder: Any = None, **options: Any
) -> Path:
    """Save the pipeline of a DiT of 3 classes, all of whose weights are random, and return its folder.

    Args:
        folder: Where to.
        seed: Of the weights.
        formulation: None for a flow that tells times from 0 to 1000.
        autoencoder: Of the pipeline.
        **options: Of the network.
    """
    torch.manual_seed(seed)
    arguments = {"sample_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 8, "depth": 1, "num_heads": 2}
    network = DiT(**(arguments | {"num_classes": 3} | options)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    formulation = formulation or Interpolant(time_scale=1000.0)
    DiffusionImagePipeline(network, ODESampler(), autoencoder, formulation=formulation).save_pretrained(folder)
    return folder
