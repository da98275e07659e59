"""How much of an FID is its histogram of ImageNet classes: Kynkaanniemi et al., "The Role of ImageNet Classes in Frechet
Inception Distance" (arXiv:2203.06026, section 4 and appendix).

From a pool of fakes larger than wanted, some are drawn so that what a classifier sees in them matches the real images. FID
falls, though no image is better; a distance on other features (CLIP, DINOv2) hardly moves. Two ways:

- top1: the histogram of the most likely class is matched by stratified draws.
- top-n and others: every fake has a log-weight, found by gradient descent on the Frechet distance between the reals and the
  weighted fakes in some feature (the N largest logits as 0 / 1 indicators, the middle ones as a control, the logits, or the
  embedding itself), and fakes are drawn by weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from metrics.scores.frechet import gaussian_distance
from metrics.scores.moments import Gaussian, MomentAccumulator

#: What ``match_classes`` can match; the name of a scored feature is a mode too.
MODES = ("top1", "top-n", "middle-n", "logits")
_DEFAULT_N = 10  # Indicators per image; a choice of ours, the authors' script has no default.
_DEFAULT_STEPS = 500
_BLOCK_ROWS = 8192  # Fakes per matrix product: 134 MB of 2048 features in float64.
_SMALLEST_STEP = 1e-6  # Share of the first step size at which a search that only goes up has converged.


@dataclass(frozen=True)
class ClassMatching:
    """What matching did.

    Args:
        mode: What was matched.
        indices: (num,) int64 fakes drawn, sorted; a fake may repeat.
        before: Frechet distance of as many fakes drawn at random, by feature.
        after: Frechet distance of the fakes drawn here, by feature.
        num_distinct: Fakes among them without repeats.
        unmatched_share: Share of real images whose top-1 class no fake has, for top1; 0 for the others.
    """

    mode: str
    indices: Tensor
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    num_distinct: int = 0
    unmatched_share: float = 0.0


def top_n_indicators(logits: Tensor, n: int) -> Tensor:
    """Mark the n most likely classes of each image.

    Args:
        logits: (N, K) class logits.
        n: Classes to mark, 1 to K.

    Returns:
        (N, K) float32 of 0 and 1, n ones a row.

    Raises:
        ValueError: If n does not lie between 1 and K.
    """
    return _rank_indicators(logits, 0, n)


def middle_n_indicators(logits: Tensor, n: int) -> Tensor:
    """Mark the n classes in the middle of each image's ranking, the paper's control; arguments as ``top_n_indicators``."""
    return _rank_indicators(logits, logits.shape[1] // 2 - n // 2, n)


def _rank_indicators(logits: Tensor, first: int, n: int) -> Tensor:
    if not 1 <= n <= logits.shape[1]:
        raise ValueError(f"n must lie between 1 and the number of classes ({logits.shape[1]}), got {n}.")
    ranked = logits.argsort(dim=1, descending=True, stable=True)[:, first : first + n]
    return torch.zeros(logits.shape, dtype=torch.float32, device=logits.device).scatter_(1, ranked, 1.0)


def match_top1_histogram(real_logits: Tensor, fake_logits: Tensor, num: int, seed: int = 0) -> Tensor:
    """Draw fakes whose histogram of most likely classes is that of the reals.

    Args:
        real_logits: (N, K) class logits of real images.
        fake_logits: (M, K) class logits of the pool.
        num: Fakes to draw.
        seed: Of the draw.

    Returns:
        (num,) int64 indices into the pool, sorted. Within a class, fakes repeat only if there are too few, and then equally
        often but for one. Real classes that no fake has are left out, and the others share their places.

    Raises:
        ValueError: If num is below 1, numbers of classes differ, or the two sets share no class.
    """
    if num < 1 or real_logits.shape[1] != fake_logits.shape[1]:
        raise ValueError(
            f"num must be at least 1 and the numbers of classes equal, got {num}, {real_logits.shape[1]} and "
            f"{fake_logits.shape[1]}."
        )
    num_classes = real_logits.shape[1]
    fake_classes = fake_logits.argmax(1).cpu()
    wanted = real_logits.argmax(1).cpu().bincount(minlength=num_classes).double()
    wanted[fake_classes.bincount(minlength=num_classes) == 0] = 0.0
    if float(wanted.sum()) == 0.0:
        raise ValueError("real and fake images share no top-1 class: their histograms can't be matched.")
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label, count in enumerate(_apportion(wanted, num).tolist()):
        if count == 0:
            continue
        pool = (fake_classes == label).nonzero()[:, 0]
        shuffled = pool[torch.randperm(len(pool), generator=generator)]
        drawn.append(torch.cat([pool.repeat(count // len(pool)), shuffled[: count % len(pool)]]))
    return torch.cat(drawn).sort().values


def _apportion(shares: Tensor, num: int) -> Tensor:
    """Round num * shares to integers that sum to num, largest remainders up: (K,) int64."""
    exact = shares / shares.sum() * num
    counts = exact.floor().long()
    by_remainder = (exact - counts).argsort(descending=True, stable=True)
    counts[by_remainder[: num - int(counts.sum())]] += 1
    return counts


class _WeightedDistance:
    """Frechet distance between the reals and the weighted fakes, and its gradient by the fakes' log-weights.

    The weights w = exp(log w) count images, as in the authors' code: mean sum(w x) / W and covariance over W - 1, W = sum(w).
    Products run over blocks of fakes in float64, so the pool may stay in float32.
    """

    def __init__(self, real: Tensor, fake: Tensor) -> None:
        moments = MomentAccumulator()
        moments.append(real.cpu())
        gaussian = moments.gaussian()
        self.mu = gaussian.mu.to(fake.device)
        self.factor = gaussian.square_root_factor().to(fake.device)  # (D, r)
        self.trace = gaussian.trace()
        self.fake = fake

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return weighted mean (D,) and covariance (D, D)."""
        total = weights.sum()
        mean = torch.zeros_like(self.mu)
        for rows, w in zip(self.fake.split(_BLOCK_ROWS), weights.split(_BLOCK_ROWS), strict=True):
            mean += w @ rows.double()
        mean /= total
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
        for rows, w in zip(self.fake.split(_BLOCK_ROWS), weights.split(_BLOCK_ROWS), strict=True):
            centred = rows.double() - mean
            covariance += centred.T @ (w[:, None] * centred)
        return mean, covariance / (total - 1.0)

    def __call__(self, log_weights: Tensor) -> tuple[float, Tensor]:
        """Return the distance and its gradient (M,)."""
        weights = log_weights.exp()
        total = weights.sum()
        mean, covariance = self.moments(weights)
        eigenvalues, vectors = torch.linalg.eigh(self.factor.T @ covariance @ self.factor)
        is_null = eigenvalues <= len(eigenvalues) * torch.finfo(torch.float64).eps * eigenvalues.max()
        # d tr M^(1/2) / d S = A M^(-1/2) A^T / 2; directions that one side lacks have no finite derivative and are left out.
        inverse_roots = eigenvalues.rsqrt().masked_fill(is_null, 0.0)
        basis = self.factor @ vectors
        by_covariance = torch.eye(len(mean), dtype=torch.float64, device=mean.device) - (basis * inverse_roots) @ basis.T
        gap = mean - self.mu
        distance = float(gap.square().sum() + covariance.trace() - 2.0 * eigenvalues.clamp(min=0.0).sqrt().sum()) + self.trace
        offset = (by_covariance * covariance).sum()
        gradient = []
        for rows, w in zip(self.fake.split(_BLOCK_ROWS), weights.split(_BLOCK_ROWS), strict=True):
            centred = rows.double() - mean
            quadratic = ((centred @ by_covariance) * centred).sum(1) - offset
            gradient.append(w * (2.0 * (centred @ gap) / total + quadratic / (total - 1.0)))
        return distance, torch.cat(gradient)


