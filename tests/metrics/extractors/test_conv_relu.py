"""The fused convolution is an optimisation: nobody may be able to tell it from conv2d and relu but by the clock."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.extractors import conv_relu
from metrics.extractors.conv_relu import ConvReLU

_IS_FUSED = conv_relu._OPERATORS is not None
fused_only = pytest.mark.skipif(not _IS_FUSED, reason="this build of torch has no fused convolution")


def _conv(in_channels: int = 5, out_channels: int = 7, kernel: tuple[int, int] = (3, 3), **options: object) -> ConvReLU:
    torch.manual_seed(0)
    return ConvReLU(in_channels, out_channels, kernel, **options)  # type: ignore[arg-type]


def _images(batch: int = 2, channels: int = 5, height: int = 9, width: int = 11, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def _plain(conv: ConvReLU, images: Tensor) -> Tensor:
    return F.conv2d(images, conv.weight, conv.bias, conv.stride, conv.padding).relu()


def _check(conv: ConvReLU, images: Tensor) -> None:
    with torch.inference_mode():
        found = conv(images)
        torch.testing.assert_close(found, _plain(conv, images), rtol=1e-5, atol=1e-5)
    assert found.min() >= 0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((1, 1), {}),
        ((3, 3), {}),
        ((3, 3), {"stride": 2}),
        ((3, 3), {"padding": (1, 1)}),
        ((1, 7), {"padding": (0, 3)}),
        ((7, 1), {"padding": (3, 0)}),
        ((5, 5), {"padding": (2, 2), "stride": 2}),
        ((3, 3), {"bias": False}),
    ],
)
def test_equals_convolution_and_relu(kernel: tuple[int, int], options: dict[str, object], channels_last: bool) -> None:
    conv, images = _conv(kernel=kernel, **options), _images()
    if channels_last:
        conv, images = conv.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    _check(conv, images)


@fused_only
def test_the_fused_path_is_taken() -> None:
    conv = _conv()
    with torch.no_grad():
        conv(_images())
    assert conv._packed is not None


def test_the_plain_path_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, images = _conv(), _images()
    with torch.no_grad():
        fused = conv(images)
        monkeypatch.setattr(conv_relu, "_OPERATORS", None)
        plain = conv(images)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


def test_sizes_and_batches_may_change() -> None:
    conv = _conv(padding=(1, 1))
    for batch, height, width in ((2, 9, 11), (1, 9, 11), (5, 9, 11), (2, 30, 8), (2, 9, 11)):
        _check(conv, _images(batch, 5, height, width, seed=batch))


def test_gradients_are_those_of_the_plain_path() -> None:
    conv, images = _conv(), _images()
    with torch.no_grad():
        conv(images)  # Packed weights are there, and must not be used where gradients are wanted.
    given, expected = images.clone().requires_grad_(), images.clone().requires_grad_()
    conv(given).square().sum().backward()
    ours = conv.weight.grad
    conv.weight.grad = None
    _plain(conv, expected).square().sum().backward()
    assert given.grad is not None and expected.grad is not None and ours is not None and conv.weight.grad is not None
    torch.testing.assert_close(given.grad, expected.grad)
    torch.testing.assert_close(ours, conv.weight.grad)


def test_the_input_is_left_as_it_was() -> None:
    conv, images = _conv(), _images()
    before = images.clone()
    with torch.inference_mode():
        conv(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("change", ["in place", "data", "replaced", "loaded", "bias"])
def test_changed_weights_are_noticed(change: str) -> None:
    conv, images = _conv(), _images()
    with torch.no_grad():
        before = conv(images)
        if change == "in place":
            conv.weight.mul_(-1.5)
        elif change == "data":
            conv.weight.data = -2.0 * conv.weight.data
        elif change == "replaced":
            conv.weight = nn.Parameter(conv.weight.flip(0))
        elif change == "loaded":
            conv.load_state_dict({"weight": conv.weight.flip(1), "bias": conv.bias})
        elif conv.bias is not None:
            conv.bias.add_(1.0)
        after = conv(images)
    assert not torch.allclose(before, after, atol=1e-3)
    _check(conv, images)


def test_weights_replaced_twice_are_noticed() -> None:
    """The second new tensor often lies where the packed one lay."""
    images, stale = _images(channels=64), 0
    for _ in range(20):
        conv = _conv(64, 64)
        with torch.no_grad():
            conv.weight = nn.Parameter(torch.randn(64, 64, 3, 3))
            conv(images)
            for _ in range(2):
                conv.weight = nn.Parameter(torch.randn(64, 64, 3, 3))
            stale += not torch.allclose(conv(images), _plain(conv, images), atol=1e-3)
    assert stale == 0


def test_other_precisions_and_autocast() -> None:
    conv, images = _conv(), _images()
    expected = _plain(conv, images)
    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(conv).double()(images.double()), expected.double(), rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lower = conv(images)
    torch.testing.assert_close(lower.float(), expected, rtol=0.05, atol=0.05)


def test_the_state_dict_is_a_convolutions() -> None:
    conv = _conv()
    with torch.inference_mode():
        conv(_images())
    assert set(conv.state_dict()) == {"weight", "bias"} and not dict(conv.named_buffers())
    plain = nn.Conv2d(5, 7, (3, 3))
    plain.load_state_dict(conv.state_dict())
    torch.testing.assert_close(plain(_images()).relu(), conv(_images()))


def test_a_used_network_can_be_copied() -> None:
    conv, images = _conv(), _images()
    with torch.inference_mode():
        expected = conv(images)
    copied = copy.deepcopy(conv)
    with torch.inference_mode():
        assert torch.equal(copied(images), expected)
        copied.weight.data = -copied.weight.data
    _check(copied, images)
    _check(conv, images)


def test_a_used_network_can_be_pickled() -> None:
    conv = _conv()
    with torch.inference_mode():
        conv(_images())
    fresh, used = pickle.dumps(_conv()), pickle.dumps(conv)
    assert len(used) == len(fresh), "without the packed weights"


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        conv = _conv()
        images = _images()
        first = conv(images)
        conv.weight = nn.Parameter(conv.weight * 2.0, requires_grad=False)
        assert not torch.allclose(conv(images), first)
        torch.testing.assert_close(conv(images), _plain(conv, images), rtol=1e-5, atol=1e-5)


def test_threads_share_a_convolution() -> None:
    conv = _conv(padding=(1, 1))
    inputs = [_images(1 + seed % 3, 5, 6 + seed % 4, 8, seed) for seed in range(40)]
    with torch.no_grad():
        expected = [_plain(conv, images) for images in inputs]

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return conv(images)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, inputs))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
