"""The reconstruction pipeline: tokenizers and autoencoders, saving and loading, kinds of images, mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import ALL, PipelineContract
from diffusers import AutoencoderDC, AutoencoderKL
from PIL import Image

from generative.core.errors import UserError
from generative.tokenizers.pixel import PixelTokenizer
from pipelines import load_any_pipeline, load_pipeline
from pipelines.reconstruction import ImageReconstructionPipeline


def pixels(count: int = 3, size: int = 8) -> torch.Tensor:
    return torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def autoencoder(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "kl":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        return AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, sample_size=8, scaling_factor=0.5, shift_factor=0.25, **blocks
        )
    options = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "block_types": "ResBlock",
            "block_out_channels": (8, 8),
            "layers_per_block": (1, 1),
            "qkv_multiscales": ((), ()),
        }.items()
    }
    return AutoencoderDC(latent_channels=4, scaling_factor=0.5, **options)


class TestImageReconstructionPipeline(PipelineContract):
    pipeline_class = ImageReconstructionPipeline
    tolerance = 1e-5
    refused = (
        ({"images": torch.zeros(3, 8, 8, dtype=torch.uint8)}, r"images must be \(B, 3, H, W\), got \(3, 8, 8\)"),
        ({"images": []}, "at least one, all of one size, got none"),
        ({"images": [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))]}, "got 8 x 8, 9 x 8"),
        ({"images": torch.zeros(1, 3, 9, 9, dtype=torch.uint8)}, r"takes images \(B, 3, 8, 8\), got \(1, 3, 9, 9\)"),
    )

    def make(self) -> ImageReconstructionPipeline:
        return ImageReconstructionPipeline(PixelTokenizer(8, 16, 3))

    def call(self, pipeline: Any, order: Sequence[int] = ALL, **options: Any) -> Any:
        return pipeline(pixels(4)[list(order)], **options)

    def call_with(self, pipeline: Any, **arguments: Any) -> Any:
        return pipeline(**({"images": pixels()} | arguments))


def test_latents_scaled_by_channel_decode_to_the_same_image() -> None:
    network, plain = autoencoder("kl"), autoencoder("kl")
    network.register_to_config(shift_factor=None, latents_mean=(0.5, 0.0, -0.5, 1.0), latents_std=(2.0, 1.0, 0.5, 4.0))
    scaled, unscaled = (ImageReconstructionPipeline(each) for each in (network, plain))
    latents, raw = scaled.encode(pixels()), unscaled.encode(pixels()) / 0.5 + 0.25
    mean, std = (torch.tensor(network.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(latents, (raw - mean) * 0.5 / std)
    torch.testing.assert_close(scaled.decode(latents), unscaled.decode(unscaled.encode(pixels())))


def test_a_tokenizer_that_loses_nothing(tmp_path: Path) -> None:
    ImageReconstructionPipeline(PixelTokenizer(8, 256, 3)).save_pretrained(tmp_path)
    pipeline = load_any_pipeline(tmp_path)
    assert isinstance(pipeline, ImageReconstructionPipeline) and pipeline.image_size == 8
    images = pixels()
    tokens = pipeline.encode(images)
    assert tokens.shape == (3, 8 * 24) and tokens.dtype == torch.int64
    assert torch.equal(pipeline.reconstruct(images), images)
    assert torch.equal(pipeline(images, output_type="uint8").images, images)
    with pytest.raises(UserError, match="holds a ImageReconstructionPipeline, which makes images of images"):
        load_pipeline(tmp_path)


def test_every_kind_of_images_is_the_same() -> None:
    pipeline = ImageReconstructionPipeline(PixelTokenizer(8, 16, 3))
    images = pixels()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    expected = pipeline.encode(images)
    assert torch.equal(pipeline.encode(pictures), expected)
    assert torch.equal(pipeline.encode(pictures[1]), expected[1:2])
    assert torch.equal(pipeline.encode(images / 127.5 - 1), expected)
    (picture,) = pipeline(pictures[0], return_dict=False)[0]
    assert np.asarray(picture).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["kl", "dc"])
def test_autoencoders(tmp_path: Path, kind: str) -> None:
    network = autoencoder(kind).eval()
    ImageReconstructionPipeline(network).save_pretrained(tmp_path)
    pipeline = load_any_pipeline(tmp_path)
    images = pixels()
    floats = images / 127.5 - 1
    with torch.no_grad():
        encoded = network.encode(floats)
        mean = encoded.latent_dist.mean if kind == "kl" else encoded.latent
        decoded = network.decode(mean).sample
    shift = 0.25 if kind == "kl" else 0.0
    torch.testing.assert_close(pipeline.encode(images), 0.5 * (mean - shift))
    torch.testing.assert_close(pipeline.decode(pipeline.encode(images)), decoded)
    one = pipeline(images[:1], output_type="pt").images
    torch.testing.assert_close(one, pipeline(images, output_type="pt").images[:1], rtol=1e-4, atol=1e-5)
    if kind == "kl":
        assert pipeline.image_size == 8
    else:
        with pytest.raises(UserError, match="AutoencoderDC takes images of any size"):
            assert pipeline.image_size
