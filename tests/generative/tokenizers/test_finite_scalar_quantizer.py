"""Finite scalar quantisation: the paper's listing value by value, ids as mixed radix, every code reachable."""

from __future__ import annotations

import math

import pytest
import torch

from generative.core.errors import UserError
from generative.tokenizers.finite_scalar_quantizer import FiniteScalarQuantizer

LEVELS = [(8, 5, 5, 5), (3,), (2, 2, 3), (7, 6, 5), (4, 9)]


@pytest.mark.parametrize("levels", LEVELS)
def test_values_are_those_of_the_listing(levels: tuple[int, ...]) -> None:
    """Appendix A.1 of arXiv 2309.15505, scalar by scalar in double precision."""
    quantizer = FiniteScalarQuantizer(levels)
    vectors = 2 * torch.randn(50, len(levels), generator=torch.Generator().manual_seed(0))
    ids = quantizer.to_ids(vectors)
    found = quantizer(vectors.reshape(2, 5, 5, -1).movedim(-1, 1))
    codes = found.latents.movedim(1, -1).reshape(50, -1)
    for row in range(50):
        expected_id, place = 0, 1
        for channel, count in enumerate(levels):
            half = (count - 1) * (1 - 1e-3) / 2
            offset = 0.5 if count % 2 == 0 else 0.0
            bounded = math.tanh(vectors[row, channel].item() + math.tan(offset / half)) * half - offset
            assert abs(bounded % 1 - 0.5) > 1e-5  # no tie that rounding decides
            assert codes[row, channel].item() == pytest.approx(round(bounded) / (count // 2), abs=1e-6)
            expected_id += place * (round(bounded) + count // 2)
            place *= count
        assert ids[row].item() == expected_id == found.use.ids[row].item()


@pytest.mark.parametrize("levels", LEVELS)
def test_every_id_is_a_code_and_every_code_an_id(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    ids = torch.arange(quantizer.num_codes)
    codes = quantizer.ids_to_codes(ids)
    assert quantizer.num_codes == math.prod(levels) == len(codes.unique(dim=0))
    assert float(codes.min()) == -1 and float(codes.max()) <= 1
    digits = (codes * quantizer.half_width).round().long() + quantizer.half_width
    assert torch.equal((digits * quantizer.place_values).sum(-1), ids)
    far = 50 * torch.randn(20000, len(levels), generator=torch.Generator().manual_seed(0))
    spread = torch.cat([far, far / 50, far / 500])
    reached = quantizer.to_ids(spread)
    assert int(reached.min()) >= 0 and int(reached.max()) < quantizer.num_codes
    assert all(len(quantizer.to_digits(spread)[:, i].unique()) == count for i, count in enumerate(levels))


def test_gradients_pass_the_rounding_and_not_the_bound() -> None:
    quantizer = FiniteScalarQuantizer((5, 3))
    latents = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    found = quantizer(latents)
    gradient = torch.autograd.grad(found.latents.sum(), latents)[0]
    half = torch.tensor([2.0, 1.0]).reshape(1, 2, 1, 1)
    expected = (1 - latents.tanh().square()) * half * (1 - 1e-3) / half
    torch.testing.assert_close(gradient, expected)
    assert found.losses == {} and found.use.num_codes == 15


def test_half_precision_and_autocast_change_nothing() -> None:
    quantizer = FiniteScalarQuantizer((8, 5, 5, 5))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer.to(torch.bfloat16)(latents)
    assert found.latents.dtype == torch.float32 and torch.equal(found.latents, expected.latents)
    assert torch.equal(found.use.ids, expected.use.ids)


@pytest.mark.parametrize("levels", [(8, 1), (), (0,)])
def test_impossible_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="levels must name at least 2 levels for each channel, got"):
        FiniteScalarQuantizer(levels)