def optimise_weights(
    real: Tensor, fake: Tensor, steps: int = _DEFAULT_STEPS, lr: float | None = None, progress: bool = False
) -> Tensor:
    """Find weights under which the fakes' Gaussian comes closest to the reals', by gradient descent on log-weights.

    Args:
        real: (N, D) features or indicators of real images.
        fake: (M, D) those of the pool, on the device that is to do the work.
        steps: Evaluations of the distance. The authors take up to 200,000.
        lr: Step size. The authors take 10 for a pool of 250,000; an image's gradient shrinks with the pool, so None starts
            from the pool's size over its largest variance instead. A step that raises the distance is taken back and the
            step size halved.
        progress: Whether to show a bar.

    Returns:
        (M,) float64 weights that sum to 1, on the CPU.

    Raises:
        ValueError: If shapes disagree, a set has fewer than two images, or steps or lr are not positive.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < 2:
        raise ValueError(
            f"features must be (N, D) and (M, D) of two images or more, got {tuple(real.shape)}, {tuple(fake.shape)}."
        )
    if steps < 1 or (lr is not None and lr <= 0.0):
        raise ValueError(f"steps and lr must be positive, got {steps} and {lr}.")
    measure = _WeightedDistance(real, fake)
    log_weights = torch.zeros(len(fake), dtype=torch.float64, device=fake.device)
    if lr is None:
        largest = float(torch.linalg.eigvalsh(measure.moments(log_weights.exp())[1]).max())
        lr = len(fake) / largest if largest > 0.0 else 1.0
    first_lr = lr
    best, gradient = measure(log_weights)
    for _ in tqdm(range(steps), desc="class matching", disable=not progress, leave=False):
        candidate = log_weights - lr * gradient
        distance, candidate_gradient = measure(candidate)
        if distance <= best:  # False for NaN too.
            log_weights, best, gradient = candidate, distance, candidate_gradient
        elif lr > _SMALLEST_STEP * first_lr:
            lr *= 0.5
        else:
            break
    return log_weights.softmax(0).cpu()


def resample(weights: Tensor, num: int, seed: int = 0) -> Tensor:
    """Draw by weight, with replacement.

    Args:
        weights: (M,) weights, >= 0, of any sum.
        num: Images to draw.
        seed: Of the draw.

    Returns:
        (num,) int64 indices, sorted.

    Raises:
        ValueError: If num is below 1 or the weights are no weights.
    """
    if num < 1 or weights.ndim != 1 or not bool((weights >= 0).all()) or not 0.0 < float(weights.sum()) < torch.inf:
        raise ValueError(f"num must be at least 1 and weights finite, >= 0 and not all zero, got num {num}.")
    # Inverse of the cumulative distribution: torch.multinomial stops at 2^24 images.
    cumulative = weights.cpu().double().cumsum(0)
    points = torch.rand(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, points, right=True).clamp(max=len(weights) - 1).sort().values


def match_classes(
    real_logits: Tensor,
    fake_logits: Tensor,
    real: Mapping[str, Tensor],
    fake: Mapping[str, Tensor],
    num: int,
    mode: str = "top1",
    n: int = _DEFAULT_N,
    steps: int = _DEFAULT_STEPS,
    lr: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ClassMatching:
    """Match the fakes to the reals in what a classifier sees, and tell what that does to Frechet distances.

    Args:
        real_logits: (N, K) class logits of the reals.
        fake_logits: (M, K) class logits of the pool of fakes.
        real: Features (N, D) to score, by name; give some that know nothing of the classes (CLIP, DINOv2) too.
        fake: The same features (M, D) of the pool.
        num: Fakes to draw; the pool should be several times larger.
        mode: One of ``MODES``, or the name of one of the features, to match that directly.
        n: Indicators per image for top-n and middle-n.
        steps: As in ``optimise_weights``, like ``lr``.
        lr: Step size.
        seed: Of all draws.
        progress: Whether to show a bar.

    Raises:
        ValueError: If the mode is unknown, features differ between the sides, or num exceeds the pool.
    """
    if mode not in MODES and mode not in real:
        raise ValueError(f"mode {mode!r} is not known: choose from {', '.join([*MODES, *real])}.")
    if set(real) != set(fake) or any(len(fake[name]) != len(fake_logits) for name in fake):
        raise ValueError("real and fake must hold the same features, and every feature as many fakes as there are logits.")
    if not 1 <= num <= len(fake_logits):
        raise ValueError(f"num must lie between 1 and the size of the pool ({len(fake_logits)}), got {num}.")
    unmatched = 0.0
    if mode == "top1":
        indices = match_top1_histogram(real_logits, fake_logits, num, seed)
        unmatched = float((~torch.isin(real_logits.argmax(1), fake_logits.argmax(1))).double().mean())
    else:
        ours, theirs = _matched_features(real_logits, fake_logits, mode, n) if mode in MODES else (real[mode], fake[mode])
        indices = resample(optimise_weights(ours, theirs, steps, lr, progress), num, seed)
    random = torch.randperm(len(fake_logits), generator=torch.Generator().manual_seed(seed))[:num]
    before, after = {}, {}
    for name in real:
        reference = _gaussian(real[name])
        before[name] = gaussian_distance(reference, _gaussian(fake[name].cpu()[random]))
        after[name] = gaussian_distance(reference, _gaussian(fake[name].cpu()[indices]))
    return ClassMatching(mode, indices, before, after, len(indices.unique()), unmatched)


def _matched_features(real_logits: Tensor, fake_logits: Tensor, mode: str, n: int) -> tuple[Tensor, Tensor]:
    if mode == "logits":
        return real_logits, fake_logits
    mark = top_n_indicators if mode == "top-n" else middle_n_indicators
    real, fake = mark(real_logits, n), mark(fake_logits, n)
    # As the authors do: classes that one side never shows can't be matched, so they do not count.
    is_shared = real.any(0) & fake.any(0)
    if not bool(is_shared.any()):
        raise ValueError(f"real and fake images share no {mode} class: give more images or a larger n.")
    return real[:, is_shared], fake[:, is_shared]


def _gaussian(features: Tensor) -> Gaussian:
    accumulator = MomentAccumulator()
    accumulator.append(features.cpu())
    return accumulator.gaussian()
