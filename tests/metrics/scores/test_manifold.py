from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import metrics.scores.neighbours as neighbours
from metrics.scores.manifold import ManifoldScores, PrecisionRecall, precision_recall
from metrics.scores.neighbours import Balls, ball_radii, clouds, count_in_balls


def _normal(count: int, dim: int, seed: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def _distances(a: Tensor, b: Tensor) -> np.ndarray:
    x, y = a.double().numpy(), b.double().numpy()
    return np.stack([((row - y) ** 2).sum(1) for row in x])


def _brute_force(real: Tensor, fake: Tensor, k: int) -> ManifoldScores:
    """The definitions on full float64 matrices of differences."""
    radii = []
    for features in (real, fake):
        own = _distances(features, features)
        np.fill_diagonal(own, np.inf)
        radii.append(np.sort(own, axis=1)[:, k - 1])
    between = _distances(real, fake)
    in_real, in_fake = between <= radii[0][:, None], between <= radii[1]
    return ManifoldScores(
        precision=float(in_real.any(0).mean()),
        recall=float(in_fake.any(1).mean()),
        density=float(in_real.sum(0).mean() / k),
        coverage=float(in_real.any(1).mean()),
    )


def _on_the_edge(real: Tensor, k: int, seed: int) -> Tensor:
    """Fakes on the spheres of real balls, in and out by some 1e-8 to 1e-6 of the radius."""
    distances = torch.cdist(real.double(), real.double())
    radii = distances.kthvalue(k + 1, dim=1).values
    directions = torch.nn.functional.normalize(_normal(len(real), real.shape[1], seed).double(), dim=1)
    offsets = 1.0 + 1e-6 * _normal(len(real), 1, seed + 1).double() ** 3
    return (real.double() + directions * radii[:, None] * offsets).float()


def _lattice(count: int, dim: int, seed: int) -> Tensor:
    """Small integers: masses of exact ties and duplicates."""
    return torch.randint(0, 3, (count, dim), generator=torch.Generator().manual_seed(seed)).float()


def _tight_clusters(count: int, dim: int, seed: int) -> Tensor:
    """Four clusters whose width is lost in float32 products of rows this far from the mean."""
    return 50.0 * _normal(4, dim, 0)[torch.arange(count) % 4] + 1e-2 * _normal(count, dim, seed)


def _hard_case(name: str) -> tuple[Tensor, Tensor]:
    if name == "edges":
        real = _normal(150, 16, 0)
        return real, _on_the_edge(real, 3, 1)
    if name == "lattice":
        return _lattice(200, 5, 0), _lattice(180, 5, 1)
    if name == "clusters":
        return _tight_clusters(160, 24, 1), _tight_clusters(150, 24, 2)
    if name == "copies":
        real = _normal(120, 8, 0)
        return real, real[torch.randint(0, 120, (90,), generator=torch.Generator().manual_seed(1))]
    if name == "outlier":
        real, fake = _normal(100, 8, 0), _normal(90, 8, 1)
        real[3] *= 1e4
        fake[5] *= 3e5
        return real, fake
    return 1e-25 * _normal(80, 8, 0), 1e-25 * _normal(70, 8, 1)


@pytest.mark.parametrize("name", ["edges", "lattice", "clusters", "copies", "outlier", "tiny values"])
@pytest.mark.parametrize("block_rows", [16, 1000])
def test_counts_equal_float64_brute_force(name: str, block_rows: int) -> None:
    real, fake = _hard_case(name)
    for k in (1, 3, 5):
        assert precision_recall(real, fake, k, block_rows) == _brute_force(real, fake, k)


@pytest.mark.parametrize("name", ["edges", "lattice", "clusters"])
def test_hard_cases_are_lost_without_the_error_bound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_relative_error", lambda dim, unit_roundoff: 0.0)
    monkeypatch.setattr(neighbours, "_UNDERFLOW", 0.0)
    real, fake = _hard_case(name)
    assert precision_recall(real, fake) != _brute_force(real, fake, 3)


def test_float32_error_stays_within_its_bound() -> None:
    real, fake = _normal(300, 2048, 0).abs() + 3.0, _normal(200, 2048, 1).abs() + 3.0
    x, y = clouds(real, fake)
    tile = neighbours._tile(x.rows32(slice(0, 300)), x.norms32, y.rows32(slice(0, 200)), y.norms32, neighbours._buffer(x, y))
    error = np.abs(tile - _distances(real, fake) * x.scale**2)
    bound = x.error32 * (x.norms[:, None] + y.norms)
    assert error.max() > 0.0
    assert bool((error <= bound).all())


def test_masses_of_close_pairs_go_through_float64_products(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"crowded": 0, "bulk": 0, "pairs": 0}

    def count(name: str, key: str, size: object) -> None:
        inner = getattr(neighbours, name)

        def counted(*args: object) -> object:
            calls[key] += size(args)  # type: ignore[operator]
            return inner(*args)

        monkeypatch.setattr(neighbours, name, counted)

    count("_crowded_radii", "crowded", lambda args: len(args[1]))
    count("_bulk_distances", "bulk", lambda args: 1)
    count("pair_distances", "pairs", lambda args: len(args[1]))
    real, fake = _tight_clusters(400, 24, 1), _tight_clusters(380, 24, 2)
    assert precision_recall(real, fake, block_rows=128) == _brute_force(real, fake, 3)
    assert calls["crowded"] == 780
    assert calls["bulk"] > 12
    assert calls["pairs"] < 20 * 780, "float64 products settle all but a few pairs of each row"
    calls.update(crowded=0, bulk=0, pairs=0)
    one = _normal(1, 64, 0).repeat(500, 1)
    one[0] += 1.0  # The mean is not the point itself.
    scores = precision_recall(one, one[1:], block_rows=128)
    assert (scores.precision, scores.recall, scores.coverage) == (1.0, 499 / 500, 1.0)
    assert calls["pairs"] < 5000, "250,000 pairs of copies are settled in bulk"


def test_rows_equal_to_rounding_count_as_one() -> None:
    real = _normal(60, 32, 0) + 5.0
    noisy = real * (1.0 + 1e-8 * _normal(60, 32, 1))  # Less than half a unit of float32: some bits flip, most do not.
    pairs = torch.cat([real, real, real, real])
    scores = precision_recall(pairs, noisy.float())
    assert (scores.precision, scores.coverage) == (1.0, 1.0)


def test_precision_of_torch_products_has_no_effect() -> None:
    real, fake = _normal(300, 64, 0), _normal(280, 64, 1)
    expected = precision_recall(real, fake)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # bfloat16 products on processors that have them
    try:
        assert precision_recall(real, fake) == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_radii_and_counts_are_those_of_the_definitions() -> None:
    real, fake = _normal(70, 12, 0) + 2.0, _normal(50, 12, 1) + 2.0
    x, y = clouds(real, fake, block_rows=32)
    own = _distances(real, real)
    np.fill_diagonal(own, np.inf)
    radii = ball_radii(x, 4)
    np.testing.assert_allclose(radii, np.sort(own, axis=1)[:, 3] * x.scale**2, rtol=1e-15)
    counts = count_in_balls(Balls(x, radii), Balls(y, ball_radii(y, 4)))
    inside = _distances(real, fake) <= np.sort(own, axis=1)[:, 3:4]
    np.testing.assert_array_equal(counts.num_real_balls, inside.sum(0))
    np.testing.assert_array_equal(counts.is_real_covered, inside.any(1))


def test_counts_by_hand() -> None:
    # Real 0, 1, 3 (k=1): radii 1, 1, 2. Fake 0.5, 10, 11: radii 9.5, 1, 1.
    scores = precision_recall(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [10.0], [11.0]]), k=1)
    assert scores.precision == pytest.approx(1 / 3)
    assert scores.recall == pytest.approx(1.0)  # the ball of 0.5 reaches to 10 and back to -9
    assert scores.density == pytest.approx(2 / 3)  # 0.5 lies in the balls of 0 and 1 only (3 - 0.5 > 2)
    assert scores.coverage == pytest.approx(2 / 3)


