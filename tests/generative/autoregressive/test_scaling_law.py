"""Power laws: exact recovery, what is counted, wrong input."""

from __future__ import annotations

import math

import pytest

from generative.autoregressive.next_scale.var import VAR
from generative.autoregressive.scaling_law import PowerLaw, count_weights, fit_power_law
from generative.core.errors import UserError


def test_an_exact_law_is_recovered() -> None:
    sizes = [18e6, 1.3e8, 6e8, 2e9]
    law = fit_power_law(sizes, [(2.5e-3 * size) ** -0.2 for size in sizes])
    assert law.alpha == pytest.approx(-0.2) and law.beta == pytest.approx(2.5e-3) and law.correlation == pytest.approx(-1)
    assert law.predict(1e10) == pytest.approx((2.5e-3 * 1e10) ** -0.2)


def test_least_squares_of_the_logarithms() -> None:
    law = fit_power_law([math.e, math.e**2, math.e**3], [math.e**3, math.e**1, math.e**2])
    assert law.alpha == pytest.approx(-0.5) and law.correlation == pytest.approx(-0.5)
    assert law.log_beta == pytest.approx(-6) and law.predict(math.e**2) == pytest.approx(math.e**2)


def test_a_flat_law_overflows_nothing() -> None:
    law = fit_power_law([1e6, 1e7, 1e8], [2.0, 2.0 - 1e-9, 2.0 - 2e-9])
    assert law.predict(1e7) == pytest.approx(2.0)
    assert PowerLaw(-1e-6, 1e4, -1.0).beta == math.inf


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_the_weights_of_blocks_are_counted(shared_adaln: bool) -> None:
    width, depth, codes = 64, 3, 11
    network = VAR(
        num_codes=codes, num_classes=5, latent_channels=4, patch_nums=(1, 2), hidden_size=width, depth=depth, num_heads=1,
        shared_adaln=shared_adaln,
    )  # fmt: skip
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    counted = count_weights({f"transformer.{name}": shape for name, shape in shapes.items()})
    left_out = width * (6 + 1 + 5 + 2) + codes * (width + 1)  # classes, start, positions, levels; head
    assert counted == sum(tensor.numel() for tensor in network.state_dict().values()) - left_out
    if not shared_adaln:
        assert counted == pytest.approx(18 * depth * width**2, rel=0.1)  # the paper's count


@pytest.mark.parametrize(
    ("sizes", "losses", "message"),
    [
        ([1.0, 2.0], [2.0, 1.0], "at least 3 models, got 2"),
        ([1.0, 2.0, 0.0], [3.0, 2.0, 1.0], "a size of 0.0"),
        ([1.0, 2.0, 3.0], [3.0, math.nan, 1.0], "a loss of nan"),
        ([2.0, 2.0, 2.0], [3.0, 2.0, 1.0], "all have a size of 2"),
        ([1.0, 2.0, 3.0], [3.0, 3.0, 3.0], "all have a loss of 3"),
    ],
)
def test_wrong_input_is_refused(sizes: list[float], losses: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_power_law(sizes, losses)
