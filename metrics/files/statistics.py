"""Reference statistics: what a score needs of an image set without the images, and where it comes from.

Files of other tools are read as they are. They do not say how they were made; they are accepted, and the caller says so.

| file | arrays | written by |
|---|---|---|
| .npz | ``mu`` (D,), ``sigma`` (D, D) | pytorch-fid, clean-fid, EDM, TTUR |
| .npz | ``feats`` (N, D) | clean-fid, for KID |
| .npz | ``mu``, ``sigma``, ``mu_s``, ``sigma_s``, images ``arr_0`` | ADM: pool3, spatial, images for precision and recall |
| .pkl | {num_images, fid: {mu, sigma}, fd_dinov2: {mu, sigma}} | EDM2 (by ``metrics.files.safe_pickle``, which runs nothing) |
| .npy | (N, D) embeddings | CMMD's ``--ref_embed_file`` |

Our own .npz holds any number of features: the moments of the first as ``mu`` and ``sigma``, so that those tools can read it too
(Inception-v3's pool3 goes first), of its spatial feature as ``mu_s`` and ``sigma_s``, of others as ``mu_1``, ...; feature
vectors as ``features_0``, ...; and ``provenance``, a JSON text that says which is which and under which protocol it was made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.files import safe_pickle
from metrics.files.arrays import holds_image_array, npz_keys, read_npy, read_npz
from metrics.files.reference import PROTOCOL_FIELDS, FeatureEntry, ReferenceStatistics, check_protocol
from metrics.files.whole import whole_file

__all__ = [
    "PROTOCOL_FIELDS",
    "FeatureEntry",
    "ReferenceStatistics",
    "check_protocol",
    "holds_images",
    "is_statistics",
    "load_statistics",
    "save_statistics",
]

_FORMAT = "triptych-statistics-2"
_PICKLES = (".pkl", ".pickle")
_SYMMETRY_TOLERANCE = 1e-4  # Relative to the largest entry; files stored in float32 are off by 1e-7.
_POOL3 = ("inception-v3", "pool3")
_SPATIAL = ("inception-v3", "spatial")
#: EDM2's names -> extractor and feature.
_EDM2_FEATURES = {"fid": _POOL3, "fd_dinov2": ("dinov2-vit-l-14", "cls")}


def is_statistics(path: Path) -> bool:
    """Return whether a path is a statistics file, by its name and the names in it; unreadable ones are not."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return path.is_file() and not holds_image_array(path)
    if suffix in _PICKLES:
        return path.is_file()
    if suffix != ".npz" or not path.is_file():
        return False
    try:
        keys = set(npz_keys(path))
    except ValueError:
        return False
    return {"mu", "sigma"} <= keys or {"mu_s", "sigma_s"} <= keys or bool(keys & {"feats", "provenance"})


def holds_images(path: Path) -> bool:
    """Return whether a statistics file holds images too, as ADM's reference files do."""
    return path.suffix.lower() == ".npz" and "arr_0" in npz_keys(path)


def load_statistics(path: Path) -> ReferenceStatistics:
    """Read a statistics file of ours or of another tool; see the module's table.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or a shape, type or value is not that of a mean, a covariance or features.
    """
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        return _from_edm2(path)
    if suffix == ".npy":
        features = _checked_features(read_npy(path), path, "the array")
        entry = FeatureEntry(None, None, features=features, num_images=len(features))
        return ReferenceStatistics(str(path), (entry,), num_images=len(features))
    keys = npz_keys(path)
    if "provenance" in keys:
        return _from_ours(path, keys)
    entries = []
    if {"mu", "sigma"} <= set(keys):
        entries.append(FeatureEntry(None, None, *_checked_moments(read_npz(path, "mu"), read_npz(path, "sigma"), path)))
    if {"mu_s", "sigma_s"} <= set(keys):
        entries.append(FeatureEntry(*_SPATIAL, *_checked_moments(read_npz(path, "mu_s"), read_npz(path, "sigma_s"), path)))
    if "feats" in keys:
        features = _checked_features(read_npz(path, "feats"), path, "feats")
        if entries and entries[0].extractor is None and entries[0].dimension == features.shape[1]:
            entries[0] = replace(entries[0], features=features, num_images=len(features))
        else:
            entries.append(FeatureEntry(None, None, features=features, num_images=len(features)))
    if not entries:
        raise ValueError(
            f"{path} holds {', '.join(keys) or 'nothing'}: statistics need the arrays mu (D,) and sigma (D, D), or feats (N, D)."
        )
    counts = (entry.num_images for entry in entries if entry.num_images is not None)
    return ReferenceStatistics(str(path), tuple(entries), num_images=next(counts, None))


