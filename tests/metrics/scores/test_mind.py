from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import metrics.scores.mind as mind_module
from metrics.scores.mind import MongeInceptionDistance, monge_inception_distance


def _normal(count: int, dim: int, seed: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def _torch_fidelity_formula(real: Tensor, fake: Tensor, num_directions: int, seed: int) -> float:
    """The definition as its publication and torch-fidelity's master state it, in float64 numpy."""
    generator = torch.Generator().manual_seed(seed)
    count, dim = min(len(real), len(fake)), real.shape[1]
    if len(fake) > count:
        fake = fake[torch.randperm(len(fake), generator=generator)[:count]]
    if len(real) > count:
        real = real[torch.randperm(len(real), generator=generator)[:count]]
    directions = torch.randn(num_directions, dim, generator=generator).double().numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    gaps = np.sort(directions @ fake.double().numpy().T, axis=1) - np.sort(directions @ real.double().numpy().T, axis=1)
    return 3.0 * dim * float(np.mean(gaps**2))


@pytest.mark.parametrize(("n", "m"), [(40, 40), (60, 35), (35, 60)])
def test_equals_the_definition(n: int, m: int) -> None:
    real, fake = _normal(n, 24, 0) + 0.4, 1.2 * _normal(m, 24, 1) + 0.5
    expected = _torch_fidelity_formula(real, fake, 50, 7)
    assert monge_inception_distance(real, fake, 50, 7) == pytest.approx(expected, rel=1e-6)
    assert monge_inception_distance(real.double(), fake.double(), 50, 7) == pytest.approx(expected, rel=1e-6)


def test_a_shift_has_the_closed_form() -> None:
    # Equal shapes: the gap along u is u . shift for every j, so the distance is 3 D mean (u . shift)^2 -> 3 |shift|^2.
    real = _normal(200, 16, 0)
    shift = torch.linspace(-1.0, 2.0, 16)
    value = monge_inception_distance(real, real + shift, num_directions=4000)
    assert value == pytest.approx(3.0 * float(shift.square().sum()), rel=0.1)
    assert monge_inception_distance(real, real + 2.0 * shift, 4000) == pytest.approx(4.0 * value, rel=1e-5)


def test_isotropic_gaussians_have_the_closed_form() -> None:
    # Every projection is N(u . mu, s^2): W2^2 = (u . mu)^2 + (s1 - s2)^2, and its mean 3 (|mu|^2 + D (s1 - s2)^2).
    dim = 8
    shift = torch.full((dim,), 0.5)
    value = monge_inception_distance(_normal(20_000, dim, 1), 1.5 * _normal(20_000, dim, 2) + shift)
    assert value == pytest.approx(3.0 * (float(shift.square().sum()) + dim * 0.25), rel=0.05)


def test_equal_sets_are_at_zero_and_order_has_no_effect() -> None:
    real, fake = _normal(300, 32, 3), _normal(300, 32, 4)
    value = monge_inception_distance(real, fake, 100)
    assert value > 0.1
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert monge_inception_distance(real, real, 100) == 0.0
    assert monge_inception_distance(real, real[order], 100) < 1e-9 * value
    assert monge_inception_distance(real[order], fake.flip(0), 100) == pytest.approx(value, rel=1e-6)
    assert monge_inception_distance(fake, real, 100) == pytest.approx(value, rel=1e-5)


def test_a_common_offset_costs_no_digits() -> None:
    real, fake = _normal(200, 16, 5).double(), _normal(200, 16, 6).double()
    value = monge_inception_distance(real, fake, 50)
    offset = monge_inception_distance((real + 1000.0).float(), (fake + 1000.0).float(), 50)
    assert offset == pytest.approx(value, rel=1e-3)  # The float32 features themselves are off by 6e-5.


def test_seed_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = _normal(90, 12, 7), _normal(70, 12, 8)
    value = monge_inception_distance(real, fake, 40, seed=1)
    assert monge_inception_distance(real, fake, 40, seed=1) == value
    assert monge_inception_distance(real, fake, 40, seed=2) != value
    monkeypatch.setattr(mind_module, "_PROJECTED_ELEMENTS", 210)  # Three directions at a time
    monkeypatch.setattr(mind_module, "_BLOCK_ROWS", 16)
    assert monge_inception_distance(real, fake, 40, seed=1) == pytest.approx(value, rel=1e-6)


def test_metric_and_bad_input() -> None:
    metric = MongeInceptionDistance(feature="f", num_directions=20)
    metric.update({"f": _normal(9, 3, 0)}, real=True)
    for chunk in _normal(12, 3, 1).split(5):
        metric.update({"f": chunk}, real=False)
    expected = monge_inception_distance(_normal(9, 3, 0), _normal(12, 3, 1), 20)
    assert metric.compute() == {"mind": pytest.approx(expected, rel=1e-6)}
    assert metric.parameters == {"feature": "f", "num_directions": 20, "seed": 2020}
    with pytest.raises(ValueError, match=r"\(N, D\) and \(M, D\)"):
        monge_inception_distance(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="at least two samples"):
        monge_inception_distance(torch.zeros(1, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        monge_inception_distance(torch.zeros(4, 2), torch.full((4, 2), torch.nan))
    with pytest.raises(ValueError, match="num_directions must be at least 1"):
        MongeInceptionDistance(num_directions=0)
    with pytest.raises(ValueError, match="num_directions must be at least 1"):
        monge_inception_distance(torch.zeros(4, 2), torch.zeros(4, 2), num_directions=0)
