"""FreeU as an option of sampling, on a real U-Net."""

from __future__ import annotations

import pytest
import torch
from contract import quiet
from test_diffusion import make_pipeline, run
from torch import nn

from generative.core.errors import UserError
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.adm import ADMUNet
from generative.diffusion.samplers.ddim import DDIMSampler
from pipelines.diffusion import DiffusionImagePipeline

FACTORS = (1.2, 1.4, 0.9, 0.2)


@pytest.fixture(scope="module")
def unet() -> DiffusionImagePipeline:
    torch.manual_seed(0)
    network = ADMUNet(
        sample_size=8,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        num_classes=3,
        class_dropout_prob=0.1,
        learn_sigma=False,
    ).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return quiet(DiffusionImagePipeline(network, DDIMSampler(), formulation=GaussianDiffusion()))


def test_free_u_changes_an_image_and_not_what_is_beside_it(unet: DiffusionImagePipeline) -> None:
    plain = run(unet, [0, 1])
    first, second = (run(unet, [0, 1], free_u=FACTORS, free_u_version=version) for version in ("v1", "v2"))
    assert not torch.equal(plain, first) and not torch.equal(first, second)
    assert (run(unet, [1], free_u=list(FACTORS)) - second[1]).abs().max() < 1 / 255
    assert torch.equal(run(unet, [0, 1]), plain), "the network is left as it was"
    assert torch.allclose(run(unet, [0, 1], free_u=(1, 1, 1, 1)), plain, atol=1e-5)


def test_factors_of_another_number_or_kind_are_refused(unet: DiffusionImagePipeline) -> None:
    for factors, message in (
        ((1.2, 1.4), "free_u must be four numbers or none, got"),
        ((1.2, 1.4, 0.9, -1.0), "free_u must be four numbers b1,b2,s1,s2 of 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            run(unet, [0], free_u=factors)
    with pytest.raises(UserError, match="free_u_version must be one of v1, v2"):
        run(unet, [0], free_u=FACTORS, free_u_version="v3")
    with pytest.raises(UserError, match="free_u is for U-Nets with skips, and DiT has none"):
        make_pipeline().check_options(free_u=FACTORS)