def _from_edm2(path: Path) -> ReferenceStatistics:
    # EDM2 publishes its references as pickles only. This reader runs nothing and imports nothing of what they name.
    content = safe_pickle.load(path)
    if not isinstance(content, dict) or not set(_EDM2_FEATURES) & set(content):
        raise ValueError(f"{path} is not a statistics file of EDM2: expected a dict with fid or fd_dinov2.")
    count = _checked_count(content.get("num_images"), path)
    entries = []
    for key, names in _EDM2_FEATURES.items():
        moments = content.get(key)
        if moments is None:
            continue
        mu, sigma = (moments.get("mu"), moments.get("sigma")) if isinstance(moments, dict) else (None, None)
        if not isinstance(mu, np.ndarray) or not isinstance(sigma, np.ndarray):
            raise ValueError(f"{path} holds {key} without the arrays mu and sigma: write the statistics again.")
        entries.append(FeatureEntry(*names, *_checked_moments(mu, sigma, path), num_images=count))
    if not entries:
        raise ValueError(f"{path} holds no moments: write the statistics again.")
    return ReferenceStatistics(str(path), tuple(entries), num_images=count)


def _from_ours(path: Path, keys: Sequence[str]) -> ReferenceStatistics:
    record = _parse_provenance(read_npz(path, "provenance"), path)
    count = _checked_count(record.get("num_images"), path)
    entries = []
    for item in record["entries"]:
        entries.append(_entry_of_ours(path, keys, item, count))
    source, digest = record.get("source"), record.get("source_sha256")
    return ReferenceStatistics(
        str(path),
        tuple(entries),
        num_images=count,
        source=None if source is None else str(source),
        source_sha256=None if digest is None else str(digest),
        has_provenance=True,
    )


def _entry_of_ours(path: Path, keys: Sequence[str], item: dict[str, Any], count: int | None) -> FeatureEntry:
    mu, sigma, features = (item.get(name) for name in ("mu", "sigma", "features"))
    missing = [name for name in (mu, sigma, features) if name is not None and name not in keys]
    if missing or (mu is None) != (sigma is None) or (mu is None and features is None):
        raise ValueError(f"{path} lacks arrays that its provenance names: write the statistics again.")
    mean = covariance = vectors = None
    if mu is not None and sigma is not None:
        mean, covariance = _checked_moments(read_npz(path, mu), read_npz(path, sigma), path)
    if features is not None:
        vectors = _checked_features(read_npz(path, features), path, features)
    if mean is not None and vectors is not None and vectors.shape[1] != len(mean):
        raise ValueError(f"{path} holds {mu} and {features} of different dimensions: write the statistics again.")
    protocol = item["protocol"]
    return FeatureEntry(str(protocol.get("extractor")), str(protocol.get("feature")), mean, covariance, vectors, protocol, count)


