"""Token sampling: distribution, top-k, top-p, the raster scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from generative.autoregressive.token_sampling import (
    RasterScheduler,
    gumbel_noise,
    gumbel_softmax,
    invert_cdf,
    keep_most_probable,
    sample_tokens,
    sort_values,
)
from generative.core.errors import UserError
from generative.core.sampling import SampleState, sample_loop
from generative.core.seeding import ImageNoise

LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.1])


def p_value(expected: Tensor, **options: object) -> float:
    """Chi-square test of 20,000 draws against probabilities."""
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    counts = sample_tokens(LOGITS.expand(20000, -1), uniform, **options).bincount(minlength=5)
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    weights = expected[possible].double()
    return chisquare(counts[possible].numpy(), (20000 * weights / weights.sum()).numpy()).pvalue


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    assert p_value((LOGITS / temperature).softmax(0), temperature=temperature) > 0.01
    assert p_value((LOGITS / (temperature * 1.2)).softmax(0), temperature=temperature) < 1e-6  # the test can tell


def test_draws_follow_the_truncated_softmax() -> None:
    probabilities = LOGITS.softmax(0)  # order: 2, 4, 0, 3, 1
    expected = torch.where(torch.tensor([False, False, True, False, True]), probabilities, 0)
    assert p_value(expected, top_k=2) > 0.01
    nucleus = torch.where(torch.tensor([True, False, True, False, True]), probabilities, 0)
    assert p_value(nucleus, top_p=float(probabilities[[2, 4]].sum()) + 0.01) > 0.01
    assert p_value(expected, top_p=float(probabilities[[2, 4]].sum()) + 0.01, top_k=2) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gumbel_noise_is_finite(dtype: torch.dtype) -> None:
    edges = torch.tensor([0.0, 0.5, 1 - 2**-24, 1.0], dtype=dtype)
    noise = gumbel_noise(edges)
    assert noise.isfinite().all() and (noise.diff() >= 0).all()
    assert noise[1].item() == pytest.approx(-math.log(math.log(2)), rel=1e-2)


def test_relaxed_draws() -> None:
    uniform = torch.rand(2000, 5, generator=torch.Generator().manual_seed(0))
    soft, hard = (gumbel_softmax(LOGITS.expand(2000, -1), uniform, tau) for tau in (1.0, 1e-4))
    torch.testing.assert_close(soft.sum(1), torch.ones(2000))
    counts = soft.argmax(1).bincount(minlength=5)  # the largest weight is a draw from the softmax
    assert chisquare(counts.numpy(), (LOGITS.double().softmax(0) * 2000).numpy()).pvalue > 0.01
    torch.testing.assert_close(hard, torch.nn.functional.one_hot(soft.argmax(1), 5).float(), rtol=0, atol=1e-2)
    assert (soft.max(1).values < 0.99).float().mean() > 0.5
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="tau of the relaxed draw must be a positive number"):
            gumbel_softmax(LOGITS, uniform[0], tau)


def test_the_cdf_is_inverted() -> None:
    logits = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0]).log()
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-24])
    assert invert_cdf(logits.expand(6, -1), uniform).tolist() == [0, 0, 2, 2, 3, 3]
    leading_zero = torch.tensor([[-math.inf, 0.0]])
    assert invert_cdf(leading_zero, torch.zeros(1)).tolist() == [1]  # u = 0 must not draw an impossible token


def kept(logits: Tensor, top_k: int | None, top_p: float = 1.0) -> list[int]:
    """Codes of one row (V,) that are kept."""
    return keep_most_probable(logits[None], top_k, top_p)[0].isfinite().nonzero().flatten().tolist()


def test_top_k_edges() -> None:
    assert kept(LOGITS, 1) == [2] and kept(LOGITS, 2) == [2, 4]
    for top_k in (None, 5, 99):
        assert keep_most_probable(LOGITS[None], top_k, 1.0)[0].tolist() == LOGITS.tolist()


def test_top_p_edges() -> None:
    assert kept(LOGITS, None, 1e-9) == [2]  # never nothing
    halves = torch.tensor([0.5, 0.26, 0.24], dtype=torch.float64).log()
    assert kept(halves, None, 0.4999) == [0] and kept(halves, None, 0.5001) == [0, 1]
    rows = torch.stack([LOGITS, LOGITS.flip(0)])
    assert torch.equal(keep_most_probable(rows, None, 0.7)[1], keep_most_probable(rows, None, 0.7)[0].flip(0))


def test_the_nucleus_is_of_the_top_k() -> None:
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    assert kept(logits, None, 0.75) == [1, 3] and kept(logits, None, 0.85) == [1, 2, 3]
    assert kept(logits, 2, 0.9) == [1, 3] and kept(logits, 2, 0.6) == [1]  # 0.625 and 0.375 of what is left


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top_k", [None, 1, 5, 40, 41])
@pytest.mark.parametrize("top_p", [1.0, 0.96, 0.5, 1e-9])
def test_what_is_kept_is_what_the_papers_say(top_k: int | None, top_p: float, dtype: torch.dtype) -> None:
    logits = 2 * torch.randn(6, 3, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
    order = logits.argsort(dim=-1, descending=True)
    expected = logits.masked_fill(order.argsort(dim=-1) >= (top_k or 40), -math.inf)
    before = expected.softmax(-1).gather(-1, order).cumsum(-1) - expected.softmax(-1).gather(-1, order)
    expected = expected.masked_fill((before >= top_p).gather(-1, order.argsort(dim=-1)), -math.inf)
    assert torch.equal(keep_most_probable(logits, top_k, top_p), expected)


def test_equally_probable_tokens_stay_together() -> None:
    assert kept(torch.zeros(5), 2) == kept(torch.zeros(5), None, 0.3) == [0, 1, 2, 3, 4]
    assert kept(torch.tensor([1.0, 1.0, 0.0]), 1) == [0, 1]
    uniform = torch.tensor([0.1, 0.4, 0.6, 0.9])
    assert sample_tokens(torch.zeros(4, 2), uniform, top_k=1).tolist() == [0, 0, 1, 1]


def test_values_are_sorted_and_the_input_is_left_alone() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0]])
    assert sort_values(values).tolist() == [[1.0, 2.0, 3.0]] and values.tolist() == [[3.0, 1.0, 2.0]]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_k": -3},
        {"top_p": 0.0},
        {"top_p": 1.01},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} must be"):
        RasterScheduler(4, **options)


def test_the_scheduler_fills_the_map_in_raster_order() -> None:
    seen: list[list[int]] = []

    def predict(state: SampleState, position: int) -> Tensor:
        seen.append(state.sample[0].tolist())
        return torch.nn.functional.one_hot(torch.tensor([position + 1, position + 2]), 6) * 100.0

    noise = ImageNoise([torch.Generator().manual_seed(i) for i in range(2)])
    state = SampleState(torch.zeros(2, 4, dtype=torch.int64), {"kept": 1})
    result = sample_loop(predict, RasterScheduler(4), state, 4, noise)
    assert result.sample.tolist() == [[1, 2, 3, 4], [2, 3, 4, 5]] and result.memory == {"kept": 1}
    assert seen == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 0]]
    assert state.sample.sum() == 0  # what came in is left as it was


def test_the_scheduler_takes_one_step_per_token() -> None:
    with pytest.raises(UserError, match="must be 4, one for each token, got 50"):
        RasterScheduler(4).set_timesteps(50, torch.device("cpu"))
