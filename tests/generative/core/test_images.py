"""Conversion between bytes and [-1, 1]."""

from __future__ import annotations

import pytest
import torch

from generative.core.images import images_to_float, images_to_uint8, images_to_unit_range


def test_every_byte_survives_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    floats = images_to_float(levels)
    assert floats.dtype == torch.float32
    assert floats[0] == -1 and floats[255] == 1
    assert torch.equal(images_to_uint8(floats), levels)


def test_halves_go_to_the_even_level_and_outside_values_are_clipped() -> None:
    # 127.5 -> 128 (even); 0.5 -> 0 (even); 1.5 -> 2 (even)
    images = torch.tensor([0.0, -1 + 0.5 / 127.5, -1 + 1.5 / 127.5, -7.0, 7.0, float("inf")], dtype=torch.float64)
    assert images_to_uint8(images).tolist() == [128, 0, 2, 0, 255, 255]


def test_half_precision_is_widened_before_scaling() -> None:
    assert images_to_uint8(torch.tensor([1.0, -1.0, 0.5], dtype=torch.bfloat16)).tolist() == [255, 0, 191]


def test_wrong_types_and_nan_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8"):
        images_to_float(torch.zeros(1))
    with pytest.raises(TypeError, match="floating point"):
        images_to_uint8(torch.zeros(1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="NaN"):
        images_to_uint8(torch.tensor([0.0, float("nan")]))


def test_the_unit_range_is_that_of_the_networks_halved_and_clipped() -> None:
    assert images_to_unit_range(torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 3.0])).tolist() == [0, 0, 0.5, 0.75, 1, 1]


def test_bytes_are_contiguous_whatever_the_memory_format_of_the_network() -> None:
    images = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert images_to_uint8(images).is_contiguous()
