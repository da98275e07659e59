"""Precision, recall, density, coverage against torch-fidelity's function on the same features.

    python tests/benchmarks/manifold.py --size 10000            # about a minute on two cores
    python tests/benchmarks/manifold.py --size 50000 --skip-rival --skip-check   # the published setting; about 3 minutes

torch-fidelity holds N x M matrices of float32 distances (uncentred); its answer is not exact.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from measure import measure
from torch import Tensor

from metrics.scores.manifold import precision_recall


def features(count: int, dim: int, seed: int, shift: float) -> Tensor:
    """Features like pool3: not negative, some directions much stronger than others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(64, dim, generator=torch.Generator().manual_seed(99)) * torch.logspace(0, -1, 64)[:, None] * 0.3
    rows = [
        (torch.randn(len(block), 64, generator=generator) @ mixing)
        .add_(0.35 * torch.randn(len(block), dim, generator=generator))
        .add_(0.3 + shift)
        .clamp_(min=0.0)
        for block in torch.arange(count).split(4096)
    ]
    return torch.cat(rows)


def exact(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    """Precision and recall from float64 matrices (memory: 8 N M bytes)."""
    center = real.double().mean(0)
    sets = [(x.double() - center).numpy() for x in (real, fake)]

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2.0 * (x @ y.T)

    radii = []
    for x in sets:
        own = distances(x, x)
        np.fill_diagonal(own, np.inf)
        radii.append(np.partition(own, k - 1, axis=1)[:, k - 1])
    between = distances(*sets)
    return float((between <= radii[0][:, None]).any(0).mean()), float((between <= radii[1]).any(1).mean())


def main() -> None:
    """Print costs and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=10_000, help="features on each side")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--shift", type=float, default=0.0, help="difference of the means, in feature units")
    parser.add_argument("--skip-rival", action="store_true")
    parser.add_argument("--skip-check", action="store_true", help="do not compare with float64 matrices")
    args = parser.parse_args()
    real, fake = features(args.size, args.dim, 0, 0.0), features(args.size, args.dim, 1, args.shift)
    precision_recall(real[:500], fake[:500], args.k)  # warm up
    ours = measure(lambda: precision_recall(real, fake, args.k))
    print(ours.row("ours"), flush=True)
    if not args.skip_check:
        precision, recall = exact(real, fake, args.k)
        print(f"float64 matrices: precision {precision}, recall {recall}; equal: {(precision, recall) == _two(ours.value)}")
    if not args.skip_rival:
        from torch_fidelity.metric_prc import calculate_precision_recall_full

        theirs = measure(lambda: calculate_precision_recall_full(fake, real, args.k))
        print(theirs.row("torch-fidelity (precision, recall)"))
        print(f"ours is {theirs.seconds / ours.seconds:.2f}x as fast with {ours.extra_mib / theirs.extra_mib:.3f} of the memory")


def _two(scores: object) -> tuple[float, float]:
    return scores.precision, scores.recall  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
