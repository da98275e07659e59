"""Sinusoidal embeddings."""

from __future__ import annotations

import math

import pytest
import torch

from generative.layers.embeddings import sincos_positions_1d, sincos_positions_2d, timestep_embedding


def test_timestep_embedding_is_cosines_then_sines() -> None:
    embedding = timestep_embedding(torch.tensor([0, 3]), 4)
    assert embedding[0].tolist() == [1, 1, 0, 0]
    slow = 3 / math.sqrt(10_000)  # second of two frequencies: 10000 ** -(1 / 2)
    expected = [math.cos(3), math.cos(slow), math.sin(3), math.sin(slow)]
    torch.testing.assert_close(embedding[1], torch.tensor(expected))


def test_timestep_embedding_of_odd_width_ends_with_zero() -> None:
    embedding = timestep_embedding(torch.tensor([7.5]), 5)
    assert embedding.shape == (1, 5)
    assert embedding[0, -1] == 0
    assert torch.equal(embedding[:, :4], timestep_embedding(torch.tensor([7.5]), 4))


def test_positions_are_sines_then_cosines() -> None:
    positions = sincos_positions_1d(torch.tensor([0, 2]), 2)
    torch.testing.assert_close(positions, torch.tensor([[0, 1], [math.sin(2), math.cos(2)]], dtype=torch.float64))


def test_grid_positions_put_the_column_first() -> None:
    height, width, dim = 3, 5, 8
    grid = sincos_positions_2d(dim, height, width).reshape(height, width, dim)
    columns = sincos_positions_1d(torch.arange(width), dim // 2).float()
    rows = sincos_positions_1d(torch.arange(height), dim // 2).float()
    for row in range(height):
        for column in range(width):
            assert torch.equal(grid[row, column], torch.cat([columns[column], rows[row]]))


def test_grid_positions_refuse_a_width_that_does_not_split() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sincos_positions_2d(6, 2, 2)
