"""The Gaussian fitted to a feature set: accumulated in float64, with memory that does not grow with the sample count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MIN_FLUSH_ROWS = 512  # Rows per matrix product: enough that it, not the update of the (D, D) sum, takes the time.


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a feature set, the covariance in whichever form loses least.

    Args:
        mu: (D,) float64.
        sigma: (D, D) float64, unbiased (divided by N - 1), or None when ``factor`` is given.
        factor: (D, r) float64 with sigma = factor @ factor.T, or None when ``sigma`` is given.
        num_samples: N, or None when a statistics file did not say.
    """

    mu: Tensor
    sigma: Tensor | None = None
    factor: Tensor | None = None
    num_samples: int | None = None

    def trace(self) -> float:
        """Return the trace of the covariance."""
        if self.factor is not None:
            return float(self.factor.square().sum())
        return float(self._sigma().trace())

    def covariance(self) -> Tensor:
        """Return sigma (D, D) float64."""
        return self.factor @ self.factor.T if self.factor is not None else self._sigma()

    def square_root_factor(self) -> Tensor:
        """Return some A (D, r) with sigma = A A^T, r the rank."""
        return self.factor if self.factor is not None else pivoted_cholesky(self._sigma())

    def _sigma(self) -> Tensor:
        assert self.sigma is not None, "a Gaussian has a sigma or a factor"
        return self.sigma


def pivoted_cholesky(sigma: Tensor) -> Tensor:
    """Factor a positive semidefinite matrix of any rank (LAPACK dpstrf, tolerance D * eps * largest variance).

    Args:
        sigma: (D, D) float64.

    Returns:
        A (D, r) float64 with A @ A.T = sigma, r its numerical rank.

    Raises:
        ValueError: If a diagonal entry is negative or the matrix is clearly not positive semidefinite.
    """
    from scipy.linalg import lapack

    diagonal = sigma.diagonal()
    if bool((diagonal < 0).any()):
        raise ValueError(f"sigma has a negative variance ({float(diagonal.min()):g} on its diagonal): it is not a covariance.")
    if float(diagonal.max()) == 0.0:
        return sigma.new_zeros(len(sigma), 0)
    # LAPACK reads columns: the transpose of the symmetric matrix spares a copy.
    packed, pivots, rank, _ = lapack.dpstrf(sigma.numpy().T, lower=1)
    factor = torch.from_numpy(packed).tril()[:, :rank]
    result = torch.empty_like(factor)
    result[torch.from_numpy(pivots).long() - 1] = factor
    residual = float((result.square().sum(1) - diagonal).abs().max())
    # A covariance stored in float32 is off by 1e-7 relative; a matrix that is off by far more has negative eigenvalues.
    if residual > 1e-3 * float(diagonal.max()):
        raise ValueError("sigma is not positive semidefinite: it is not a covariance.")
    return result


def centred_factor(features: Tensor) -> Tensor:
    """Return A (D, N-1) with A A^T the unbiased covariance of ``features`` (N, D).

    The centred rows have rank N - 1 at most. A Householder reflection turns the direction of their sum into
    the first axis, where it is zero, so that row can be dropped without loss.
    """
    n = len(features)
    centred = features - features.mean(0)
    axis = features.new_full((n,), -1.0 / math.sqrt(n))
    axis[0] += 1.0
    axis /= axis.norm()
    rows = centred[1:] - 2.0 * axis[1:, None] * (axis @ centred)
    return rows.T / math.sqrt(n - 1)


class MomentAccumulator:
    """Mean and covariance of a stream of features (B, D).

    Up to D samples the rows themselves are kept (the covariance is rank-deficient, and rows are both smaller
    and more exact). Beyond, it switches to count, mean and centred second moment in float64, merged by Chan,
    Golub and LeVeque's update, so memory is O(D^2) for any N and the result does not depend on batch size or
    order (to float64 rounding).
    """

    def __init__(self) -> None:
        self.num_merged = 0
        self.mean: Tensor | None = None
        self.scatter: Tensor | None = None  # (D, D) sum of outer products of centred samples.
        self.pending: list[Tensor] = []
        self.num_pending = 0

    def __len__(self) -> int:
        return self.num_merged + self.num_pending

    def append(self, features: Tensor) -> None:
        """Add (B, D) features."""
        if len(features) == 0:
            return
        self.pending.append(features)
        self.num_pending += len(features)
        dimension = features.shape[1]
        if len(self) > dimension and self.num_pending >= max(_MIN_FLUSH_ROWS, dimension // 2):
            self._flush()

    def gaussian(self) -> Gaussian:
        """Return the fitted Gaussian.

        Raises:
            ValueError: If there are fewer than two samples.
        """
        if len(self) < 2:
            raise ValueError(f"a covariance needs at least two samples, got {len(self)}.")
        if self.mean is None and len(self) <= self.pending[0].shape[1]:
            rows = torch.cat(self.pending).double()
            return Gaussian(mu=rows.mean(0), factor=centred_factor(rows), num_samples=len(self))
        self._flush()
        assert self.mean is not None and self.scatter is not None
        return Gaussian(mu=self.mean, sigma=self.scatter / (len(self) - 1), num_samples=len(self))

    def state(self) -> dict[str, Any]:
        """Return the state, picklable."""
        return {
            "num_merged": self.num_merged,
            "mean": self.mean,
            "scatter": self.scatter,
            "pending": self.pending,
        }

    def load(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace the content by the union of several processes' states."""
        self.__init__()  # type: ignore[misc]
        for state in states:
            if state["mean"] is not None:
                self._merge(state["num_merged"], state["mean"], state["scatter"])
        for state in states:
            for chunk in state["pending"]:
                self.append(chunk)

    def _flush(self) -> None:
        if not self.pending:
            return
        rows = torch.cat(self.pending).double()
        self.pending, self.num_pending = [], 0
        mean = rows.mean(0)
        centred = rows.sub_(mean).numpy()
        # numpy sees that both factors are one array and computes half of the symmetric product (BLAS syrk).
        self._merge(len(rows), mean, torch.from_numpy(centred.T @ centred))

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm" (1979), equation 2.1, in D dimensions."""
        if self.mean is None or self.scatter is None:
            self.num_merged, self.mean, self.scatter = count, mean.clone(), scatter.clone()
            return
        total = self.num_merged + count
        delta = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(delta, delta, alpha=self.num_merged * count / total)
        self.mean += delta * (count / total)
        self.num_merged = total
