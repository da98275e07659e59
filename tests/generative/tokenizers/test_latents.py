"""Latents of both kinds of autoencoder: scaling there and back, strides, wrong networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, ModelMixin
from seeded import generator

from generative.core.errors import UserError
from generative.tokenizers.base import fingerprint
from generative.tokenizers.latents import (
    check_latents,
    decode_latents,
    encode_images,
    image_range,
    latent_channels,
    latent_stride,
    scaled_deviation,
    set_latent_scaling,
)
from generative.tokenizers.pixel import PixelTokenizer


def kl() -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 4), "norm_num_groups": 2, "latent_channels": 3}
    return AutoencoderKL(**blocks, **sizes, scaling_factor=0.5, shift_factor=0.25).eval()


def dc() -> AutoencoderDC:
    torch.manual_seed(0)
    sizes = {f"{part}_block_out_channels": (8, 8) for part in ("encoder", "decoder")}
    layers = {f"{part}_layers_per_block": (1, 1) for part in ("encoder", "decoder")}
    scales = {f"{part}_qkv_multiscales": ((), ()) for part in ("encoder", "decoder")}
    return AutoencoderDC(latent_channels=4, **sizes, **layers, **scales, scaling_factor=0.3).eval()


def images() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_kl_latents_are_drawn_shifted_and_scaled() -> None:
    network = kl()
    latents = encode_images(network, images(), generator())
    distribution = network.encode(images()).latent_dist
    noise = torch.randn(distribution.mean.shape, generator=generator())
    torch.testing.assert_close(latents, (distribution.mean + distribution.std * noise - 0.25) * 0.5)
    assert not torch.equal(latents, encode_images(network, images(), generator(1)))
    torch.testing.assert_close(decode_latents(network, latents), network.decode(latents / 0.5 + 0.25).sample)


def test_deep_compression_latents_are_deterministic_and_scaled() -> None:
    network = dc()
    latents = encode_images(network, images(), generator())
    assert torch.equal(latents, encode_images(network, images(), generator(1)))
    torch.testing.assert_close(latents, network.encode(images()).latent * 0.3)
    torch.testing.assert_close(decode_latents(network, latents), network.decode(latents / 0.3).sample)


@pytest.mark.parametrize(("network", "stride", "channels"), [(kl(), 2, 3), (dc(), 2, 4)])
def test_strides_and_channels(network: ModelMixin, stride: int, channels: int) -> None:
    assert latent_stride(network) == stride and latent_channels(network) == channels
    shape = encode_images(network, images(), generator()).shape
    assert shape == (2, channels, 8 // stride, 8 // stride)


def test_other_networks_and_other_channels_are_refused() -> None:
    check_latents(7, None)
    check_latents(3, kl())
    with pytest.raises(UserError, match="in_channels=4 but the autoencoder's latents have 3 channels"):
        check_latents(4, kl())
    for function in (latent_stride, latent_channels):
        with pytest.raises(UserError, match="must be an AutoencoderKL or AutoencoderDC .* got PixelTokenizer"):
            function(PixelTokenizer())


STATISTICS = {"latents_mean": (0.5, -1.0, 0.25), "latents_std": (2.0, 0.5, 4.0)}


def kl_with(**config: object) -> AutoencoderKL:
    network = kl()
    network.register_to_config(**{"shift_factor": None, **config})
    return network


def test_mean_and_deviation_of_each_channel_are_those_of_diffusers_pipelines() -> None:
    network = kl_with(**STATISTICS)
    mean, std = (torch.tensor(STATISTICS[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    distribution = network.encode(images()).latent_dist
    drawn = distribution.mean + distribution.std * torch.randn(distribution.mean.shape, generator=generator())
    latents = encode_images(network, images(), generator())
    torch.testing.assert_close(latents, (drawn - mean) * 0.5 / std)  # as the image-to-image pipeline of Stable Diffusion XL
    torch.testing.assert_close(decode_latents(network, latents), network.decode(latents * std / 0.5 + mean).sample)
    torch.testing.assert_close(decode_latents(network, latents), network.decode(drawn).sample)


@pytest.mark.parametrize("name", ["latents_mean", "latents_std"])
def test_one_of_the_two_alone_counts(name: str) -> None:
    network, plain = kl_with(**{name: STATISTICS[name]}), kl_with()
    latents, values = encode_images(network, images(), generator()), torch.tensor(STATISTICS[name])[:, None, None]
    raw = encode_images(plain, images(), generator()) / 0.5
    torch.testing.assert_close(latents, (raw - values) * 0.5 if name == "latents_mean" else raw * 0.5 / values)
    torch.testing.assert_close(decode_latents(network, latents), plain.decode(raw).sample)


def test_scaling_changes_the_fingerprint() -> None:
    mean_alone = {"latents_mean": STATISTICS["latents_mean"]}
    configs: list[dict[str, object]] = [{}, {**STATISTICS}, {**mean_alone}, {"shift_factor": 0.1}, {"scaling_factor": 0.4}]
    assert len({fingerprint(kl_with(**config)) for config in configs}) == 5


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"latents_mean": (0.0, 0.0)}, "latents_mean must be 3 numbers"),
        ({"latents_std": (1.0, 0.0, 1.0)}, "latents_std must be 3 positive numbers"),
        ({"latents_std": (1.0, float("nan"), 1.0)}, "latents_std must be 3 positive numbers"),
        ({"latents_mean": "wide"}, "latents_mean must be 3 numbers"),
        ({"latents_mean": (0.0, 0.0, 0.0), "shift_factor": 0.1}, "both shift_factor and latents_mean"),
        ({"scaling_factor": 0.0}, "scaling_factor must be a positive number, got 0.0"),
        ({"scaling_factor": None}, "scaling_factor must be a positive number, got None"),
    ],
)
def test_scaling_that_makes_no_sense_is_refused_at_the_start(config: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_latents(3, kl_with(**config))


def test_images_in_another_range(tmp_path: Path) -> None:
    network, plain = kl(), kl()
    before = fingerprint(network)
    set_latent_scaling(network, 0.5, [1.0, 2.0, 3.0], [0.5, 1.0, 2.0], (0.0, 1.0))
    assert fingerprint(network) != before and (scaled_deviation(network), scaled_deviation(plain)) == (0.5, 1.0)
    mean = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    std = torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    distribution = plain.encode((images() + 1) / 2).latent_dist
    noise = torch.randn(distribution.mean.shape, generator=generator())
    latents = encode_images(network, images(), generator())
    torch.testing.assert_close(latents, (distribution.mean + distribution.std * noise - mean) * 0.5 / std)
    decoded = plain.decode(latents / 0.5 * std + mean).sample * 2 - 1
    torch.testing.assert_close(decode_latents(network, latents), decoded)
    network.save_pretrained(tmp_path)
    again = AutoencoderKL.from_pretrained(tmp_path).eval()
    assert image_range(again) == (0.0, 1.0) and fingerprint(again) == fingerprint(network)
    torch.testing.assert_close(decode_latents(again, latents), decoded)


@pytest.mark.parametrize("values", [(1.0,), (1.0, 0.0), "ab", (0.0, float("inf"))])
def test_a_range_that_is_none_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="_image_range must be two numbers"):
        set_latent_scaling(kl(), 1.0, image_range=values)
