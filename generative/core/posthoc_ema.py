"""Averages of any length after training: snapshots of power-function averages, combined by least squares on their profiles.

An average of exponent gamma at time t weighs the weights of time tau up to t by its profile,
``(gamma + 1) tau ** gamma / t ** (gamma + 1)``. A sum of averages has the sum of their profiles, so that the combination of
snapshots whose profile comes closest to the one wanted comes closest to its average (arXiv 2312.02696, section 3.2, appendix C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm.auto import tqdm

from generative.core.ema import MAX_STD, std_to_exponent
from generative.core.ema_snapshots import EMASnapshot
from generative.core.errors import UserError
from generative.core.logging import progress_interval

MAX_PROFILE_ERROR = 0.2
"""Relative distance between the profile wanted and the closest that snapshots make, beyond which they cannot tell the average."""
NUM_TRIALS = 200
"""Lengths that are tried, over the whole range, to say which could be told."""


@dataclass(frozen=True)
class Profile:
    """Profile of a power-function average.

    Attributes:
        images_seen: When, in training images.
        std: Relative standard deviation.
    """

    images_seen: float
    std: float

    def response(self, length: int) -> np.ndarray:
        """Share of each of the times 0, 1, ... in the average, on a grid of one image: (length,) float64, 0 from its own time on.

        The shares of times until ``images_seen`` sum to 1.
        """
        exponent = std_to_exponent(self.std)
        shares = (np.arange(max(length, int(self.images_seen) + 1), dtype=np.float64) / self.images_seen) ** exponent
        shares[np.arange(len(shares)) > self.images_seen] = 0.0
        return np.asarray(shares / shares.sum())[:length]


def inner_products(ours: Sequence[Profile], theirs: Sequence[Profile]) -> np.ndarray:
    """Inner products of profiles, the integrals of their products over time (appendix C.3).

    Args:
        ours: Rows.
        theirs: Columns.

    Returns:
        (len(ours), len(theirs)) float64, in 1 / images.
    """
    times = [np.array([profile.images_seen for profile in profiles], dtype=np.float64) for profiles in (ours, theirs)]
    gammas = [np.array([std_to_exponent(profile.std) for profile in profiles]) for profiles in (ours, theirs)]
    t, s = times[0][:, None], times[1][None, :]
    p, q = gammas[0][:, None], gammas[1][None, :]
    # The profile that reaches further counts up to the other's end only: a power of a share, which does not overflow.
    share = np.minimum(t, s) / np.maximum(t, s)
    cut = share ** np.where(t < s, q, p) / np.maximum(t, s)
    return np.asarray((p + 1) * (q + 1) / (p + q + 1) * cut)


def combine(snapshots: Sequence[Profile], wanted: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of snapshots whose sums come closest to the profiles wanted.

    Args:
        snapshots: Profiles there are.
        wanted: Profiles to make.

    Returns:
        Coefficients (len(snapshots), len(wanted)) float64, each column of sum 1; and the relative error of each column: the
        distance between the profile made and the one wanted, as a share of the latter's norm.
    """
    gram, right = inner_products(snapshots, snapshots), inner_products(snapshots, wanted)
    norms = np.sqrt(np.diag(gram))  # of very different size: profiles of unit norm make the better system
    solution = np.linalg.lstsq(gram / np.outer(norms, norms), right / norms[:, None], rcond=None)[0] / norms[:, None]
    coefficients = solution / solution.sum(axis=0)
    for column, profile in enumerate(wanted):
        if profile in snapshots:  # itself, and no rounding
            coefficients[:, column] = np.eye(len(snapshots))[snapshots.index(profile)]
    own = np.diag(inner_products(wanted, wanted))
    squared = own - 2 * (coefficients * right).sum(0) + np.einsum("ij,ik,kj->j", coefficients, gram, coefficients)
    return coefficients, np.sqrt(np.maximum(squared, 0) / own)


