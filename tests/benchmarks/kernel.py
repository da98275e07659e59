"""KID and CMMD over all pairs, and KID over subsets, against implementations that hold N x N kernel matrices.

    python tests/benchmarks/kernel.py --size 6000                # about half a minute on two cores
    python tests/benchmarks/kernel.py --size 30000               # rivals hold 3.6 GB a matrix; some 5 minutes, 16 GB
    python tests/benchmarks/kernel.py --size 30000 --skip-rival  # ours alone, in under 1 GB

The N x N formulas are written here in float32 torch, as published codes compute them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from manifold import features
from measure import Cost, measure
from torch import Tensor

from metrics.scores.kernel import cmmd, kernel_distance, polynomial_mmd2

_CLIP_DIM = 768
Distance = Callable[[Tensor, Tensor], float]


def full_polynomial_mmd2(real: Tensor, fake: Tensor) -> float:
    """KID's estimator with whole kernel matrices."""
    n, m, dim = len(real), len(fake), real.shape[1]

    def within(x: Tensor) -> float:
        kernel = (x @ x.T / dim + 1.0) ** 3
        return (kernel.sum(1).double().sum() - kernel.diagonal().double().sum()).item() / (len(x) * (len(x) - 1))

    between = ((real @ fake.T / dim + 1.0) ** 3).sum(1).double().sum().item() / (n * m)
    return within(real) + within(fake) - 2.0 * between


def full_cmmd(real: Tensor, fake: Tensor) -> float:
    """CMMD with whole kernel matrices."""
    real, fake = (torch.nn.functional.normalize(x, dim=1) for x in (real, fake))

    def mean_kernel(x: Tensor, y: Tensor) -> float:
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2.0 * (x @ y.T)
        return torch.exp(squared / -200.0).mean(1).double().mean().item()

    return 1000.0 * (mean_kernel(real, real) + mean_kernel(fake, fake) - 2.0 * mean_kernel(real, fake))


def report(name: str, ours: Cost, exact: float | None, theirs: Cost | None) -> None:
    """Print one comparison."""
    print(ours.row(f"{name}, ours"), flush=True)
    if theirs is not None:
        print(theirs.row(f"{name}, N x N"))
        ratio = theirs.seconds / ours.seconds
        print(f"  ours is {ratio:.2f}x as fast with {ours.extra_mib / max(theirs.extra_mib, 1.0):.3f} of the memory")
    if exact is not None:
        off = f"  relative error against float64: ours {abs(ours.value / exact - 1):.1e}"
        print(off + (f", theirs {abs(theirs.value / exact - 1):.1e}" if theirs is not None else ""), flush=True)


def compare(name: str, dim: int, call: Distance, rival: Distance, args: argparse.Namespace) -> None:
    """Measure one distance over all pairs and its N x N implementation."""
    real, fake = features(args.size, dim, 0, 0.0), features(args.size, dim, 1, 0.01)
    call(real[:1500], fake[:1500])  # warm up
    ours = measure(lambda: call(real, fake), args.repeats)
    theirs = None if args.skip_rival else measure(lambda: rival(real, fake), args.repeats)
    report(name, ours, call(real.double(), fake.double()) if args.exact else None, theirs)


def compare_subsets(args: argparse.Namespace) -> None:
    """Measure KID over subsets and torch-fidelity's."""
    real, fake = features(args.size, args.dim, 0, 0.0), features(args.size, args.dim, 1, 0.01)
    ours = measure(lambda: kernel_distance(real, fake, args.subsets), args.repeats)
    print(ours.row(f"KID, {args.subsets} subsets, ours"), flush=True)
    if args.skip_rival:
        return
    from torch_fidelity.metric_kid import kid_features_to_metric

    options = {"kid_subsets": args.subsets, "kid_subset_size": 1000, "verbose": False}
    theirs = measure(lambda: tuple(kid_features_to_metric(fake, real, **options).values()), args.repeats)
    print(theirs.row("KID, subsets, torch-fidelity"))
    print(f"  ours is {theirs.seconds / ours.seconds:.2f}x as fast", flush=True)


def main() -> None:
    """Print costs and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=6000, help="features on each side")
    parser.add_argument("--dim", type=int, default=2048, help="dimensions of KID's features (CMMD: 768)")
    parser.add_argument("--subsets", type=int, default=10, help="of KID over subsets of 1,000")
    parser.add_argument("--repeats", type=int, default=1, help="of which the fastest counts")
    parser.add_argument("--skip-rival", action="store_true")
    parser.add_argument("--exact", action="store_true", help="also compute in float64 and print errors")
    args = parser.parse_args()
    compare("KID, all pairs", args.dim, polynomial_mmd2, full_polynomial_mmd2, args)
    compare("CMMD", _CLIP_DIM, cmmd, full_cmmd, args)
    compare_subsets(args)


if __name__ == "__main__":
    main()
