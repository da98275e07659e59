"""FastGAN's generator: shapes, noise contract, classes and their mixtures; its numbers are held by tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.gan.fastgan import FastGANGenerator
from generative.layers.batch_norm import BatchNorm2d, recompute_statistics
from generative.layers.fastgan_blocks import NoiseInjection, SkipLayerExcitation
from generative.layers.spectral_norm import SpectralNorm
from generative.layers.stored_spectral_norm import StoredSpectralConv2d, StoredSpectralLinear, StoredSpectralVectorToMap


def build(**changes: Any) -> FastGANGenerator:
    torch.manual_seed(0)
    return FastGANGenerator(**{"image_size": 16, "z_dim": 6, "num_classes": 3, "channels": 4} | changes)


def inputs(network: FastGANGenerator, batch: int = 3) -> tuple[Tensor, Tensor, list[Tensor]]:
    stream = torch.Generator().manual_seed(1)
    noise = [torch.randn((batch, *shape), generator=stream) for shape in network.noise_shapes]
    return torch.randn((batch, network.z_dim), generator=stream), torch.arange(batch) % 3, noise


def settle(network: FastGANGenerator) -> FastGANGenerator:
    """Let the spectral vectors converge and make every noise weight count."""
    z, labels, noise = inputs(network)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, NoiseInjection):
                module.weight.fill_(0.5)
        for _ in range(5):
            network.train()(z, labels, noise)
    return network.eval()


@pytest.mark.parametrize("image_size", [8, 32, 128])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("lite", [False, True])
def test_shapes_of_images_and_of_noise(image_size: int, conditional: bool, lite: bool) -> None:
    network = build(image_size=image_size, conditional=conditional, lite=lite, channels=2).eval()
    z, labels, noise = inputs(network, batch=2)
    sizes = [size for size in (8, 16, 32, 64, 128) if size <= image_size]
    assert network.noise_shapes == (() if lite else tuple((1, size, size) for size in sizes for _ in range(2)))
    assert network(z, labels, noise).shape == (2, 3, image_size, image_size)
    assert len(network.excitations) == sum(size >= 64 for size in sizes)


def test_large_conditional_images_which_the_official_code_cannot_make() -> None:
    network = build(image_size=512, channels=4, lite=True).eval()
    assert network(torch.randn(1, 6), torch.tensor([0])).shape == (1, 3, 512, 512)


def test_noise_is_drawn_from_the_global_generator_or_taken() -> None:
    network = settle(build())
    z, labels, noise = inputs(network)
    given = network(z, labels, noise)
    assert torch.equal(given, network(z, labels, noise))
    for index in range(len(noise)):  # every map matters
        changed = [*noise[:index], noise[index] + 1, *noise[index + 1 :]]
        assert not torch.allclose(given, network(z, labels, changed), atol=1e-4)
    shared = [value[:1] for value in noise]
    torch.testing.assert_close(network(z, labels, shared), network(z, labels, [value.expand(3, -1, -1, -1) for value in shared]))
    torch.manual_seed(7)
    first = network(z, labels)
    torch.manual_seed(7)
    assert torch.equal(first, network(z, labels))
    assert not torch.equal(first, network(z, labels))


def test_noise_starts_without_effect() -> None:
    network = build().eval()
    z, labels, noise = inputs(network)
    torch.testing.assert_close(network(z, labels, noise), network(z, labels, [10 * value for value in noise]), rtol=0, atol=0)


def test_only_the_direction_of_z_matters() -> None:
    network = settle(build())
    z, labels, noise = inputs(network)
    torch.testing.assert_close(network(z, labels, noise), network(3 * z, labels, noise), rtol=1e-4, atol=1e-4)


def test_classes_matter_only_to_a_conditional_generator() -> None:
    for conditional in (True, False):
        network = settle(build(conditional=conditional))
        z, labels, noise = inputs(network)
        same = torch.allclose(network(z, labels, noise), network(z, (labels + 1) % 3, noise), atol=1e-4)
        assert same is not conditional


def test_mixtures_of_classes() -> None:
    network = settle(build())
    z, labels, noise = inputs(network)
    torch.testing.assert_close(network(z, labels, noise), network(z, F.one_hot(labels, 3).float(), noise))
    half = network(z, torch.full((3, 3), 1 / 3), noise)
    assert not torch.allclose(half, network(z, labels, noise), atol=1e-4)


def test_grey_images_repeat_their_channel() -> None:
    network = build(image_channels=1).eval()
    images = network(*inputs(network))
    assert images.shape == (3, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 2])


def test_blocks_share_a_noise_weight_only_where_the_official_ones_do() -> None:
    assert [len(block.injections) for block in build(conditional=True).blocks.values()] == [1, 1]
    assert [len(block.injections) for block in build(conditional=False).blocks.values()] == [2, 2]
    assert [len(block.injections) for block in build(lite=True).blocks.values()] == [0, 0]


def test_standing_statistics_and_gradients_reach_everything() -> None:
    network = build(image_size=64, channels=2)
    assert sum(isinstance(module, BatchNorm2d) for module in network.modules()) == 1 + 2 * 4
    z, labels, noise = inputs(network)
    recompute_statistics(network, lambda: network(z, labels, noise), 2)
    assert all((module.running_var != 1).any() for module in network.modules() if isinstance(module, BatchNorm2d))
    network.train()(z, labels, noise).square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    network = settle(build())
    network.save_pretrained(tmp_path)
    loaded = FastGANGenerator.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(network(*inputs(network)), loaded(*inputs(network)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 48}, "image_size must be one of 8, 16, 32, 64, 128, 256, 512, 1024, got 48"),
        ({"image_size": 4}, "image_size must be one of"),
        ({"image_size": 512, "channels": 3}, "channels=3 leaves no channel at 512 pixels; give at least 4"),
        ({"z_dim": 0}, "z_dim must be at least 1, got 0"),
        ({"image_channels": 4}, "image_channels must be 3, or 1 for grey images, got 4"),
    ],
)
def test_bad_options_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**changes)


def test_noise_of_other_shapes_is_refused() -> None:
    network = build()
    z, labels, noise = inputs(network)
    for wrong in (noise[1:], [], [value[..., 1:] for value in noise]):
        with pytest.raises(UserError, match=r"noise must hold maps of shapes \[\(1, 8, 8\)"):
            network(z, labels, wrong)


@pytest.mark.parametrize("training", [True, False])
def test_layers_normalise_as_torch_does(training: bool) -> None:
    """The transposed convolution over its output axis; the oracle is torch's own hook, which Projected GAN trained with."""
    torch.manual_seed(0)
    pairs: list[tuple[nn.Module, nn.Module, Tensor]] = [
        (StoredSpectralConv2d(4, 6, 4, 2, 1, groups=2, bias=True), nn.Conv2d(4, 6, 4, 2, 1, groups=2), torch.randn(2, 4, 8, 8)),
        (StoredSpectralLinear(5, 3), nn.Linear(5, 3), torch.randn(2, 5)),
        (StoredSpectralVectorToMap(5, 3), nn.ConvTranspose2d(5, 3, 4, bias=False), torch.randn(2, 5)),
    ]
    for ours, plain, sample in pairs:
        plain.load_state_dict({name: value for name, value in ours.state_dict().items() if "spectral" not in name})
        theirs = nn.utils.spectral_norm(plain)
        norm = ours.get_submodule("spectral_norm")
        assert isinstance(norm, SpectralNorm) and norm.v is not None
        theirs.weight_u.copy_(norm.u[0])
        theirs.weight_v.copy_(norm.v[0])
        expected = theirs.train(training)(sample[:, :, None, None] if isinstance(plain, nn.ConvTranspose2d) else sample)
        torch.testing.assert_close(ours.train(training)(sample), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.u[0], theirs.weight_u)
        torch.testing.assert_close(norm.v[0], theirs.weight_v)


def test_excitation_scales_channels_between_zero_and_one() -> None:
    torch.manual_seed(0)
    block = SkipLayerExcitation(3, 5)
    large = torch.rand(2, 5, 16, 16) + 1
    ratio = block(torch.randn(2, 3, 4, 4), large) / large
    assert ((ratio > 0) & (ratio < 1)).all()
    torch.testing.assert_close(ratio, ratio.mean((2, 3), keepdim=True).expand_as(ratio))
