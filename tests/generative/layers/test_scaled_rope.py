"""Scaled rotary positions; equality with the official implementation is tested in tests/parity."""

from __future__ import annotations

import math

import pytest
import torch

from generative.layers.scaled_rope import ScaledAxialRotary, magnitude, scaled_frequencies


def test_linear_is_position_interpolation() -> None:
    trained = scaled_frequencies("normal", torch.tensor(8), 8, 100.0, 4)
    assert torch.equal(scaled_frequencies("linear", torch.tensor(8), 8, 100.0, 4), trained / 2)
    assert torch.equal(scaled_frequencies("linear", torch.tensor(3), 8, 100.0, 4), trained)


def test_ntk_aware_keeps_the_fastest_and_interpolates_the_slowest() -> None:
    trained = scaled_frequencies("normal", torch.tensor(12), 8, 100.0, 4)
    scaled = scaled_frequencies("ntk-aware", torch.tensor(12), 8, 100.0, 4)
    assert scaled[0] == trained[0] and float(trained[-1] / scaled[-1]) == pytest.approx(3)


def test_yarn_keeps_what_turns_often_and_interpolates_what_turns_seldom() -> None:
    trained = scaled_frequencies("normal", torch.tensor(4096), 64, 10000.0, 1024)
    scaled = scaled_frequencies("yarn", torch.tensor(4096), 64, 10000.0, 1024)
    assert torch.equal(scaled[:4], trained[:4]) and torch.allclose(scaled[-4:], trained[-4:] / 4)


def test_factors_of_longer_images() -> None:
    sides = torch.tensor([8, 16, 32])
    assert magnitude("ntk-aware", sides, sides, 16) is None
    assert magnitude("yarn", sides, sides, 16).tolist() == pytest.approx([1, 1, 1 + 0.1 * math.log(2)])
    assert magnitude("ntk-aware-pro1", sides, sides, 16).tolist() == pytest.approx(
        [1, math.sqrt(math.log(32) / math.log(16)), math.sqrt(math.log(64) / math.log(16))]
    )
    assert magnitude("ntk-aware-pro2", sides, sides, 16)[2] == pytest.approx(math.sqrt(math.log(2048) / math.log(256)))


def test_rows_turn_the_first_half_and_columns_the_second() -> None:
    rotary = ScaledAxialRotary(8, 100.0)
    cos, sin = rotary(torch.tensor([[0, 3]]), torch.tensor([[2, 0]]), torch.tensor([[4, 4]]))
    angles = torch.atan2(sin, cos)[0]
    frequencies = torch.tensor([1.0, 0.1])
    assert torch.allclose(angles[0], torch.cat([0 * frequencies, 2 * frequencies]))
    assert torch.allclose(angles[1], torch.cat([3 * frequencies, 0 * frequencies]))


def test_decoupled_axes_are_scaled_for_their_own_sides() -> None:
    arguments = (torch.tensor([[1]]), torch.tensor([[1]]), torch.tensor([[4, 8]]))
    for decouple, factor in ((True, 1.0), (False, 0.5)):
        rotary = ScaledAxialRotary(8, 100.0, "linear", trained_length=4, decouple=decouple, online=True)
        cos, sin = rotary(*arguments)
        angles = torch.atan2(sin, cos)[0, 0]
        assert torch.allclose(angles, torch.tensor([factor, factor * 0.1, 0.5, 0.05]))
