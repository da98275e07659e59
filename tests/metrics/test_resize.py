from __future__ import annotations

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metrics import registry
from metrics.resize import bicubic_bands, bicubic_matrix, build_resizer

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


@pytest.mark.parametrize("name", list(registry.RESIZERS))
def test_mixed_sizes_keep_their_order(smooth_images, name: str) -> None:
    resizer = build_resizer(name)
    images = [smooth_images(1, 20 + 10 * (seed % 2), 24, seed=seed)[0] for seed in range(4)]
    together = resizer(images, 16)
    for image, result in zip(images, together, strict=True):
        torch.testing.assert_close(result, resizer(image[None], 16)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (33, 50), (500, 375), (224, 224), (7, 9), (224, 301)])
def test_clip_fid_equals_clean_fid(smooth_images, monkeypatch: pytest.MonkeyPatch, height: int, width: int) -> None:
    pytest.importorskip("cleanfid")
    monkeypatch.setitem(sys.modules, "clip", ModuleType("clip"))  # OpenAI's package, which resizing does not use.
    preprocess = importlib.import_module("cleanfid.clip_features").img_preprocess_clip
    image = smooth_images(1, height, width, seed=5, contrast=120.0)
    expected = preprocess(image[0].permute(1, 2, 0).numpy())
    ours = build_resizer("clip-fid")(image, 224)
    assert ours.dtype == torch.float32
    assert torch.equal(ours[0], torch.from_numpy(expected.copy()).permute(2, 0, 1).float())


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_dinov2_equals_edm2(smooth_images, height: int, width: int, size: int) -> None:
    images = smooth_images(2, height, width, seed=6, contrast=120.0)
    expected = torch.nn.functional.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True)
    ours = build_resizer("dinov2")(images, size)
    assert torch.equal(ours, expected)
    # The same filter as Pillow's, before it clips: the cubic with a = -0.5, stretched when it shrinks.
    torch.testing.assert_close(ours.clamp(0, 255), build_resizer("clean")(images, size), rtol=0, atol=0.02)


def test_dinov2_keeps_the_ringing_that_clean_clips() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[..., 4:] = 255
    ringing = build_resizer("dinov2")(image, 32)
    assert ringing.min() < -1 and ringing.max() > 256
    torch.testing.assert_close(ringing.clamp(0, 255), build_resizer("clean")(image, 32), rtol=0, atol=0.02)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_dinov2_pil_equals_torchvision_on_pillow(smooth_images, height: int, width: int, size: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    resize = transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC)
    image = smooth_images(1, height, width, seed=7, contrast=120.0)
    expected = transforms.ToTensor()(resize(Image.fromarray(image[0].permute(1, 2, 0).numpy())))
    torch.testing.assert_close(build_resizer("dinov2-pil")(image, size)[0] / 255, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("in_size", "out_size"), [(256, 299), (512, 299), (5, 299), (299, 7), (1, 9), (9, 1), (24, 24)])
def test_bands_are_the_whole_matrix(in_size: int, out_size: int) -> None:
    whole = torch.zeros(out_size, in_size)
    for band in bicubic_bands(in_size, out_size):
        whole[band.outputs, band.inputs] = band.weights
    assert torch.equal(whole, bicubic_matrix(in_size, out_size))


def test_clean_does_not_depend_on_the_batch(smooth_images) -> None:
    # Larger than a chunk and not a multiple of one, so that the last chunk is a short one.
    images = smooth_images(7, 130, 140, seed=8)
    together = build_resizer("clean")(images, 64)
    for image, result in zip(images, together, strict=True):
        torch.testing.assert_close(build_resizer("clean")(image[None], 64)[0], result, rtol=0, atol=1e-4)


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
