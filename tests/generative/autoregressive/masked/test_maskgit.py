"""MaskGIT's network: what a prediction depends on, published size, sizes that cannot be built."""

from __future__ import annotations

import math

import pytest
import torch

from generative.autoregressive.masked.maskgit import MaskGITTransformer
from generative.core.errors import UserError


def make(**options: object) -> MaskGITTransformer:
    torch.manual_seed(0)
    return MaskGITTransformer(5, 3, (2, 3), **{"hidden_size": 16, "depth": 2, "num_heads": 2, **options}).eval()


@torch.no_grad()
def test_it_sees_both_directions_the_class_and_masks() -> None:
    network = make()
    tokens = torch.tensor([[0, 1, 2, 5, 4, 0]])
    label = torch.tensor([1])
    logits = network(tokens, label)
    assert logits.shape == (1, 6, 5)
    for place in range(6):
        other = tokens.clone()
        other[0, place] = 3
        assert ((network(other, label) - logits).abs().amax(-1) > 1e-6).all(), "every prediction reads every token"
    assert not torch.allclose(network(tokens, torch.tensor([0])), logits)
    torch.testing.assert_close(network(tokens), network(tokens, torch.tensor([3])))  # the null condition
    moved = network(tokens.roll(1, dims=1), label).roll(-1, dims=1)
    assert not torch.allclose(moved, logits), "positions count"


@torch.no_grad()
def test_a_prediction_does_not_depend_on_its_batch() -> None:
    network = make()
    tokens = torch.randint(6, (4, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 3, 2])
    together = network(tokens, labels)
    for i in range(4):
        torch.testing.assert_close(network(tokens[i : i + 1], labels[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


def test_initial_loss_is_that_of_an_even_guess_and_the_mask_is_never_predicted() -> None:
    network = make(hidden_size=64)
    logits = network(torch.full((2, 6), 5), torch.tensor([0, 1]))
    assert torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.zeros(12).long()).item() == pytest.approx(
        math.log(5), abs=0.2
    )
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_gradient_checkpointing_changes_nothing() -> None:
    tokens, labels = torch.randint(6, (2, 6)), torch.tensor([0, 2])
    grads = []
    for checkpointed in (False, True):
        network = make(dropout=0.0).train()
        if checkpointed:
            network.enable_gradient_checkpointing()
        network(tokens, labels).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    torch.testing.assert_close(grads[0], grads[1])


def test_dropout_acts_in_training_only() -> None:
    network, tokens = make(dropout=0.5), torch.zeros(1, 6, dtype=torch.int64)
    torch.testing.assert_close(network(tokens), network(tokens))
    network.train()
    assert not torch.equal(network(tokens), network(tokens))


def test_published_size() -> None:
    """Official layout at 256 pixels: tables of 2,025 rows (codes, mask, classes) and 257 slots, 24 blocks of 12 D^2 + 13 D."""
    with torch.device("meta"):
        network = MaskGITTransformer(1024, 1000, (16, 16), num_heads=16)
    d = 768
    tables = (1024 + 1 + 1000 + 1 + 257) * d  # a class more than officially: the null condition
    blocks = 24 * (12 * d * d + 13 * d)
    head = d * d + d + 1024
    norms = 2 * 2 * d
    assert sum(p.numel() for p in network.parameters()) == tables + blocks + head + norms
    assert 170e6 < tables + blocks + head + norms < 180e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide hidden_size 16, got 3"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)