def test_collapsed_generator_is_precise_and_recalls_little() -> None:
    real = _normal(300, 4, 0)
    collapsed = real[:1] + 0.01 * _normal(300, 4, 1)
    scores = precision_recall(real, collapsed)
    assert scores.precision > 0.95
    assert scores.recall < 0.05
    assert scores.coverage < 0.1


def test_scattered_generator_recalls_and_is_not_precise() -> None:
    scores = precision_recall(0.1 * _normal(300, 4, 2), 5.0 * _normal(300, 4, 3))
    assert scores.recall > 0.95
    assert scores.precision < 0.05


def test_identical_sets_and_distant_sets() -> None:
    real = _normal(50, 8, 4)
    same = precision_recall(real, real.clone())
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert same.density == pytest.approx((50 * 4) / (3 * 50), rel=0.3)  # itself and its k-neighbourhood
    far = precision_recall(real, real + 100.0)
    assert (far.precision, far.recall, far.density, far.coverage) == (0.0, 0.0, 0.0, 0.0)


def test_duplicates_are_found_although_their_balls_have_no_radius() -> None:
    duplicates = _normal(3, 64, 5).repeat(6, 1) + 300.0
    scores = precision_recall(duplicates, duplicates.clone())
    assert (scores.precision, scores.recall, scores.coverage) == (1.0, 1.0, 1.0)
    constant = torch.full((5, 3), 7.0)
    assert precision_recall(constant, constant).precision == 1.0


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
def test_blocks_and_order_change_nothing(block_rows: int) -> None:
    real, fake = _normal(40, 5, 6), 1.3 * _normal(30, 5, 7)
    expected = precision_recall(real, fake)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert precision_recall(real.flip(0), fake[order], block_rows=block_rows) == expected
    assert precision_recall(real.double(), fake.double(), block_rows=block_rows) == expected


def test_equals_torch_fidelity() -> None:
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    real, fake = _normal(80, 6, 8), 1.2 * _normal(70, 6, 9)
    theirs = metric_prc.prc_features_to_metric(
        fake.double(), real.double(), prc_neighborhood=3, prc_batch_size=10000, save_cpu_ram=False, verbose=False
    )
    scores = precision_recall(real, fake, k=3)
    assert scores.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert scores.recall == pytest.approx(theirs["recall"], abs=1e-6)


def test_metric_and_bad_input() -> None:
    metric = PrecisionRecall(feature="f", k=2)
    metric.update({"f": _normal(10, 3, 0)}, real=True)
    metric.update({"f": _normal(10, 3, 1)}, real=False)
    assert set(metric.compute()) == {"precision", "recall", "density", "coverage"}
    assert metric.parameters == {"feature": "f", "k": 2}
    with pytest.raises(ValueError, match="k must lie between 1 and the smaller set minus one"):
        precision_recall(torch.zeros(3, 2), torch.zeros(5, 2), k=3)
    with pytest.raises(ValueError, match=r"\(N, D\) and \(M, D\)"):
        precision_recall(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="k must be at least 1"):
        PrecisionRecall(k=0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        precision_recall(torch.zeros(9, 2), torch.full((9, 2), torch.nan))
    with pytest.raises(ValueError, match="NaN or infinity"):
        precision_recall(torch.full((9, 2), torch.inf), torch.zeros(9, 2))
