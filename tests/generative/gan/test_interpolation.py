"""Paths between noise vectors and between classes."""

from __future__ import annotations

import math

import pytest
import torch

from generative.core.errors import UserError
from generative.core.seeding import keyed_generator
from generative.gan.interpolation import class_weights, frame_weights, interpolate, linear, mix_classes, spherical


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    first, last = (torch.randn(shape, generator=keyed_generator(seed)).to(dtype) for seed in (0, 1))
    return first, last


def test_frames_are_equally_far_apart_and_hold_both_ends() -> None:
    assert frame_weights(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(UserError, match="at least 2 frames, its two ends, got 1"):
        frame_weights(1)


@pytest.mark.parametrize("path", ["spherical", "linear"])
@pytest.mark.parametrize("shape", [(3, 16), (2, 1, 4, 4)])
def test_paths_start_and_end_where_they_are_told_to(path: str, shape: tuple[int, ...]) -> None:
    start, end = pair(*shape)
    frames = interpolate(start, end, frame_weights(7), path)  # type: ignore[arg-type]
    assert frames.shape == (shape[0], 7, *shape[1:]) and frames.dtype == torch.float32
    torch.testing.assert_close(frames[:, 0], start, rtol=0, atol=1e-6)
    torch.testing.assert_close(frames[:, -1], end, rtol=0, atol=1e-6)


def test_a_quarter_circle_by_hand() -> None:
    start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    angles = [0, math.pi / 6, math.pi / 3, math.pi / 2]
    expected = torch.tensor([[[math.cos(angle), math.sin(angle)] for angle in angles]])
    torch.testing.assert_close(spherical(start, end, frame_weights(4)), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(linear(start, end, frame_weights(3))[0, 1], torch.tensor([0.5, 0.5]))


def test_the_great_circle_keeps_the_length_and_the_line_does_not() -> None:
    start, end = pair(4, 512)
    start, end = (value / value.norm(dim=1, keepdim=True) for value in (start, end))
    torch.testing.assert_close(spherical(start, end, frame_weights(9)).norm(dim=2), torch.ones(4, 9), rtol=0, atol=1e-5)
    assert linear(start, end, frame_weights(9))[:, 4].norm(dim=1).max() < 0.8
    # Equal steps in angle: neighbours are equally far apart.
    steps = spherical(start, end, frame_weights(9)).diff(dim=1).norm(dim=2)
    assert (steps.amax(1) - steps.amin(1)).max() < 1e-5


def test_directions_without_a_great_circle_take_the_line() -> None:
    start = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    end = torch.tensor([[2.0, 4.0], [-1.0, -2.0], [3.0, 0.0]])
    frames = spherical(start, end, frame_weights(3))
    assert frames.isfinite().all()
    torch.testing.assert_close(frames[:2], linear(start, end, frame_weights(3))[:2])
    torch.testing.assert_close(frames[2, -1], end[2])


def test_the_path_is_computed_in_double_whatever_the_noise_is_in() -> None:
    start, end = pair(2, 64, dtype=torch.bfloat16)
    frames = spherical(start, end, frame_weights(3))
    assert frames.dtype == torch.bfloat16
    expected = spherical(start.double(), end.double(), frame_weights(3))
    torch.testing.assert_close(frames.double(), expected, rtol=2**-8, atol=0)  # one rounding, of 8 bits


def test_mixtures_of_classes() -> None:
    mixtures = mix_classes(torch.tensor([0, 2]), torch.tensor([1, 2]), frame_weights(3), 4)
    expected = [[[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0]], [[0, 0, 1, 0]] * 3]
    torch.testing.assert_close(mixtures, torch.tensor(expected, dtype=torch.float32))
    weights = torch.tensor([[0.25, 0.75]])
    assert class_weights(weights, 2) is weights


def test_unknown_path() -> None:
    with pytest.raises(UserError, match="path must be one of spherical, linear, got 'curved'"):
        interpolate(*pair(1, 2), frame_weights(2), "curved")  # type: ignore[arg-type]
