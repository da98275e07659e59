"""Runs of EDM's networks, sampled from the command line's pipeline: by Heun's method, with churn where it is asked for."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from generative.diffusion.formulations.edm import EDM
from generative.diffusion.networks.dhariwal_unet import DhariwalUNet
from generative.diffusion.networks.edm_unet import EDMUNet
from generative.diffusion.networks.song_unet import SongUNet
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.samplers.heun import HeunSampler
from pipelines.diffusion import DiffusionImagePipeline

CHURN = {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "noise_scale": 1.003}


def make_pipeline(network_class: type[EDMUNet], sampler: HeunSampler | None) -> DiffusionImagePipeline:
    """The pipeline of a run whose weights are random."""
    torch.manual_seed(0)
    small = {"sample_size": 8, "num_classes": 3, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
    network = network_class(**small, attn_resolutions=(4,))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    objective = DiffusionObjective(network, EDM(), partial(torch.optim.Adam, lr=1e-3), sampler=sampler)
    return objective.pipeline({"denoiser": network.eval()})


def draw(pipeline: DiffusionImagePipeline, seeds: list[int]) -> Tensor:
    """Images of class 1, one a seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline([1] * len(seeds), num_inference_steps=6, generator=generators, output_type="pt").images.float()


@pytest.mark.parametrize("network_class", [SongUNet, DhariwalUNet])
def test_a_seed_makes_the_same_image_in_any_batch(network_class: type[EDMUNet]) -> None:
    plain = make_pipeline(network_class, None)
    churned = make_pipeline(network_class, HeunSampler(**CHURN))
    assert isinstance(plain.scheduler, HeunSampler) and churned.scheduler.config.churn == 40
    for pipeline in (plain, churned):
        together = draw(pipeline, [3, 4, 5])
        for place, seed in enumerate((3, 4, 5)):
            torch.testing.assert_close(draw(pipeline, [seed])[0], together[place], rtol=0, atol=1e-3)
    assert not torch.allclose(draw(plain, [3]), draw(churned, [3]), atol=0.01)
