from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metrics.resize import bicubic_matrix, build_resizer

SIZES = [(32, 32, 299), (17, 40, 24), (300, 211, 64), (64, 64, 64), (1, 5, 9)]


def _pillow_per_channel(image: Tensor, size: int) -> Tensor:
    channels = [Image.fromarray(channel.numpy().astype(np.float32)) for channel in image]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255) for channel in channels]
    return torch.from_numpy(np.stack(resized))


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_clean_equals_pillow_on_float_channels(smooth_images, height: int, width: int, size: int) -> None:
    images = smooth_images(2, height, width, seed=0, contrast=120.0)
    ours = build_resizer("clean")(images, size)
    assert ours.dtype == torch.float32
    assert 0.0 <= ours.min() and ours.max() <= 255.0
    for image, result in zip(images, ours, strict=True):
        torch.testing.assert_close(result, _pillow_per_channel(image, size), rtol=0, atol=2e-4)


def test_clean_equals_clean_fid(smooth_images) -> None:
    cleanfid = pytest.importorskip("cleanfid.resize")
    image = smooth_images(1, 70, 50, seed=1)
    theirs = cleanfid.build_resizer("clean")(image[0].permute(1, 2, 0).numpy())  # (299, 299, 3)
    ours = build_resizer("clean")(image, 299)[0].permute(1, 2, 0)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_pytorch_fid_equals_torch_interpolate(smooth_images, height: int, width: int, size: int) -> None:
    images = smooth_images(2, height, width, seed=2)
    expected = torch.nn.functional.interpolate(images / 255, size=(size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(build_resizer("pytorch-fid")(images, size) / 255, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_tensorflow_equals_torch_fidelity(smooth_images, height: int, width: int, size: int) -> None:
    module = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = smooth_images(2, height, width, seed=3)
    expected = module.interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(size, size), align_corners=False)
    torch.testing.assert_close(build_resizer("tensorflow")(images, size), expected, rtol=0, atol=1e-4)


def test_tensorflow_has_no_half_pixel_centres() -> None:
    image = torch.tensor([0, 100], dtype=torch.uint8).expand(1, 3, 2, 2)
    row = build_resizer("tensorflow")(image, 4)[0, 0, 0]
    assert row.tolist() == [0.0, 50.0, 100.0, 100.0]


def test_cmmd_crops_the_centre_and_rounds(smooth_images) -> None:
    image = smooth_images(1, 40, 61, seed=4)
    square = Image.fromarray(image[0, :, :, 10:50].permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.array(square.resize((33, 33), Image.Resampling.BICUBIC))).permute(2, 0, 1).float()
    assert torch.equal(build_resizer("cmmd")(image, 33)[0], expected)


@pytest.mark.parametrize("name", ["clean", "pytorch-fid", "tensorflow", "cmmd"])
def test_mixed_sizes_keep_their_order(smooth_images, name: str) -> None:
    resizer = build_resizer(name)
    images = [smooth_images(1, 20 + 10 * (seed % 2), 24, seed=seed)[0] for seed in range(4)]
    together = resizer(images, 16)
    for image, result in zip(images, together, strict=True):
        torch.testing.assert_close(result, resizer(image[None], 16)[0], rtol=0, atol=1e-4)


def test_bicubic_matrix_rows_sum_to_one() -> None:
    for in_size, out_size in ((7, 31), (31, 7), (5, 5)):
        torch.testing.assert_close(bicubic_matrix(in_size, out_size).sum(1), torch.ones(out_size))
    assert torch.equal(bicubic_matrix(5, 5), torch.eye(5))


def test_refuses_bad_images() -> None:
    resizer = build_resizer("clean")
    with pytest.raises(TypeError, match="uint8"):
        resizer(torch.zeros(1, 3, 8, 8), 8)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        resizer(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 8)
    with pytest.raises(ValueError, match="empty"):
        resizer([], 8)
    with pytest.raises(ValueError, match="resizer 'nearest' is not known: choose from clean"):
        build_resizer("nearest")