def _parse_provenance(text: np.ndarray, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds a provenance that is not JSON: write the statistics again.") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"{path} holds a provenance of another format than {_FORMAT}: write the statistics again.")
    items = record.get("entries")
    is_sound = isinstance(items, list) and bool(items)
    for item in items if isinstance(items, list) else []:
        is_sound = is_sound and isinstance(item, dict) and isinstance(item.get("protocol"), dict)
        is_sound = is_sound and all(isinstance(item.get(key), (str, type(None))) for key in ("mu", "sigma", "features"))
    if not is_sound:
        raise ValueError(f"{path} holds a provenance without entries: write the statistics again.")
    return record


def _checked_count(count: object, path: Path) -> int | None:
    if count is not None and not (type(count) is int and count >= 0):
        raise ValueError(f"{path} holds num_images {str(count)[:40]!r}, which is no count: write the statistics again.")
    return count


def _checked_moments(mu: np.ndarray, sigma: np.ndarray, path: Path) -> tuple[Tensor, Tensor]:
    """Return a mean (D,) and a covariance (D, D) as float64."""
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ValueError(f"{path} holds mu of dtype {mu.dtype} and sigma of {sigma.dtype}: both must be floats.")
    if mu.ndim != 1 or len(mu) == 0 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{path} holds mu of shape {mu.shape} and sigma of {sigma.shape}: expected (D,) and (D, D).")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path} holds NaN or infinity: compute the statistics again.")
    with np.errstate(over="ignore"):  # Entries near the largest float: their difference is infinite, so not symmetric.
        is_symmetric = np.abs(sigma - sigma.T).max() <= _SYMMETRY_TOLERANCE * np.abs(sigma).max()
    if not is_symmetric:
        raise ValueError(f"{path} holds a sigma that is not symmetric: it is not a covariance.")
    return torch.from_numpy(mu), torch.from_numpy(sigma)


def _checked_features(features: np.ndarray, path: Path, name: str) -> Tensor:
    """Return features (N, D) as float32."""
    if features.dtype.kind != "f" or features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"{path} holds {name} of dtype {features.dtype} and shape {features.shape}: features must be floats (N, D)."
        )
    with np.errstate(over="ignore"):  # What float32 can't hold becomes infinite and is refused below.
        values = np.array(features, dtype=np.float32, order="C")
    if not np.isfinite(values).all():
        raise ValueError(f"{path} holds NaN or infinity in {name}: compute the features again.")
    return torch.from_numpy(values)


def save_statistics(
    path: Path,
    entries: Sequence[FeatureEntry],
    num_images: int,
    source: str | None = None,
    source_sha256: str | None = None,
) -> None:
    """Write statistics under a temporary name and rename, so the file is whole or absent.

    Args:
        path: The npz to write; must not exist.
        entries: What to write, each with its names and provenance.
        num_images: Images they were made from.
        source: What these were.
        source_sha256: Fingerprint of them.

    Raises:
        FileExistsError: If ``path`` exists.
        ValueError: If there is no entry, or one is of no named feature, empty, or of the same feature as another.
    """
    if path.exists():
        raise FileExistsError(f"output file {path} exists: remove it or choose another name.")
    arrays, items = _layout(entries)
    record = {"format": _FORMAT, "num_images": num_images, "source": source, "source_sha256": source_sha256, "entries": items}
    arrays["provenance"] = np.array(json.dumps(record, sort_keys=True))
    with whole_file(path) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # Floats don't compress: 4 % smaller, 20 times slower.


def _layout(entries: Sequence[FeatureEntry]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Return arrays by name, and for each entry the names of its arrays and its protocol."""
    names = [entry.names for entry in entries]
    if not entries or None in {name for pair in names for name in pair} or len(set(names)) < len(names):
        raise ValueError(f"entries must be of different named features, got {names}.")
    with_moments = [entry.names for entry in entries if entry.mu is not None and entry.sigma is not None]
    others = [pair for pair in with_moments if pair != _SPATIAL]
    first = _POOL3 if _POOL3 in others else next(iter(others), None)
    arrays: dict[str, np.ndarray] = {}
    items: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        item: dict[str, Any] = {"protocol": {**(entry.provenance or {}), "extractor": entry.extractor, "feature": entry.feature}}
        if entry.mu is not None and entry.sigma is not None:
            suffix = "" if entry.names == first else "_s" if entry.names == _SPATIAL else f"_{index + 1}"
            item.update(mu=f"mu{suffix}", sigma=f"sigma{suffix}")
            arrays[item["mu"]] = entry.mu.double().numpy()
            arrays[item["sigma"]] = entry.sigma.double().numpy()
        if entry.features is not None:
            item["features"] = f"features_{index}"
            arrays[item["features"]] = entry.features.float().numpy()
        if len(item) == 1:
            raise ValueError(f"entry {entry.extractor} {entry.feature} has neither moments nor features.")
        items.append(item)
    return arrays, items
