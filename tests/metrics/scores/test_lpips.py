"""LPIPS: the definition by hand on seeded weights in the published files' layout, gradients, wrong files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from metrics.scores.lpips import LPIPS, lpips, unit_distance

#: torchvision's numbers of VGG16's convolutions, their widths, and of the ReLUs whose maps are compared.
CONVS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
CONVS |= {17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
TAPS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}
POOLINGS = (4, 9, 16, 23)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Seeded weights under the published names, in the two formats that are read."""
    folder = tmp_path_factory.mktemp("lpips")
    generator = torch.Generator().manual_seed(0)
    vgg = {"classifier.0.weight": torch.zeros(2, 2)}
    for place, (width_in, width_out) in CONVS.items():
        scale = (2 / (9 * width_in)) ** 0.5
        vgg[f"features.{place}.weight"] = scale * torch.randn(width_out, width_in, 3, 3, generator=generator)
        vgg[f"features.{place}.bias"] = 0.1 * torch.randn(width_out, generator=generator)
    linear = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for i, width in enumerate(TAPS.values())}
    torch.save(vgg, folder / "vgg16.pth")
    save_file(linear, folder / "vgg.safetensors")
    return folder / "vgg16.pth", folder / "vgg.safetensors"


def definition(files: tuple[Path, Path], first: Tensor, second: Tensor) -> Tensor:
    """Eq. 1 of the paper, in torchvision's numbering and without any code of ours."""
    from safetensors.torch import load_file

    vgg, linear = torch.load(files[0], weights_only=True), load_file(files[1])
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = torch.zeros(len(first))
    maps = [(image - shift[:, None, None]) / scale[:, None, None] for image in (first, second)]
    tap = 0
    for place in range(30):
        if place in CONVS:
            weight, bias = vgg[f"features.{place}.weight"], vgg[f"features.{place}.bias"]
            maps = [F.conv2d(part, weight, bias, padding=1) for part in maps]
        elif place in POOLINGS:
            maps = [F.max_pool2d(part, 2, 2) for part in maps]
        else:
            maps = [part.clamp(min=0) for part in maps]
        if place in TAPS:
            one, other = (part / (part.square().sum(1, keepdim=True).sqrt() + 1e-10) for part in maps)
            total = total + F.conv2d((one - other) ** 2, linear[f"lin{tap}.model.1.weight"])[:, 0].mean((1, 2))
            tap += 1
    return total


def pairs(size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (3, 3, size, size)
    return tuple(torch.randint(256, shape, generator=generator, dtype=torch.uint8) for _ in range(2))  # type: ignore[return-value]


def test_the_definition(files: tuple[Path, Path]) -> None:
    network = LPIPS.from_files(*files)
    first, second = pairs()
    expected = definition(files, first / 127.5 - 1, second / 127.5 - 1)
    torch.testing.assert_close(lpips(network, first, second), expected, rtol=1e-5, atol=1e-6)
    assert expected.min() > 0.01
    torch.testing.assert_close(lpips(network, second, first), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lpips(network, first[1:2], second[1:2]), expected[1:2], rtol=1e-5, atol=1e-6)
    assert lpips(network, first, first).tolist() == [0, 0, 0]
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_gradients_are_finite_where_features_vanish() -> None:
    zeros = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit_distance(zeros, torch.rand(1, 4, 2, 2)).sum().backward()
    assert zeros.grad is not None and bool(torch.isfinite(zeros.grad).all())


def test_wrong_input_is_told(files: tuple[Path, Path], tmp_path: Path) -> None:
    network = LPIPS.from_files(*files)
    first, second = pairs(8)
    with pytest.raises(ValueError, match=r"at least 16 px, got \(3, 3, 8, 8\)"):
        lpips(network, first, second)
    with pytest.raises(TypeError, match="must be uint8, got torch.float32"):
        lpips(network, first.float(), second)
    with pytest.raises(FileNotFoundError, match="weights file .*nothing.pth does not exist"):
        LPIPS.from_files(tmp_path / "nothing.pth", files[1])
    with pytest.raises(ValueError, match="lack lin0.model.1.weight: give LPIPS's file"):
        LPIPS.from_files(files[0], files[0])
    network_state = {f"lin{i}.model.1.weight": torch.rand(1, 3, 1, 1) for i in range(5)}
    save_file(network_state, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"do not fit: weights.0 has shape \(3,\), not \(64,\)"):
        LPIPS.from_files(files[0], tmp_path / "small.safetensors")
