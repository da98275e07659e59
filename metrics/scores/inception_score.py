"""Inception Score (Salimans et al., arXiv:1606.03498; "A Note on the Inception Score", arXiv:1801.01973).

IS = exp( mean_x KL( p(y|x) || mean_x p(y|x) ) ), per split, mean and standard deviation over splits.

Two rules of splitting are in use. The official script and the ADM suite cut the images in file order, so a
class-sorted set scores far too low (guided-diffusion issue 165: 62 in place of 298); torch-fidelity shuffles
first, with seed 2020.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metrics.metric import FeatureMetric, SmallSampleWarning, side_name
from metrics.notes import ScoreNote

if TYPE_CHECKING:
    from metrics.extractors.base import FeatureExtractor

_DEFAULT_SPLITS = 10  # Salimans et al.
_SHUFFLE_SEED = 2020  # torch-fidelity's; shuffling keeps class-sorted files from lowering the score.
_BLOCK_ROWS = 4096  # Images per block: probabilities of 1008 classes in float64 then take 33 MB.
#: How far the shuffled score must exceed the consecutive one to call the images class-sorted: in standard deviations over
#: splits (the mean of ten splits strays by a third of one), and as a share of the score, for when that deviation is tiny.
_SORTED_DEVIATIONS = 5.0
_SORTED_SHARE = 0.05


class ClassSortedWarning(ScoreNote):
    """The images come sorted by class, so consecutive splits see few classes each and the score is far too low."""


def inception_score(
    logits: Tensor,
    splits: int = _DEFAULT_SPLITS,
    shuffle_seed: int | None = _SHUFFLE_SEED,
    split_size: int | None = None,
) -> tuple[float, float]:
    """Inception Score of class logits.

    Args:
        logits: (N, K) logits, without the bias of the last layer in the TF protocol.
        splits: Number of equal parts, 1 to N; part i ends at image (i + 1) * N // splits.
        shuffle_seed: Seed of numpy's legacy ``RandomState`` permutation, as torch-fidelity draws it; None keeps
            the order, as the official script and the ADM suite do.
        split_size: Images per part instead of a number of parts, the last one being what is left, as the ADM
            suite cuts (5,000); None goes by ``splits``.

    Returns:
        Mean and standard deviation over splits, each score in [1, K].

    Raises:
        ValueError: If ``splits`` does not fit the number of samples or ``split_size`` is below 1.
    """
    parts = _parts(len(logits), splits, split_size)
    order = None if shuffle_seed is None else torch.from_numpy(np.random.RandomState(shuffle_seed).permutation(len(logits)))
    scores = [_score(logits[start:stop] if order is None else logits[order[start:stop]]) for start, stop in parts]
    return float(np.mean(scores)), float(np.std(scores))


def _parts(num_samples: int, splits: int, split_size: int | None) -> list[tuple[int, int]]:
    """Return first and one past the last image of each part."""
    if split_size is not None:
        if split_size < 1 or num_samples < 1:
            raise ValueError(f"split_size must be at least 1 and there must be images, got {split_size} and {num_samples}.")
        return [(start, min(start + split_size, num_samples)) for start in range(0, num_samples, split_size)]
    if not 1 <= splits <= num_samples:
        raise ValueError(f"splits must lie between 1 and the number of images ({num_samples}), got {splits}.")
    return [(index * num_samples // splits, (index + 1) * num_samples // splits) for index in range(splits)]


def _score(logits: Tensor) -> float:
    """exp of the mutual information, H(mean p) - mean H(p), which needs one pass and no N x K matrix in float64."""
    total = torch.zeros(logits.shape[1], dtype=torch.float64)
    negative_entropy = 0.0
    for block in logits.split(_BLOCK_ROWS):
        log_p = block.cpu().double().log_softmax(dim=1)  # (b, K)
        p = log_p.exp()
        total += p.sum(0)
        negative_entropy += float((p * log_p).sum())
    marginal = total / len(logits)
    return float(np.exp(negative_entropy / len(logits) - float(torch.xlogy(marginal, marginal).sum())))


class InceptionScore(FeatureMetric):
    """Inception Score of the fake images; real images are not looked at.

    Only Inception-v3 gives an Inception Score; on another classifier the result is called ``classifier_score``.

    Args:
        feature: Class logits to read; None takes the extractor's (Inception-v3: without bias, as TF, ADM and
            torch-fidelity do).
        splits: Number of parts.
        shuffle_seed: Seed of the shuffling before the split; None keeps the order of the files.
        split_size: Images per part in place of a number of parts (the ADM suite: 5,000, unshuffled).
    """

    name = "inception_score"
    needs_real = False
    higher_is_better = True

    def __init__(
        self,
        feature: str | None = None,
        splits: int = _DEFAULT_SPLITS,
        shuffle_seed: int | None = _SHUFFLE_SEED,
        split_size: int | None = None,
    ) -> None:
        super().__init__(feature)
        if splits < 1:
            raise ValueError(f"splits must be at least 1, got {splits}.")
        if split_size is not None and split_size < 1:
            raise ValueError(f"split_size must be at least 1, got {split_size}.")
        self.splits = splits
        self.shuffle_seed = shuffle_seed
        self.split_size = split_size
        self.key = "inception_score"

    def default_feature(self, extractor: FeatureExtractor) -> str:
        """Return the extractor's class logits."""
        if extractor.class_logits is None:
            raise ValueError(f"extractor {extractor.name} is no classifier: the Inception Score needs inception-v3.")
        return extractor.class_logits

    def bind(self, extractor: FeatureExtractor) -> None:
        """Choose the logits and the name of the result."""
        super().bind(extractor)
        self.key = "inception_score" if extractor.name == "inception-v3" else "classifier_score"

    @property
    def parameters(self) -> dict[str, Any]:
        """Feature, splits and shuffle seed."""
        rule = {"splits": self._num_splits()} if self.split_size is None else {"split_size": self.split_size}
        return {"feature": self.feature, **rule, "shuffle_seed": self.shuffle_seed}

    @property
    def score_names(self) -> tuple[str, ...]:
        """The mean over splits."""
        return (f"{self.key}_mean",)

    def _num_splits(self) -> int:
        """Return the number of parts that are taken of the images met so far."""
        count = len(self.banks[side_name(False)])
        # A split of one image would score exactly 1, whatever the image.
        return 1 if 0 < count < 2 * self.splits else self.splits

    def compute(self) -> dict[str, float]:
        """Return mean and standard deviation over splits."""
        logits = self.features(False)
        splits = self._num_splits()
        self._warn_of_few(logits, splits)
        mean, std = inception_score(logits, splits, self.shuffle_seed, self.split_size)
        if self.shuffle_seed is None:
            self._warn_if_sorted(logits, splits, mean)
        return {f"{self.key}_mean": mean, f"{self.key}_std": std}

    def _warn_of_few(self, logits: Tensor, splits: int) -> None:
        sizes = [stop - start for start, stop in _parts(len(logits), splits, self.split_size)]
        if len(logits) < len(sizes) * logits.shape[1]:
            warnings.warn(
                f"{len(logits)} images in {len(sizes)} splits are few for {logits.shape[1]} classes: the Inception Score is "
                "biased downwards (50,000 images are the custom; below two images a split, one split is taken).",
                SmallSampleWarning,
                stacklevel=3,
            )
        elif sizes[-1] < sizes[0] // 2:
            warnings.warn(
                f"the last split of the Inception Score has {sizes[-1]} images and the others {sizes[0]}, and counts as much: "
                f"give a multiple of {sizes[0]} images.",
                SmallSampleWarning,
                stacklevel=3,
            )

    def _warn_if_sorted(self, logits: Tensor, splits: int, consecutive: float) -> None:
        if len(_parts(len(logits), splits, self.split_size)) == 1:
            return
        shuffled, deviation = inception_score(logits, splits, _SHUFFLE_SEED, self.split_size)
        if shuffled - consecutive > max(_SORTED_DEVIATIONS * deviation, _SORTED_SHARE * shuffled):
            warnings.warn(
                f"the images come sorted by class: consecutive splits score {consecutive:.2f}, shuffled ones {shuffled:.2f}; "
                "shuffle the files, or score with a shuffle seed.",
                ClassSortedWarning,
                stacklevel=3,
            )
