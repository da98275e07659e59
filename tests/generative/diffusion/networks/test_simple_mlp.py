"""RCG's network of representations, the sampler of its code, and representations in the place of classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.simple_mlp import SimpleMLP
from generative.diffusion.samplers.ldm_ddim import LDMDDIMSampler, ldm_timesteps


def make(**options: Any) -> SimpleMLP:
    torch.manual_seed(0)
    network = SimpleMLP(**({"in_channels": 6, "hidden_size": 16, "bottleneck_size": 12, "depth": 2} | options)).eval()
    for parameter in network.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    return network


def sample() -> Tensor:
    return torch.randn(3, 6, 1, 1, generator=torch.Generator().manual_seed(0))


def test_it_begins_at_zero_and_keeps_the_shape() -> None:
    fresh = SimpleMLP(6, 16, 12, 2)
    assert not fresh(sample(), torch.tensor([1, 2, 3])).prediction.any()
    assert make()(sample(), torch.tensor(5)).prediction.shape == (3, 6, 1, 1)


def test_time_and_class_matter_where_they_should() -> None:
    network, times = make(num_classes=3, class_conditional=True, class_dropout_prob=0.1), torch.tensor([1, 1, 1])
    one = network(sample(), times, torch.tensor([0, 0, 0])).prediction
    assert (network(sample(), times + 500, torch.tensor([0, 0, 0])).prediction - one).abs().max() > 1e-3
    assert (network(sample(), times, torch.tensor([1, 2, 1])).prediction - one).abs().max() > 1e-3
    assert torch.equal(network(sample(), times).prediction, network(sample(), times, torch.tensor([3, 3, 3])).prediction)
    without = make(num_classes=3)
    assert without.null_label is None and not without.label_embedding.weight.requires_grad
    assert torch.equal(without(sample(), times).prediction, without(sample(), times, torch.tensor([2, 0, 1])).prediction)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = make()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(sample(), torch.tensor([1, 2, 3])).prediction.square().mean().backward()
        gradients.append(network.input.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_wrong_input_is_refused() -> None:
    with pytest.raises(UserError, match=r"SimpleMLP takes representations \(B, 6, 1, 1\), got \(3, 7, 1, 1\)"):
        make()(torch.zeros(3, 7, 1, 1), torch.tensor(0))
    with pytest.raises(UserError, match="no null condition"):
        make(num_classes=3, class_conditional=True)(sample(), torch.tensor(0))
    with pytest.raises(UserError, match="depth must be"):
        make(depth=0)


def test_steps_of_the_sampler() -> None:
    assert ldm_timesteps(1000, 250)[:3] == [1, 5, 9] and ldm_timesteps(1000, 250)[-1] == 997
    assert len(ldm_timesteps(1000, 7)) == 8  # 1,000 is no multiple of 7: officially a step more
    for count, sentence in ((0, r"in 1\.\.1000, got 0"), (1000, "beyond the chain"), (300, "beyond the chain")):
        with pytest.raises(UserError, match=sentence):
            ldm_timesteps(1000, count)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_exact_denoiser_brings_back_the_data(eta: float) -> None:
    formulation = GaussianDiffusion(1000, "scaled_linear", 0.0015, 0.0195, prediction_type="sample")
    data = sample()
    noise = ImageNoise([torch.Generator().manual_seed(seed) for seed in range(3)])
    sampler = LDMDDIMSampler(eta=eta)
    end = sampler.sample(lambda state, time: DenoiserOutput(data), SampleState(noise.randn(6, 1, 1)), 50, noise, formulation)
    deviation = (1 - formulation.process.alphas_cumprod[0]).sqrt().item()  # the noise of step 0 stays
    assert 0 < (end.sample - data).abs().max() < 5 * deviation + 0.01
