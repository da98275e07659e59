"""Small seeded images and networks. Weights are random but sane: every layer keeps activations near unit size."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Self

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metrics import registry
from metrics.extractors.base import FeatureExtractor

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep weights and features of a test away from the user's."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_modules() -> Iterator[None]:
    """Forget the files of one's own extractors that a test has run."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("_extractor_"):
            del sys.modules[name]


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


@pytest.fixture
def tiny_options(tiny_extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of ``fid-score`` that score with the tiny network, which they may call "tiny"."""
    module = ModuleType("tiny_network")
    module.Tiny = type(tiny_extractor)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_network", module)
    monkeypatch.setitem(registry.EXTRACTORS, "tiny", "tiny_network:Tiny")
    return ["--extractor", "tiny", "--device", "cpu", "--quiet"]


@pytest.fixture
def images_run(tiny_extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images that any tiny network of this process has been given, one entry a batch."""
    counts: list[int] = []
    forward = type(tiny_extractor).forward

    def counted(network: FeatureExtractor, images: Tensor) -> dict[str, Tensor]:
        counts.append(len(images))
        return forward(network, images)

    monkeypatch.setattr(type(tiny_extractor), "forward", counted)
    return counts


@pytest.fixture(scope="session")
def benchmark_module() -> Callable[[str], ModuleType]:
    """The function that imports a script of tests/benchmarks by its name."""

    def load(name: str) -> ModuleType:
        full_name = f"benchmarks_{name}"
        if full_name not in sys.modules:
            spec = importlib.util.spec_from_file_location(full_name, _BENCHMARKS / f"{name}.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[full_name] = module  # Before it runs: dataclasses look their module up.
            spec.loader.exec_module(module)
        return sys.modules[full_name]

    return load


@pytest.fixture(scope="session")
def inception_state(benchmark_module: Callable[[str], ModuleType]) -> dict[str, Tensor]:
    """A seeded state dict in the published file's layout (He-scaled convolutions, mild batch norms)."""
    state: dict[str, Tensor] = benchmark_module("seeded_weights").seeded_inception_state()
    return state


@pytest.fixture(scope="session")
def inception_file(inception_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``inception_state`` as a .pth file."""
    path = tmp_path_factory.mktemp("weights") / "seeded-inception.pth"
    torch.save(inception_state, path)
    return path
