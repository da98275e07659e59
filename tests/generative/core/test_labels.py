"""Label dropout for classifier-free guidance."""

from __future__ import annotations

import pytest
import torch

from generative.core.labels import drop_labels


def test_labels_are_dropped_at_the_given_rate_and_others_kept() -> None:
    labels = torch.arange(10).repeat(1000)
    dropped = drop_labels(labels, 10, 0.1, torch.Generator().manual_seed(0))
    assert (dropped == 10).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropped[dropped < 10], labels[dropped < 10])
    assert torch.equal(drop_labels(labels, 10, 0.1, torch.Generator().manual_seed(0)), dropped)


def test_rate_zero_drops_nothing_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    labels = torch.arange(10)
    assert drop_labels(labels, 10, 0.0, generator) is labels
    assert torch.equal(generator.get_state(), state)
