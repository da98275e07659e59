"""Decoding of residual codes: sums, quantisation from any depth on, confidences, the scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from generative.autoregressive.masked import residual_decoding
from generative.autoregressive.masked.gaussian_mixture import GaussianMixture
from generative.autoregressive.masked.parallel_decoding import masked_counts
from generative.autoregressive.masked.residual_decoding import (
    ResidualScheduler,
    code_vectors,
    known_codes,
    nearest_code,
    quantize_remainder,
    sum_known,
)
from generative.core.errors import UserError
from generative.core.sampling import SampleState, sample_loop
from generative.core.seeding import ImageNoise

DEPTH, CODES, DIM, PLACES = 3, 6, 4, 5


def make_codebooks() -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(DEPTH, CODES, DIM, generator=g) * torch.tensor([4.0, 1.0, 0.25])[:, None, None]


def test_known_codes_are_the_coarsest() -> None:
    assert known_codes(torch.tensor([0, 1, 3]), 3).int().tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1]]
    codebooks = make_codebooks()
    ids = torch.randint(CODES, (2, PLACES, DEPTH))
    torch.testing.assert_close(code_vectors(ids, codebooks)[1, 2, 1], codebooks[1, ids[1, 2, 1]])
    num_known = torch.tensor([[0, 1, 2, 3, 1], [3, 3, 0, 0, 2]])
    sums = sum_known(ids, num_known, codebooks)
    for b in range(2):
        for i in range(PLACES):
            parts = [codebooks[j, ids[b, i, j]] for j in range(int(num_known[b, i]))]
            torch.testing.assert_close(sums[b, i], sum(parts, torch.zeros(DIM)))


def test_nearest_codes_and_their_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, codebook, scales = torch.randn(7, DIM), torch.randn(CODES, DIM), torch.rand(7) + 0.2
    distances = torch.cdist(vectors, codebook)
    ids, scores = nearest_code(vectors, codebook, scales)
    assert torch.equal(ids, distances.argmin(1))
    expected = (-distances.square() / (2 * scales.square()[:, None])).log_softmax(1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(residual_decoding, "MAX_DISTANCES", 2 * CODES)  # in blocks of two vectors
    torch.testing.assert_close(nearest_code(vectors, codebook, scales)[1], scores)


def test_quantisation_goes_on_where_codes_are_known() -> None:
    codebooks = make_codebooks()
    ids = torch.randint(CODES, (2, PLACES, DEPTH), generator=torch.Generator().manual_seed(1))
    num_known = torch.tensor([[0, 1, 2, 3, 1], [3, 3, 0, 0, 2]])
    is_known = known_codes(num_known, DEPTH)
    vectors = code_vectors(ids, codebooks)
    remainder = (vectors * ~is_known[..., None]).sum(-2)
    scales = torch.full((2, PLACES), 0.5)
    found, scores = quantize_remainder(remainder, scales, ids * is_known, num_known, codebooks)
    assert torch.equal(found[is_known], ids[is_known]) and (scores[is_known] == 0).all()
    new = ~is_known
    assert (scores <= 0).all() and (scores.diff(dim=-1)[new[..., 1:] & is_known[..., :-1]] <= 0).all()
    assert (scores.diff(dim=-1) <= 1e-7).all(), "a code is as sure as those before it at most"
    # By hand for one position: two greedy steps from depth 1 on.
    residual = remainder[0, 1]
    for depth in (1, 2):
        best = (residual - codebooks[depth]).square().sum(1).argmin()
        assert found[0, 1, depth] == best
        residual = residual - codebooks[depth, best]


def run(steps: int, **options: float) -> tuple[list[SampleState], Tensor, ResidualScheduler]:
    """States before each step, the final ids; a mixture of two Gaussians at every position."""
    seen: list[SampleState] = []
    g = torch.Generator().manual_seed(2)
    prediction = torch.randn(3, 2 + DIM + 2 * DIM + 2, PLACES, generator=g)

    def predict(state: SampleState, timestep: int) -> Tensor:
        seen.append(state)
        return prediction

    def read(values: Tensor) -> GaussianMixture:
        assert values.shape == (3, PLACES, 2 + DIM + 2 * DIM + 2)
        logits, center, means, scales = values.split([2, DIM, 2 * DIM, 2], dim=-1)
        return GaussianMixture(logits, center, means.unflatten(-1, (2, DIM)), scales.exp(), torch.eye(DIM))

    noise = ImageNoise([torch.Generator().manual_seed(i) for i in range(3)])
    scale_of = lambda num_known: torch.tensor([4.0, 1.0, 0.25, 1.0])[num_known][..., None]  # noqa: E731
    scheduler = ResidualScheduler(make_codebooks(), PLACES, read, scale_of, **options)
    start = SampleState(
        torch.zeros(3, PLACES, DEPTH, dtype=torch.int64), {"num_known": torch.zeros(3, PLACES, dtype=torch.int64), "kept": 1}
    )
    end = sample_loop(predict, scheduler, start, steps, noise)
    assert end.memory["kept"] == 1 and (end.memory["num_known"] == DEPTH).all()
    return seen, end.sample, scheduler


@pytest.mark.parametrize("choice_temperature", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("steps", [1, 4, PLACES * DEPTH])
def test_every_code_is_decided_once_and_coarse_ones_first(steps: int, choice_temperature: float) -> None:
    seen, last, _ = run(steps, choice_temperature=choice_temperature)
    known = [state.memory["num_known"] for state in seen] + [torch.full((3, PLACES), DEPTH)]
    ids = [state.sample for state in seen] + [last]
    for index, left in enumerate(masked_counts(PLACES * DEPTH, steps)):
        assert (known[index + 1] >= known[index]).all()
        assert ((DEPTH - known[index + 1]).sum(dim=1) == left).all()
        decided = known_codes(known[index], DEPTH)
        assert torch.equal(ids[index][decided], ids[index + 1][decided])
        assert (ids[index][~decided] == 0).all()
    assert 0 <= last.min() and last.max() < CODES


def test_without_noise_sure_positions_come_first_and_much_noise_spreads_evenly() -> None:
    greedy, _, _ = run(2, choice_temperature=0.0)
    noisy, _, _ = run(2, choice_temperature=1e6)
    assert not torch.equal(greedy[1].memory["num_known"], noisy[1].memory["num_known"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice_temperature": -1.0}, "choice_temperature must be 0 or more"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 2.0}, "top_p must be"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(2, **options)


@pytest.mark.parametrize("steps", [0, PLACES * DEPTH + 1])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match="num_inference_steps must be in 1..15"):
        run(steps)


def test_much_noise_is_the_distribution_of_training() -> None:
    """With noise that drowns confidence, the number of codes a position keeps is hypergeometric: any codes are equally likely."""
    from generative.autoregressive.masked.parallel_decoding import keep_confident

    uniform = torch.rand(20000, 6, generator=torch.Generator().manual_seed(0))
    still = keep_confident(torch.randn(6).expand(20000, -1), torch.ones(20000, 6, dtype=torch.bool), 3, uniform, 1e6)
    first = still.unflatten(1, (2, 3))[:, 0].sum(1).bincount(minlength=4) / 20000
    expected = [math.comb(3, k) * math.comb(3, 3 - k) / math.comb(6, 3) for k in range(4)]
    torch.testing.assert_close(first, torch.tensor(expected), rtol=0, atol=0.015)
