from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metrics.files.statistics import (
    FeatureEntry,
    check_protocol,
    holds_images,
    is_statistics,
    load_statistics,
    save_statistics,
)
from metrics.scores.frechet import gaussian_distance
from metrics.scores.moments import Gaussian, MomentAccumulator

_PROTOCOL = {
    "extractor": "inception-v3",
    "weights_sha256": "ab" * 32,
    "feature": "pool3",
    "input_size": 299,
    "resizer": "clean",
    "normalization": "(x - 128) / 128",
    "precision": "float32",
}


def _gaussian(count: int = 30, dim: int = 6, seed: int = 0) -> Gaussian:
    accumulator = MomentAccumulator()
    accumulator.append(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))
    return accumulator.gaussian()


def _entry(extractor: str = "inception-v3", feature: str = "pool3", seed: int = 0, dim: int = 6, **fields: Any) -> FeatureEntry:
    gaussian = _gaussian(dim=dim, seed=seed)
    protocol = {**_PROTOCOL, "extractor": extractor, "feature": feature}
    return FeatureEntry(extractor, feature, gaussian.mu, gaussian.covariance(), provenance=protocol, num_images=30, **fields)


def _is_equal(first: FeatureEntry, second: FeatureEntry) -> bool:
    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return all(same(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(FeatureEntry))


def test_round_trip_of_several_features(tmp_path: Path) -> None:
    features = torch.randn(9, 4)
    entries = [
        dataclasses.replace(_entry("dinov2-vit-l-14", "cls", 1, 4), features=features),
        _entry("inception-v3", "spatial", 2, 5),
        _entry(seed=3),
        dataclasses.replace(_entry("clip-vit-l-14-336", "embedding", dim=3), mu=None, sigma=None, features=features[:, :3]),
        _entry("vgg16", "fc2", 4, 4),
    ]
    path = tmp_path / "sub" / "s.npz"
    save_statistics(path, entries, 30, "train", "c" * 64)
    read = load_statistics(path)
    assert (read.num_images, read.source, read.source_sha256, read.has_provenance) == (30, "train", "c" * 64, True)
    assert len(read.entries) == 5
    assert all(_is_equal(ours, entry) for ours, entry in zip(read.entries, entries, strict=True))
    with np.load(path, allow_pickle=False) as archive:
        names = {"mu", "sigma", "mu_s", "sigma_s", "mu_1", "sigma_1", "mu_5", "sigma_5", "features_0", "features_3", "provenance"}
        assert set(archive) == names
        assert np.array_equal(archive["mu"], entries[2].mu) and np.array_equal(archive["mu_s"], entries[1].mu)
    assert [item.name for item in (tmp_path / "sub").iterdir()] == ["s.npz"], "no temporary file is left"
    assert path.stat().st_mode & 0o077 == (tmp_path / "sub").stat().st_mode & 0o066, "others may read it as usual"
    assert is_statistics(path) and not holds_images(path)


def test_find_goes_by_name_then_by_dimension(tmp_path: Path) -> None:
    save_statistics(tmp_path / "s.npz", [_entry(), _entry("vgg16", "fc2", 1)], 30)
    ours = load_statistics(tmp_path / "s.npz")
    found = ours.find("vgg16", "fc2", 6)
    assert found is not None and found.extractor == "vgg16"
    assert ours.find("vgg16", "logits", 6) is None and ours.find("vgg16", "fc2", 7) is None
    gaussian = _gaussian()
    np.savez(tmp_path / "t.npz", mu=gaussian.mu, sigma=gaussian.covariance(), mu_s=np.zeros(2), sigma_s=np.eye(2))
    theirs = load_statistics(tmp_path / "t.npz")
    for extractor, feature, dim, is_found in (
        ("inception-v3", "pool3", 6, True),
        ("vgg16", "fc2", 6, True),
        ("vgg16", "fc2", 5, False),
        ("inception-v3", "spatial", 2, True),
        ("vgg16", "fc2", 2, False),
        ("vgg16", "fc2", None, True),
    ):
        assert (theirs.find(extractor, feature, dim) is not None) == is_found, (extractor, feature, dim)
    assert theirs.describe() == "6-d moments, 2-d moments of inception-v3 spatial"
    assert ours.describe() == "6-d moments of inception-v3 pool3, 6-d moments of vgg16 fc2"


@pytest.mark.parametrize("count", [4, 30])
def test_pytorch_fid_reads_ours_and_we_read_theirs(tmp_path: Path, count: int) -> None:
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    gaussian = _gaussian(count)
    spatial = _entry("inception-v3", "spatial", 2, 5)
    entry = FeatureEntry("inception-v3", "pool3", gaussian.mu, gaussian.covariance(), provenance=_PROTOCOL)
    save_statistics(tmp_path / "ours.npz", [spatial, entry], count)
    mu, sigma = fid_score.compute_statistics_of_path(str(tmp_path / "ours.npz"), None, 1, 6, "cpu")
    assert np.array_equal(mu, gaussian.mu.numpy()) and np.array_equal(sigma, gaussian.covariance().numpy())
    np.savez_compressed(tmp_path / "theirs.npz", mu=mu.astype(np.float32), sigma=sigma)
    theirs = load_statistics(tmp_path / "theirs.npz")
    assert not theirs.has_provenance and theirs.entries[0].provenance is None and theirs.num_images is None
    assert gaussian_distance(theirs.entries[0].gaussian(), gaussian) < 1e-10


@pytest.mark.parametrize("protocol", [2, 4, pickle.HIGHEST_PROTOCOL])
def test_edm2_files(tmp_path: Path, protocol: int) -> None:
    moments = {"mu": np.arange(3.0), "sigma": np.eye(3)}
    content = {"num_images": 7, "fid": moments, "fd_dinov2": {"mu": np.zeros(2), "sigma": np.eye(2)}}
    (tmp_path / "s.pkl").write_bytes(pickle.dumps(content, protocol))
    assert is_statistics(tmp_path / "s.pkl")
    read = load_statistics(tmp_path / "s.pkl")
    assert read.num_images == 7 and not read.has_provenance
    fid, dinov2 = read.find("inception-v3", "pool3", 3), read.find("dinov2-vit-l-14", "cls", 2)
    assert fid is not None and fid.mu is not None and fid.mu.tolist() == [0, 1, 2] and fid.gaussian().num_samples == 7
    assert dinov2 is not None and read.find("vgg16", "fc2", 3) is None
    for bad, words in (
        ([1], "not a statistics file of EDM2"),
        ({"lpips": moments}, "not a statistics file of EDM2"),
        ({"fid": {"mu": np.zeros(3)}}, "fid without the arrays mu and sigma"),
        ({"fid": 3}, "fid without the arrays"),
        ({"fid": None}, "holds no moments"),
        ({"fid": {"mu": np.zeros(3), "sigma": np.eye(2)}}, r"sigma of \(2, 2\)"),
        ({"num_images": -1, "fid": moments}, "num_images '-1', which is no count"),
        ({"num_images": True, "fid": moments}, "which is no count"),
        ({"fid": {"mu": np.zeros(3), "sigma": print}}, r"asks for (__builtin__|builtins)\.print"),
    ):
        (tmp_path / "s.pkl").write_bytes(pickle.dumps(bad, protocol))
        with pytest.raises(ValueError, match=words):
            load_statistics(tmp_path / "s.pkl")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_features_of_other_tools(tmp_path: Path, dtype: Any) -> None:
    features = np.random.RandomState(0).randn(20, 4).astype(dtype)
    np.savez(tmp_path / "kid.npz", feats=features)  # clean-fid's, for KID
    np.save(tmp_path / "ref.npy", np.asfortranarray(features))  # CMMD's --ref_embed_file
    for name in ("kid.npz", "ref.npy"):
        assert is_statistics(tmp_path / name)
        read = load_statistics(tmp_path / name)
        (entry,) = read.entries
        assert read.num_images == 20 and entry.features is not None and entry.mu is None
        assert entry.features.dtype == torch.float32 and np.array_equal(entry.features.numpy(), features.astype(np.float32))
        assert read.find("anything", "at all", 4) is entry and read.find("anything", "at all", 5) is None
        covariance = np.cov(features.astype(np.float64), rowvar=False)
        np.testing.assert_allclose(entry.gaussian().covariance(), covariance, rtol=1e-6)
    np.savez(tmp_path / "both.npz", mu=np.zeros(4), sigma=np.eye(4), feats=features[:, :3])
    assert load_statistics(tmp_path / "both.npz").describe() == "4-d moments, 3-d features"
    np.savez(tmp_path / "both.npz", mu=np.zeros(4), sigma=np.eye(4), feats=features)
    assert load_statistics(tmp_path / "both.npz").describe() == "4-d moments and features"


def test_files_of_adm_hold_images_too(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "ref.npz", images, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=np.eye(2))
    np.savez(tmp_path / "samples.npz", images)
    assert is_statistics(tmp_path / "ref.npz") and holds_images(tmp_path / "ref.npz")
    assert not is_statistics(tmp_path / "samples.npz") and holds_images(tmp_path / "samples.npz")


def test_what_is_no_statistics_file(tmp_path: Path) -> None:
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    (tmp_path / "x.png").write_bytes(b"x")
    (tmp_path / "folder.npz").mkdir()
    for name in ("damaged.npz", "x.png", "absent.npz", "absent.pkl", "folder.npz"):
        assert not is_statistics(tmp_path / name)


def test_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="exists: remove it"):
        save_statistics(tmp_path / "s.npz", [_entry()], 30)
    assert (tmp_path / "s.npz").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "different named features"),
        ([FeatureEntry(None, None, torch.zeros(1), torch.eye(1))], "different named features"),
        ([_entry(), _entry(seed=1)], "different named features"),
        ([FeatureEntry("a", "b")], "neither moments nor features"),
    ],
)
def test_entries_that_can_not_be_told_apart_are_not_written(tmp_path: Path, entries: list[FeatureEntry], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        save_statistics(tmp_path / "s.npz", entries, 1)
    assert not list(tmp_path.iterdir())


def _provenance(**changes: Any) -> np.ndarray:
    items = [{"protocol": _PROTOCOL, "mu": "mu", "sigma": "sigma"}]
    return np.array(json.dumps({"format": "triptych-statistics-2", "num_images": 3, "entries": items, **changes}))


_MOMENTS = {"mu": np.zeros(1), "sigma": np.eye(1)}


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
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 1e308], [-1e308, 1.0]])}, "not symmetric"),
        ({"mu": np.array([{}, {}]), "sigma": np.eye(2)}, "only unpickling would read"),
        ({"feats": np.zeros(3)}, r"feats of dtype float64 and shape \(3,\)"),
        ({"feats": np.zeros((3, 2), int)}, "feats of dtype int64"),
        ({"feats": np.zeros((0, 2))}, r"shape \(0, 2\)"),
        ({"feats": np.full((3, 2), np.inf)}, "NaN or infinity in feats"),
        ({"feats": np.full((3, 2), 1e300)}, "NaN or infinity in feats"),
        ({**_MOMENTS, "provenance": np.array("{")}, "not JSON"),
        ({**_MOMENTS, "provenance": np.array("[]")}, "of another format"),
        (
            {**_MOMENTS, "provenance": np.array('{"format": "triptych-statistics-1"}')},
            "another format than triptych-stat",
        ),
        ({**_MOMENTS, "provenance": np.zeros(3)}, "not JSON"),
        ({**_MOMENTS, "provenance": _provenance(num_images="x")}, "num_images 'x', which is no count"),
        ({**_MOMENTS, "provenance": _provenance(entries=[])}, "without entries"),
        ({**_MOMENTS, "provenance": _provenance(entries=[3])}, "without entries"),
        ({**_MOMENTS, "provenance": _provenance(entries=[{"protocol": {}, "mu": 3}])}, "without entries"),
        ({**_MOMENTS, "provenance": _provenance(entries=[{"protocol": {}}])}, "lacks arrays"),
        ({**_MOMENTS, "provenance": _provenance(entries=[{"protocol": {}, "mu": "mu"}])}, "lacks arrays"),
        ({"mu": np.zeros(1), "provenance": _provenance()}, "lacks arrays that its provenance names"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=words) as caught:
        load_statistics(tmp_path / "s.npz")
    assert "s.npz" in str(caught.value)


def test_shapes_that_the_file_does_not_back_are_not_allocated(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.zeros((2, 3), np.float32))
    content = (tmp_path / "s.npy").read_bytes()
    (tmp_path / "s.npy").write_bytes(content.replace(b"(2, 3), }          ", b"(99999999999, 3), }"))
    with pytest.raises(ValueError, match=r"npy file .*s\.npy can't be read \(an array of shape \(99999999999, 3\)"):
        load_statistics(tmp_path / "s.npy")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_statistics(tmp_path / "absent.npz")


@pytest.mark.parametrize("field", sorted(_PROTOCOL))
def test_another_protocol_is_an_error(field: str) -> None:
    entry = _entry()
    check_protocol(entry, _PROTOCOL, "ref.npz", "this run")
    with pytest.raises(ValueError, match=f"ref.npz was made with {field} .* this run has 'other': score under one protocol"):
        check_protocol(entry, {**_PROTOCOL, field: "other"}, "ref.npz", "this run")
    check_protocol(dataclasses.replace(entry, provenance=None), {}, "ref.npz", "this run")
