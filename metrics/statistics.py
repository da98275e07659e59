"""Reference statistics: an npz of `mu` and `sigma` that pytorch-fid can read too, plus where they come from.

Read with `allow_pickle=False` always. Files of other tools have no provenance; they are accepted, and the
caller says so.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.moments import Gaussian

#: Provenance fields that change the features, so must agree before two sets of statistics may be compared.
PROTOCOL_FIELDS = ("extractor", "weights_sha256", "feature", "input_size", "resizer", "normalization")
_FORMAT = "triptych-statistics-1"
_NPZ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # zipfile on an encrypted member or an unknown compression
)
_SYMMETRY_TOLERANCE = 1e-4  # Relative to the largest entry; files stored in float32 are off by 1e-7.


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of a feature over an image set.

    Args:
        mu: (D,) float64.
        sigma: (D, D) float64, unbiased.
        provenance: What `save_statistics` recorded, or None for a file of another tool.
        path: Where they were read, for messages.
    """

    mu: Tensor
    sigma: Tensor
    provenance: dict[str, Any] | None = None
    path: str = "statistics"

    def gaussian(self) -> Gaussian:
        """Return them as the fitted Gaussian that the Frechet distance takes."""
        return Gaussian(mu=self.mu, sigma=self.sigma, num_samples=(self.provenance or {}).get("num_images"))


def npz_keys(path: Path) -> list[str]:
    """List the arrays of an npz file without reading them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an npz file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _NPZ_ERRORS as error:
        raise ValueError(f"{path} is not an npz file, or is truncated: write it again.") from error


def load_statistics(path: Path) -> FeatureStatistics:
    """Read `mu` (D,) and `sigma` (D, D) from an npz of ours, pytorch-fid, clean-fid, EDM or ADM.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is missing, or a shape, dtype or value is not that of a mean and covariance.
    """
    keys = npz_keys(path)
    if not {"mu", "sigma"} <= set(keys):
        raise ValueError(f"{path} holds {', '.join(keys) or 'nothing'}: statistics need the arrays mu (D,) and sigma (D, D).")
    try:
        with np.load(path, allow_pickle=False) as archive:
            mu, sigma = archive["mu"], archive["sigma"]
            provenance = str(archive["provenance"]) if "provenance" in keys else None
    except _NPZ_ERRORS as error:
        raise ValueError(f"{path} can't be read ({error}): write the statistics again.") from error
    _check_moments(mu, sigma, path)
    return FeatureStatistics(
        mu=torch.from_numpy(mu.astype(np.float64)),
        sigma=torch.from_numpy(sigma.astype(np.float64)),
        provenance=_parse_provenance(provenance, path),
        path=str(path),
    )


def _check_moments(mu: np.ndarray, sigma: np.ndarray, path: Path) -> None:
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ValueError(f"{path} holds mu of dtype {mu.dtype} and sigma of {sigma.dtype}: both must be floats.")
    if mu.ndim != 1 or len(mu) == 0 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{path} holds mu of shape {mu.shape} and sigma of {sigma.shape}: expected (D,) and (D, D).")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path} holds NaN or infinity: compute the statistics again.")
    if np.abs(sigma - sigma.T).max() > _SYMMETRY_TOLERANCE * np.abs(sigma).max():
        raise ValueError(f"{path} holds a sigma that is not symmetric: it is not a covariance.")


def _parse_provenance(text: str | None, path: Path) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        provenance = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} holds a provenance that is not JSON: write the statistics again.") from error
    if not isinstance(provenance, dict) or provenance.get("format") != _FORMAT:
        raise ValueError(f"{path} holds a provenance of another format than {_FORMAT}: write the statistics again.")
    count = provenance.get("num_images")
    if count is not None and not (isinstance(count, int) and count >= 0):
        raise ValueError(f"{path} holds a provenance with num_images {count!r}: write the statistics again.")
    return provenance


def save_statistics(path: Path, gaussian: Gaussian, provenance: Mapping[str, Any]) -> None:
    """Write statistics under a temporary name and rename, so the file is whole or absent.

    Args:
        path: The npz to write; must not exist.
        gaussian: The fitted mean and covariance.
        provenance: JSON-able; `PROTOCOL_FIELDS`, `num_images` and `source` are what readers look for.

    Raises:
        FileExistsError: If `path` exists.
    """
    if path.exists():
        raise FileExistsError(f"output file {path} exists: remove it or choose another name.")
    record = json.dumps({**provenance, "format": _FORMAT, "num_images": gaussian.num_samples}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(
                stream,
                mu=gaussian.mu.numpy(),
                sigma=gaussian.covariance().numpy(),
                provenance=np.array(record),
            )
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def check_protocol(statistics: FeatureStatistics, protocol: Mapping[str, Any], against: str) -> None:
    """Raise if statistics were made under another protocol than the one they are compared under.

    Args:
        statistics: What was read; without provenance nothing can be checked but the caller should say so.
        protocol: The `PROTOCOL_FIELDS` of the other side.
        against: What the other side is, for the message.

    Raises:
        ValueError: If a field differs; a distance across protocols would be a number without meaning.
    """
    if statistics.provenance is None:
        return
    differing = [field for field in PROTOCOL_FIELDS if statistics.provenance.get(field) != protocol.get(field)]
    if differing:
        field = differing[0]
        raise ValueError(
            f"{statistics.path} was made with {field} {statistics.provenance.get(field)!r}, but {against} "
            "has "
            f"{protocol.get(field)!r}: score under one protocol, or save the statistics again with "
            "--save-stats."
        )
