"""Top-k and top-p by one sort: the same tokens as the plain functions keep."""

from __future__ import annotations

import pytest
import torch

from generative.autoregressive.likeliest import keep_likeliest, sort_values
from generative.autoregressive.token_sampling import keep_top_k, keep_top_p


@pytest.mark.parametrize("top_k", [None, 1, 5, 40, 41])
@pytest.mark.parametrize("top_p", [1.0, 0.96, 0.5, 1e-9])
def test_it_keeps_what_the_plain_functions_keep(top_k: int | None, top_p: float) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(6, 30, 40)
    expected = logits if top_k is None else keep_top_k(logits, top_k)
    assert torch.equal(keep_likeliest(logits, top_k, top_p), keep_top_p(expected, top_p))


def test_by_hand() -> None:
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()[None]
    assert keep_likeliest(logits, None, 0.75).isfinite().tolist() == [[False, True, False, True]]
    assert keep_likeliest(logits, None, 0.85).isfinite().tolist() == [[False, True, True, True]]
    assert keep_likeliest(logits, 2, 0.9).isfinite().tolist() == [[False, True, False, True]]
    # Of the two likeliest, 0.625 and 0.375 of what is left: top-p sees the share after top-k.
    assert keep_likeliest(logits, 2, 0.6).isfinite().tolist() == [[False, True, False, False]]


def test_equally_probable_tokens_stay_together() -> None:
    assert bool(keep_likeliest(torch.zeros(2, 5), 2, 1.0).isfinite().all())
    assert bool(keep_likeliest(torch.zeros(2, 5), None, 0.3).isfinite().all())


def test_values_are_sorted_and_the_input_is_left_alone() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0]])
    assert sort_values(values).tolist() == [[1.0, 2.0, 3.0]] and values.tolist() == [[3.0, 1.0, 2.0]]
