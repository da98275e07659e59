"""The Frechet distance between two covariances against scipy.linalg.sqrtm, and the accumulation of moments.

    python tests/benchmarks/frechet.py --size 2048 --repeats 3    # Inception's pool3; about a minute on two cores

Covariances are of features like pool3's. At full rank they come as matrices; with fewer samples than
dimensions (--few) from the features.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from manifold import features
from measure import measure
from scipy import linalg
from torch import Tensor

from metrics.scores.frechet import frechet_distance, frechet_distance_from_features
from metrics.scores.moments import MomentAccumulator


def root_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """The published formula with a matrix square root."""
    root = linalg.sqrtm(sigma1 @ sigma2).real
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2.0 * np.trace(root))


def moments(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance in float64."""
    return rows.double().mean(0).numpy(), np.cov(rows.double().numpy(), rowvar=False)


def accumulate(rows: Tensor) -> float:
    """Trace of the covariance of batches of 64."""
    accumulator = MomentAccumulator()
    for batch in rows.split(64):
        accumulator.append(batch)
    return accumulator.gaussian().trace()


def main() -> None:
    """Print costs and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="dimensions D")
    parser.add_argument("--samples", type=int, default=None, help="behind the full-rank covariances; 5 D unless given")
    parser.add_argument("--few", type=int, default=500, help="samples of the rank-deficient case")
    parser.add_argument("--repeats", type=int, default=3, help="of ours, the fastest counts; the rival runs once")
    args = parser.parse_args()
    count = args.samples or 5 * args.size
    real, fake = features(count, args.size, 0, 0.0), features(count, args.size, 1, 0.02)
    pair = *moments(real), *moments(fake)
    frechet_distance(pair[0][:64], pair[1][:64, :64], pair[2][:64], pair[3][:64, :64])  # warm up
    ours = measure(lambda: frechet_distance(*pair), args.repeats)
    print(ours.row("full rank, ours"), flush=True)
    theirs = measure(lambda: root_distance(*pair))
    print(theirs.row("full rank, sqrtm"))
    print(f"  ours is {theirs.seconds / ours.seconds:.1f}x as fast; relative difference {abs(ours.value / theirs.value - 1):.1e}")
    few = real[: args.few], fake[: args.few]
    fewer = measure(lambda: frechet_distance_from_features(*few), args.repeats)
    print(fewer.row(f"{args.few} samples, ours"))
    print(f"  {theirs.seconds / fewer.seconds:.0f}x as fast as sqrtm at this size", flush=True)
    streamed = measure(lambda: accumulate(real), args.repeats)
    covariance = measure(lambda: float(torch.cov(real.double().T).trace()), args.repeats)
    print(streamed.row(f"moments of {count}, ours"))
    print(covariance.row(f"moments of {count}, torch.cov"))
    print(f"  ours is {covariance.seconds / streamed.seconds:.2f}x as fast")


if __name__ == "__main__":
    main()
