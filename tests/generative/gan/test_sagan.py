"""SAGAN networks: shapes, sizes, options, errors, saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from generative.core.errors import UserError
from generative.gan.residual import DISCRIMINATOR_WIDTHS, GENERATOR_WIDTHS
from generative.gan.sagan import SAGANDiscriminator, SAGANGenerator


@pytest.mark.parametrize("resolution", [8, 16, 32, 64])
def test_shapes_and_range(resolution: int) -> None:
    torch.manual_seed(0)
    generator = SAGANGenerator(resolution, channels=4, z_dim=6, num_classes=3, attention_resolutions=(8,))
    discriminator = SAGANDiscriminator(resolution, channels=4, num_classes=3, attention_resolutions=())
    labels = torch.tensor([0, 2])
    images = generator(torch.randn(2, 6), labels)
    assert images.shape == (2, 3, resolution, resolution)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (2,)
    assert generator.image_size == discriminator.image_size == resolution


def test_every_layout_ends_at_its_resolution() -> None:
    for resolution, widths in GENERATOR_WIDTHS.items():
        assert 4 << (len(widths) - 1) == resolution
    for resolution, (widths, num_halvings) in DISCRIMINATOR_WIDTHS.items():
        assert resolution >> num_halvings in (4, 8) and num_halvings <= len(widths)


def test_the_class_changes_the_image_and_the_logit() -> None:
    torch.manual_seed(0)
    generator = SAGANGenerator(8, channels=4, z_dim=6, num_classes=3, attention_resolutions=()).eval()
    discriminator = SAGANDiscriminator(8, channels=4, num_classes=3, attention_resolutions=()).eval()
    z = torch.randn(1, 6).expand(2, 6)
    images = generator(z, torch.tensor([0, 1]))
    assert not torch.allclose(images[0], images[1])
    logits = discriminator(images[:1].expand(2, -1, -1, -1), torch.tensor([0, 1]))
    assert not torch.allclose(logits[0], logits[1])


def test_discriminator_scores_each_image_alone() -> None:
    torch.manual_seed(0)
    discriminator = SAGANDiscriminator(8, channels=4, num_classes=3, attention_resolutions=(4,)).eval()
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    alone = torch.cat([discriminator(images[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(discriminator(images, labels), alone, rtol=1e-5, atol=1e-5)


def test_attention_sits_where_it_is_asked_for() -> None:
    generator = SAGANGenerator(32, channels=4, z_dim=4, num_classes=2, attention_resolutions=(8, 32))
    assert list(generator.attentions) == ["0", "2"]
    discriminator = SAGANDiscriminator(64, channels=8, num_classes=2, attention_resolutions=(32, 4))
    assert list(discriminator.attentions) == ["0", "3", "4"]  # 4 x 4 comes out of two blocks


@pytest.mark.parametrize(
    "options",
    [
        {"shared_embedding_dim": 5},
        {"norm": "instance"},
        {"norm": "none"},
        {"moving_variance": "biased"},
        {"spectral_norm": False},
        {"num_singular_values": 2, "num_power_iterations": 2},
        {"bottom_width": 2},
        {"cross_replica": True},
    ],
)
def test_options_of_the_generator_run_in_both_modes(options: dict) -> None:
    torch.manual_seed(0)
    generator = SAGANGenerator(16, channels=4, z_dim=4, num_classes=3, attention_resolutions=(8,), **options)
    for mode in (True, False):
        images = generator.train(mode)(torch.randn(4, 4), torch.tensor([0, 1, 2, 0]))
        assert images.shape == (4, 3, generator.image_size, generator.image_size)
        assert images.isfinite().all()
    assert generator.image_size == (8 if "bottom_width" in options else 16)


def test_multi_output_discriminator() -> None:
    discriminator = SAGANDiscriminator(8, channels=4, num_classes=3, attention_resolutions=(), output_dim=3)
    assert discriminator(torch.randn(2, 3, 8, 8), torch.tensor([0, 1])).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 20}, "resolution must be one of .*, got 20"),
        ({"resolution": 8, "z_dim": 0}, "z_dim must be at least 1, got 0"),
        ({"resolution": 8, "attention_resolutions": (64,)}, "attention_resolutions names 64, but the blocks put out 8"),
        ({"resolution": 8, "channels": 2, "attention_resolutions": (8,)}, "at least 8 channels, got 4"),
        ({"weight_init": "ortho"}, "weight_init must be one of xavier, orthogonal, normal, got 'ortho'"),
        ({"weight_init": None}, "weight_init must be one of xavier, orthogonal, normal, got None"),
        ({"norm": "layer"}, "norm must be one of batch, instance, none, got 'layer'"),
        ({"moving_variance": "both"}, "moving_variance must be one of unbiased, biased, got 'both'"),
    ],
)
def test_wrong_options_are_told(options: dict, message: str) -> None:
    small = {"resolution": 8, "channels": 4, "attention_resolutions": ()}
    with pytest.raises(UserError, match=message):
        SAGANGenerator(**{**small, **options})


def test_an_unknown_initialisation_of_the_discriminator_is_told() -> None:
    with pytest.raises(UserError, match="weight_init must be one of xavier, orthogonal, normal, got 'ortho'"):
        SAGANDiscriminator(8, channels=4, attention_resolutions=(), weight_init="ortho")


@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_saving_and_loading_is_bit_equal(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if kind == "generator":
        network: torch.nn.Module = SAGANGenerator(8, 4, z_dim=4, num_classes=3, attention_resolutions=(8,))
        inputs = (torch.randn(2, 4), torch.tensor([0, 2]))
    else:
        network = SAGANDiscriminator(8, 4, num_classes=3, attention_resolutions=(4,))
        inputs = (torch.randn(2, 3, 8, 8), torch.tensor([0, 2]))
    network(*inputs)  # moves the buffers away from their start
    network.eval().save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.config.channels == network.config.channels == 4
    assert tuple(loaded.config.attention_resolutions) == tuple(network.config.attention_resolutions)
    torch.testing.assert_close(loaded(*inputs), network(*inputs), rtol=0, atol=0)


def test_one_image_channel_makes_grey_images() -> None:
    generator = SAGANGenerator(8, channels=4, z_dim=6, num_classes=3, attention_resolutions=(), image_channels=1)
    images = generator(torch.randn(2, 6), torch.tensor([0, 2]))
    assert images.shape == (2, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    assert len(generator.conv_out.weight) == 1
