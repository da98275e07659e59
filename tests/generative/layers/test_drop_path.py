"""Stochastic depth: whole samples, right on average, off in evaluation."""

from __future__ import annotations

import pytest
import torch

from generative.layers.drop_path import DropPath, drop_path_rates


def test_samples_are_dropped_whole_and_kept_ones_scaled() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2)
    out = DropPath(0.25).train()(x)
    assert torch.equal(out.amax((1, 2)), out.amin((1, 2)))  # all of a sample alike
    assert sorted(out.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(DropPath(0.25).eval()(x), x) and torch.equal(DropPath(0.0).train()(x), x)


def test_rates_rise_with_depth() -> None:
    assert drop_path_rates(0.2, 3) == pytest.approx([0.0, 0.1, 0.2])
    assert drop_path_rates(0.2, 1) == [0.0]
