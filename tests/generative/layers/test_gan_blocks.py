"""Residual blocks of GANs: order of operations and initial weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.gan_blocks import DiscriminatorBlock, GANLayers, GeneratorBlock, initialise_weights, plain_conv


class PassThroughNorm(nn.Module):
    """Conditional norm that only multiplies by the condition."""

    def forward(self, sample: Tensor, condition: Tensor) -> Tensor:
        return sample * condition[:, None, None, None]


def test_generator_block_upsamples_before_its_convolutions() -> None:
    torch.manual_seed(0)
    block = GeneratorBlock(3, 2, plain_conv, lambda channels: PassThroughNorm())
    sample, condition = torch.randn(2, 3, 4, 4), torch.tensor([1.0, -2.0])
    hidden = block.conv1(F.interpolate(F.relu(sample * condition[:, None, None, None]), scale_factor=2))
    hidden = block.conv2(F.relu(hidden * condition[:, None, None, None]))
    expected = hidden + block.shortcut(F.interpolate(sample, scale_factor=2))
    torch.testing.assert_close(block(sample, condition), expected)


@pytest.mark.parametrize("preactivation", [True, False])
def test_discriminator_shortcut_sees_the_sample_before_the_relu(preactivation: bool) -> None:
    torch.manual_seed(0)
    block = DiscriminatorBlock(3, 2, plain_conv, preactivation=preactivation)
    sample = torch.randn(2, 3, 4, 4)
    hidden = block.conv2(F.relu(block.conv1(F.relu(sample) if preactivation else sample)))
    expected = F.avg_pool2d(hidden + block.shortcut(sample), 2)
    torch.testing.assert_close(block(sample), expected)


def test_same_width_without_resampling_has_no_shortcut_convolution() -> None:
    block = DiscriminatorBlock(4, 4, plain_conv, downsample=False)
    assert isinstance(block.shortcut, nn.Identity)
    assert DiscriminatorBlock(2, 4, plain_conv, wide=False).conv1.out_channels == 2


def test_initial_weights_follow_their_distributions() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 64))
    initialise_weights(layer, "orthogonal")
    torch.testing.assert_close(layer[0].weight @ layer[0].weight.T, torch.eye(64), rtol=0, atol=1e-5)
    initialise_weights(layer, "normal")
    assert layer[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    initialise_weights(layer, "xavier")
    bound = (6 / 128) ** 0.5
    assert layer[0].weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_every_kind_of_layer_is_drawn_anew_and_biases_at_will() -> None:
    layers = nn.ModuleList([nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(2, 3, 3), nn.Linear(4, 3), nn.Embedding(4, 3)])
    weights = [layer.weight.detach().clone() for layer in layers]
    biases = [layer.bias.detach().clone() for layer in list(layers)[:3]]
    initialise_weights(layers, None, optional=True)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, weights, strict=True))
    initialise_weights(layers, "normal")
    assert not any(torch.equal(layer.weight, weight) for layer, weight in zip(layers, weights, strict=True))
    assert all(torch.equal(layer.bias, bias) for layer, bias in zip(list(layers)[:3], biases, strict=True))
    initialise_weights(layers, "normal", zero_biases=True)
    assert all(bool((layer.bias == 0).all()) for layer in list(layers)[:3])


@pytest.mark.parametrize(
    ("optional", "choices"), [(False, "xavier, orthogonal, normal"), (True, "xavier, orthogonal, normal or null")]
)
def test_an_unknown_initialisation_is_told(optional: bool, choices: str) -> None:
    with pytest.raises(UserError, match=f"weight_init must be one of {choices}, got 'ortho'"):
        initialise_weights(nn.Linear(2, 2), "ortho", optional=optional)


def test_none_is_an_initialisation_only_where_it_is_said() -> None:
    with pytest.raises(UserError, match="weight_init must be one of xavier, orthogonal, normal, got None"):
        initialise_weights(nn.Linear(2, 2), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "norm must be one of batch, instance, none, got 'layer'"),
        ({"moving_variance": "both"}, "moving_variance must be one of unbiased, biased, got 'both'"),
    ],
)
def test_unknown_norms_are_told(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GANLayers(**options)