def solve(snapshots: Sequence[EMASnapshot], std: float, images_seen: int | None = None) -> tuple[np.ndarray, float]:
    """Coefficients of a run's snapshots for one average.

    Args:
        snapshots: Of one network.
        std: Relative standard deviation wanted.
        images_seen: When; None for the time of the last snapshot.

    Returns:
        A coefficient for each snapshot, and the relative error of the profile they make.

    Raises:
        UserError: If there are no snapshots, the time is not among theirs, or they cannot tell this length.
    """
    if not snapshots:
        raise UserError("there are no EMA snapshots to combine; train with trainer.ema_snapshot_interval_images")
    std_to_exponent(std)
    last = max(snapshot.images_seen for snapshot in snapshots)
    images_seen = last if images_seen is None else images_seen
    if not 0 < images_seen <= last:
        raise UserError(f"--images must be in 1..{last}, the images of the last EMA snapshot, got {images_seen}")
    profiles = [Profile(snapshot.images_seen, snapshot.std) for snapshot in snapshots]
    coefficients, errors = combine(profiles, [Profile(images_seen, std)])
    if errors[0] > MAX_PROFILE_ERROR:
        nearest = min((snapshot.images_seen for snapshot in snapshots), key=lambda images: abs(images - images_seen))
        trials = np.linspace(0, MAX_STD, NUM_TRIALS + 2)[1:-1]
        told = trials[combine(profiles, [Profile(nearest, trial) for trial in trials])[1] <= MAX_PROFILE_ERROR]
        can = f"they tell {told.min():.3f} to {told.max():.3f}" if len(told) else "they tell none"
        if nearest != images_seen:
            can = f"give images of a snapshot, {nearest} is the nearest, where {can}"
        raise UserError(
            f"{len(snapshots)} EMA snapshots cannot tell an average of std {std:g} at {images_seen} images: the closest profile "
            f"is {errors[0]:.0%} off; {can}"
        )
    return coefficients[:, 0], float(errors[0])


def reconstruct(
    snapshots: Sequence[EMASnapshot], coefficients: Sequence[float] | np.ndarray, buffers: frozenset[str], progress: bool = False
) -> dict[str, Tensor]:
    """Combine the weights of snapshots, in float64, one tensor at a time.

    Args:
        snapshots: Of one network.
        coefficients: One each, of sum 1.
        buffers: Names of tensors that are no weights: they are taken from the snapshot that counts most, and not combined.
        progress: Show a progress bar.

    Returns:
        Tensors by name, float32 where they are floating point.

    Raises:
        UserError: If the snapshots are not of one network.
    """
    used = [(snapshot, float(value)) for snapshot, value in zip(snapshots, coefficients, strict=True) if value != 0]
    main = max(used, key=lambda pair: abs(pair[1]))[0]
    files = {snapshot.path: safe_open(snapshot.path, framework="pt") for snapshot, _ in used}
    names = sorted(files[main.path].keys())
    for path, file in files.items():
        if sorted(file.keys()) != names:
            raise UserError(f"'{path}' and '{main.path}' are snapshots of different networks; they cannot be combined")
    made = {}
    for name in tqdm(names, desc="combining", unit="tensor", disable=not progress, leave=False, mininterval=progress_interval()):
        value: Tensor = files[main.path].get_tensor(name)
        if name in buffers or not value.is_floating_point():
            made[name] = value.float() if value.is_floating_point() else value
            continue
        total = torch.zeros(value.shape, dtype=torch.float64)
        for snapshot, coefficient in used:
            part = files[snapshot.path].get_tensor(name)
            if part.shape != value.shape:
                raise UserError(
                    f"'{snapshot.path}' and '{main.path}' are snapshots of different networks; they cannot be combined"
                )
            total.add_(part.double(), alpha=coefficient)
        made[name] = total.float()
    return made


def parse_stds(text: str, count: int) -> list[float]:
    """Relative standard deviations of a sweep: ``0.02..0.25``, a geometric range of so many, or ``0.03,0.05,0.1``.

    Raises:
        UserError: If it is neither, or one is out of range.
    """
    first, dots, last = text.partition("..")
    try:
        values = [float(part) for part in ((first, last) if dots else text.split(","))]
    except ValueError:
        values = [math.nan]
    if any(not math.isfinite(value) for value in values):
        raise UserError(f"--sweep takes a range such as 0.02..0.25 or numbers with commas between them, got '{text}'")
    for value in values:
        std_to_exponent(value)
    if dots:
        if values[0] >= values[1] or count < 2:
            raise UserError(
                f"--sweep takes a range from a smaller to a larger std and --num of at least 2, got '{text}' and {count}"
            )
        values = [float(f"{value:.4g}") for value in np.geomspace(values[0], values[1], count)]
    if len(set(values)) != len(values):
        raise UserError(f"--sweep names a std twice in '{text}'; name each once")
    return sorted(values)
