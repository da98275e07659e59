"""Small seeded images and networks. Weights are random but sane: every layer keeps activations near unit size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Self

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metrics.extractors.base import FeatureExtractor


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 2))
    yield
    torch.set_num_threads(before)


def _smooth_images(count: int, height: int, width: int, seed: int, contrast: float = 60.0) -> Tensor:
    """uint8 (count, 3, height, width): a few random waves each, so that resizing matters but nothing aliases away."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 6, 6, generator=generator)
    waves = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    noise = 0.2 * torch.randn(count, 3, height, width, generator=generator)
    return (128 + contrast * (waves + noise)).clamp(0, 255).to(torch.uint8)


def _write_folder(folder: Path, images: Tensor) -> Path:
    """Write images as PNG files in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:04d}.png")
    return folder


@pytest.fixture(scope="session")
def smooth_images() -> Callable[..., Tensor]:
    """The function (count, height, width, seed, contrast=60) -> uint8 images."""
    return _smooth_images


@pytest.fixture(scope="session")
def write_folder() -> Callable[[Path, Tensor], Path]:
    """The function (folder, images) -> folder that writes PNG files in order."""
    return _write_folder


class TinyExtractor(FeatureExtractor):
    """A random projection of 8x8 pixels: features and logits, in microseconds."""

    name = "tiny"
    embedding = "projection"
    class_logits = "logits"
    weights_sha256 = "0" * 64
    frechet_names: ClassVar[dict[str, str]] = {}

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        self.input_size = 8
        self.feature_dims = {"projection": dim, "logits": 5}
        generator = torch.Generator().manual_seed(0)
        self.projection = nn.Parameter(torch.randn(192, dim, generator=generator) / 14)
        self.classifier = nn.Parameter(torch.randn(dim, 5, generator=generator))
        self.num_seen = 0

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        return cls()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.num_seen += len(images)
        features = (images.flatten(1) / 127.5 - 1) @ self.projection
        return {"projection": features, "logits": features @ self.classifier}


@pytest.fixture
def tiny_extractor() -> FeatureExtractor:
    return TinyExtractor().freeze()


@pytest.fixture(scope="session")
def inception_state() -> dict[str, Tensor]:
    """A seeded state dict in the published file's layout (He-scaled convolutions, mild batch norms)."""
    from torchvision.models import inception_v3

    with torch.device("meta"):
        network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
        elif key.endswith(("bn.weight", "running_var")):
            state[key] = 0.75 + 0.5 * torch.rand(value.shape, generator=generator)
        elif value.ndim >= 2:
            fan_in = value[0].numel()
            state[key] = torch.randn(value.shape, generator=generator) * (2.0 / fan_in) ** 0.5
        else:
            state[key] = 0.1 * torch.randn(value.shape, generator=generator)
    return state
