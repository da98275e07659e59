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
    gumbel_sample,
    gumbel_softmax,
    invert_cdf,
    keep_top_k,
    keep_top_p,
    sample_tokens,
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


def test_gumbel_draws_follow_the_softmax() -> None:
    uniform = torch.rand(20000, 5, generator=torch.Generator().manual_seed(0))
    counts = gumbel_sample(LOGITS.expand(20000, -1), uniform, temperature=0.5).bincount(minlength=5)
    expected = (LOGITS / 0.5).double().softmax(0) * 20000
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01
    ruled_out = torch.where(torch.arange(5) == 2, -math.inf, LOGITS)
    assert (gumbel_sample(ruled_out.expand(20000, -1), uniform) != 2).all()
    assert gumbel_sample(LOGITS, uniform[0], temperature=0) == 2


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
    assert torch.equal(soft.argmax(1), gumbel_sample(LOGITS.expand(2000, -1), uniform))  # the same draw, relaxed
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


def test_top_k_edges() -> None:
    assert keep_top_k(LOGITS, 1).isfinite().nonzero().flatten().tolist() == [2]
    torch.testing.assert_close(keep_top_k(LOGITS, 5), LOGITS)
    torch.testing.assert_close(keep_top_k(LOGITS, 99), LOGITS)
    assert keep_top_k(torch.tensor([1.0, 1.0, 0.0]), 1).isfinite().tolist() == [True, True, False]  # ties stay


def test_top_p_edges() -> None:
    torch.testing.assert_close(keep_top_p(LOGITS, 1.0), LOGITS)
    assert keep_top_p(LOGITS, 1e-9).isfinite().nonzero().flatten().tolist() == [2]  # never nothing
    halves = torch.tensor([0.5, 0.25, 0.25]).log()
    assert keep_top_p(halves, 0.5).isfinite().tolist() == [True, False, False]  # reaches 0.5 with the first
    assert keep_top_p(halves, 0.5001).isfinite().sum() == 2
    rows = torch.stack([LOGITS, LOGITS.flip(0)])
    torch.testing.assert_close(keep_top_p(rows, 0.7)[1], keep_top_p(LOGITS, 0.7).flip(0))


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
