from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.frechet import gaussian_distance
from metrics.moments import Gaussian, MomentAccumulator
from metrics.statistics import FeatureStatistics, check_protocol, load_statistics, save_statistics

_PROTOCOL = {
    "extractor": "inception-v3",
    "weights_sha256": "ab" * 32,
    "feature": "pool3",
    "input_size": 299,
    "resizer": "clean",
    "normalization": "(x - 128) / 128",
}


def _gaussian(count: int = 30, dim: int = 6) -> Gaussian:
    accumulator = MomentAccumulator()
    accumulator.append(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)))
    return accumulator.gaussian()


@pytest.mark.parametrize("count", [4, 30])
def test_round_trip_keeps_numbers_and_provenance(tmp_path: Path, count: int) -> None:
    gaussian = _gaussian(count)
    save_statistics(tmp_path / "sub" / "s.npz", gaussian, _PROTOCOL)
    read = load_statistics(tmp_path / "sub" / "s.npz")
    assert read.mu.dtype == read.sigma.dtype == torch.float64
    assert torch.equal(read.sigma, gaussian.covariance())
    assert gaussian_distance(read.gaussian(), gaussian) < 1e-9
    assert read.provenance is not None and read.provenance["num_images"] == count == read.gaussian().num_samples
    assert read.provenance.items() >= _PROTOCOL.items()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["s.npz"], "no temporary file is left"


def test_pytorch_fid_reads_ours_and_we_read_theirs(tmp_path: Path) -> None:
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    gaussian = _gaussian()
    save_statistics(tmp_path / "ours.npz", gaussian, _PROTOCOL)
    mu, sigma = fid_score.compute_statistics_of_path(str(tmp_path / "ours.npz"), None, 1, 6, "cpu")
    assert np.array_equal(mu, gaussian.mu.numpy()) and np.array_equal(sigma, gaussian.covariance().numpy())
    np.savez_compressed(tmp_path / "theirs.npz", mu=mu.astype(np.float32), sigma=sigma)
    theirs = load_statistics(tmp_path / "theirs.npz")
    assert theirs.provenance is None
    assert gaussian_distance(theirs.gaussian(), gaussian) < 1e-10


def test_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="exists: remove it"):
        save_statistics(tmp_path / "s.npz", _gaussian(), _PROTOCOL)
    assert (tmp_path / "s.npz").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mean": np.zeros(3)}, "holds mean: statistics need"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"sigma of \(4, 4\)"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, r"mu of shape \(3, 1\)"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu of shape \(0,\)"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "both must be floats"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "NaN or infinity"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [0.0, 1.0]])}, "not symmetric"),
        ({"mu": np.array([{}, {}]), "sigma": np.eye(2)}, "can't be read"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "provenance": np.array("{")}, "not JSON"),
        ({"mu": np.zeros(1), "sigma": np.eye(1), "provenance": np.array("[]")}, "of another format"),
        (
            {
                "mu": np.zeros(1),
                "sigma": np.eye(1),
                "provenance": np.array('{"format": "triptych-statistics-1", "num_images": "x"}'),
            },
            "num_images 'x'",
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=words) as caught:
        load_statistics(tmp_path / "s.npz")
    assert "s.npz" in str(caught.value)


def test_damage_anywhere_is_one_error(tmp_path: Path) -> None:
    save_statistics(tmp_path / "s.npz", _gaussian(), _PROTOCOL)
    data = (tmp_path / "s.npz").read_bytes()
    rng = np.random.RandomState(0)
    num_refused = 0
    for trial in range(150):
        damaged = bytearray(data[: rng.randint(0, len(data))] if trial % 2 else data)
        for position in rng.randint(0, max(len(damaged), 1), 4):
            if damaged:
                damaged[position] = rng.randint(256)
        (tmp_path / "d.npz").write_bytes(bytes(damaged))
        try:
            load_statistics(tmp_path / "d.npz")
        except ValueError as error:
            assert "d.npz" in str(error)
            num_refused += 1
    assert num_refused > 75
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_statistics(tmp_path / "absent.npz")


@pytest.mark.parametrize("field", sorted(_PROTOCOL))
def test_another_protocol_is_an_error(field: str) -> None:
    statistics = FeatureStatistics(torch.zeros(1), torch.zeros(1, 1), provenance=dict(_PROTOCOL), path="ref.npz")
    check_protocol(statistics, _PROTOCOL, "this run")
    with pytest.raises(ValueError, match=f"ref.npz was made with {field} .* this run has 'other'"):
        check_protocol(statistics, {**_PROTOCOL, field: "other"}, "this run")
    check_protocol(FeatureStatistics(torch.zeros(1), torch.zeros(1, 1)), {}, "this run")
