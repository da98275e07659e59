from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metrics.extractors.base import FeatureExtractor
from metrics.scores.frechet import frechet_distance_from_features, gaussian_distance
from metrics.scores.moments import Gaussian, MomentAccumulator
from metrics.scores.sensitivity import SensitivityMaps, fid_sensitivity, frechet_gradient, save_overlays

_DIMENSION = 6


def _normal(count: int, seed: int, dimension: int = _DIMENSION) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64) @ mixing


def _gaussian(features: Tensor) -> Gaussian:
    accumulator = MomentAccumulator()
    accumulator.append(features)
    return accumulator.gaussian()


def _numeric_gradient(image: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Central differences of the distance of the fakes with the image among them."""
    reference, step = _gaussian(real), 1e-5
    result = []
    for axis in torch.eye(len(image), dtype=torch.float64):
        up, down = (
            gaussian_distance(reference, _gaussian(torch.cat([fake, (image + sign * step * axis)[None]]))) for sign in (1, -1)
        )
        result.append((up - down) / (2 * step))
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize(("num_real", "num_fake"), [(50, 40), (50, 4), (4, 40), (6, 5), (4, 3)])
def test_gradient_equals_finite_differences_at_any_rank(num_real: int, num_fake: int) -> None:
    real, fake, images = _normal(num_real, 0), _normal(num_fake, 1) + 1.0, 3 * _normal(3, 2)
    gradient = frechet_gradient(images, _gaussian(real), _gaussian(fake))
    for row, image in zip(gradient, images, strict=True):
        numeric = _numeric_gradient(image, real, fake)
        assert (row - numeric).norm() < 1e-5 * numeric.norm()


def test_gradient_equals_autograd() -> None:
    real, fake, image = _normal(50, 0), _normal(30, 1), _normal(1, 2).requires_grad_()
    joined = torch.cat([fake, image])
    factor = _gaussian(real).square_root_factor()
    overlap = torch.linalg.eigvalsh(factor.T @ joined.T.cov() @ factor).sqrt().sum()
    distance = (joined.mean(0) - real.mean(0)).square().sum() + real.T.cov().trace() + joined.T.cov().trace() - 2 * overlap
    assert float(distance.detach()) == pytest.approx(frechet_distance_from_features(real, joined.detach()), rel=1e-9)
    distance.backward()
    gradient = frechet_gradient(image.detach(), _gaussian(real), _gaussian(fake))
    torch.testing.assert_close(gradient, image.grad, rtol=1e-6, atol=1e-8)


def test_an_image_inside_a_deficient_set_gets_a_finite_gradient() -> None:
    fake = _normal(4, 1)
    gradient = frechet_gradient(fake.mean(0, keepdim=True) + fake[:1] - fake[1:2], _gaussian(_normal(50, 0)), _gaussian(fake))
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.norm()) < 100


class _Maps(FeatureExtractor):
    """Feature k is the mean over places of a map: channel 0 of the image, channel 1, their sum."""

    name = "maps"
    embedding = "pool"
    class_logits = "pool"
    weights_sha256 = "0" * 64
    frechet_names: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.input_size = 8
        self.feature_dims = {"pool": 3}
        self.last = nn.Conv2d(3, 3, 1, bias=False)
        self.last.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])[:, :, None, None] / 255

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        return cls()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"pool": self.last(images).mean((2, 3))}


def test_map_shows_the_channel_that_moves_the_distance() -> None:
    """Fakes differ from reals in the first feature only, so the red patch is seen and the green one is not."""
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[0, 0, :4, :4] = 255
    images[0, 1, 12:, 12:] = 255
    identity = torch.eye(3, dtype=torch.float64)
    real = Gaussian(mu=torch.tensor([5.0, 0.0, 0.0]).double(), sigma=identity)
    fake = Gaussian(mu=torch.zeros(3).double(), sigma=identity, num_samples=1000)
    result = fid_sensitivity(_Maps().freeze(), images, real, fake, layer="last")
    assert result.maps.shape == (1, 16, 16)
    assert result.maps.dtype == torch.float32
    assert float(result.maps.min()) >= 0.0
    assert float(result.maps[0, :4, :4].mean()) > 100 * float(result.maps[0, 12:, 12:].mean())
    assert result.top1 is not None and result.top1.tolist() == [2]
    pooled = _Maps()(images.float())["pool"]
    weights = (frechet_gradient(pooled, real, fake) / 64).square()  # 8x8 places
    assert float(result.maps[0, 1, 1]) == pytest.approx(float(weights[0, 0] + weights[0, 2]), rel=0.1), "Lanczos at the border"


def test_saves_a_figure(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 6, 5, dtype=torch.uint8)
    save_overlays(tmp_path / "maps.png", images, SensitivityMaps(torch.rand(2, 6, 5), torch.tensor([3, 1])), list("abcd"))
    with Image.open(tmp_path / "maps.png") as figure:
        assert figure.width == figure.height
    with pytest.raises(ValueError, match="one map per image, got 2 images and 1 maps"):
        save_overlays(tmp_path / "maps.png", images, SensitivityMaps(torch.rand(1, 6, 5), None))


def test_refuses_what_does_not_fit() -> None:
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    identity = torch.eye(3, dtype=torch.float64)
    unknown = Gaussian(mu=torch.zeros(3).double(), sigma=identity)
    known = Gaussian(mu=torch.zeros(3).double(), sigma=identity, num_samples=10)
    with pytest.raises(ValueError, match="must tell a num_samples of at least 2, got None"):
        fid_sensitivity(_Maps(), images, unknown, unknown, layer="last")
    with pytest.raises(ValueError, match="maps has no layer 'Mixed_7c'"):
        fid_sensitivity(_Maps(), images, unknown, known)
    mismatched = _Maps()
    mismatched.before = nn.Identity()
    mismatched.forward = lambda images: _Maps.forward(mismatched, mismatched.before(images))
    with pytest.raises(ValueError, match="layer 'before' does not pool to pool of maps"):
        fid_sensitivity(mismatched, images + 9, known, known, layer="before")
    with pytest.raises(ValueError, match=r"got \(2, 4\)"):
        frechet_gradient(torch.zeros(2, 4), known, known)
