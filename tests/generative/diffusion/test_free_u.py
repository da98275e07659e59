"""FreeU: its formulas, where it acts, and that it leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.free_u import FreeU, free_u_of, scale_low_frequencies, transformed_skips
from generative.diffusion.networks.dit import DiT
from generative.diffusion.networks.skips import SkipNetwork

FACTORS = (1.5, 1.6, 0.9, 0.2)


class Decoder(nn.Module, SkipNetwork):
    """Joins a map with a skip, as U-Nets do."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.decoder_widths = widths


def maps(width: int, size: tuple[int, int] = (8, 8)) -> Tensor:
    return torch.randn(2, width, *size, generator=torch.Generator().manual_seed(width))


def test_the_stages_are_the_two_deepest_widths() -> None:
    free_u = free_u_of(Decoder(12, 9, 6, 3), FACTORS, "v1")
    assert free_u is not None and free_u.widths == (12, 9)
    for width, factor in ((12, 1.5), (9, 1.6), (6, None), (3, None)):
        hidden, skip = maps(width), maps(width + 1)
        changed, filtered = free_u(hidden, skip)
        if factor is None:
            assert changed is hidden and filtered is skip
        else:
            half = width // 2
            torch.testing.assert_close(changed[:, :half], factor * hidden[:, :half])
            assert torch.equal(changed[:, half:], hidden[:, half:]) and not torch.equal(filtered, skip)
    assert free_u_of(Decoder(4), FACTORS, "v2").widths == (4,)  # type: ignore[union-attr]
    assert free_u_of(Decoder(4), None, "v2") is None


def test_the_second_version_scales_by_how_far_the_mean_stands_out() -> None:
    hidden = maps(4)
    changed, _ = FreeU(widths=(4,), b=(1.5, 1.0))(hidden, hidden)
    mean = hidden.mean(1)
    share = (mean - mean.flatten(1).min(1).values[:, None, None]) / (
        (mean.flatten(1).max(1).values - mean.flatten(1).min(1).values)[:, None, None]
    )
    torch.testing.assert_close(changed[:, :2], hidden[:, :2] * (0.5 * share + 1)[:, None])
    alone, _ = FreeU(widths=(4,), b=(1.5, 1.0))(hidden[1:], hidden[1:])
    torch.testing.assert_close(alone, changed[1:])


@pytest.mark.parametrize("hidden", [torch.zeros(1, 4, 3, 3), torch.full((1, 4, 3, 3), 2.0), maps(4, (1, 1))])
def test_a_constant_map_is_left_as_it_is(hidden: Tensor) -> None:
    changed, filtered = FreeU(widths=(4,), b=(1.5, 1.0))(hidden, hidden)
    assert torch.equal(changed, hidden) and filtered.isfinite().all()


def test_the_filter_scales_the_mean_and_keeps_the_rest() -> None:
    rows, columns = torch.arange(8)[:, None], torch.arange(8)[None]
    flat, fast = torch.full((8, 8), 3.0), torch.cos(torch.pi * rows) * torch.cos(torch.pi / 2 * columns)
    filtered = scale_low_frequencies((flat + fast)[None, None], 1, 0.2)
    torch.testing.assert_close(filtered[0, 0], 0.2 * flat + fast)
    torch.testing.assert_close(scale_low_frequencies(maps(3, (5, 7)), 1, 1.0), maps(3, (5, 7)))
    assert scale_low_frequencies(maps(3).bfloat16(), 1, 0.2).dtype == torch.bfloat16


def test_a_network_is_as_it_was_afterwards() -> None:
    network, hidden = Decoder(4), maps(4)
    with pytest.raises(ZeroDivisionError), transformed_skips(network, free_u_of(network, FACTORS, "v1")):
        assert not torch.equal(network.join(hidden, hidden)[0], hidden)
        raise ZeroDivisionError
    assert network.skip_transform is None and network.join(hidden, hidden)[0] is hidden
    with transformed_skips(hidden, None):
        pass


@pytest.mark.parametrize("factors", [(1.2, 1.4, -0.1, 0.2), (float("nan"), 1.0, 1.0, 1.0), (1.0, float("inf"), 1.0, 1.0)])
def test_factors_out_of_range_are_refused(factors: Any) -> None:
    with pytest.raises(UserError, match="free_u must be four numbers b1,b2,s1,s2 of 0 or more, got"):
        free_u_of(Decoder(4), factors, "v1")


def test_a_network_without_skips_is_refused() -> None:
    network = DiT(sample_size=4, patch_size=2, hidden_size=8, depth=1, num_heads=2)
    with pytest.raises(UserError, match="free_u is for U-Nets with skips, and DiT has none"):
        free_u_of(network, FACTORS, "v2")
