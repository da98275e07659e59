"""Inception Score (Salimans et al., arXiv:1606.03498; "A Note on the Inception Score", arXiv:1801.01973).

IS = exp( mean_x KL( p(y|x) || mean_x p(y|x) ) ), per split, mean and standard deviation over splits.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metrics.metric import FeatureMetric, SmallSampleWarning

if TYPE_CHECKING:
    from metrics.extractors.base import FeatureExtractor

_DEFAULT_SPLITS = 10  # Salimans et al.
_SHUFFLE_SEED = 2020  # torch-fidelity's; shuffling keeps class-sorted files from lowering the score.


def inception_score(
    logits: Tensor, splits: int = _DEFAULT_SPLITS, shuffle_seed: int | None = _SHUFFLE_SEED
) -> tuple[float, float]:
    """Inception Score of class logits.

    Args:
        logits: (N, K) logits, without the bias of the last layer in the TF protocol.
        splits: Number of equal parts, 1 to N.
        shuffle_seed: Seed of numpy's legacy `RandomState` permutation, as torch-fidelity draws it; None keeps
            the order, as the official script does.

    Returns:
        Mean and standard deviation over splits, each score in [1, K].

    Raises:
        ValueError: If `splits` does not fit the number of samples.
    """
    num_samples = len(logits)
    if not 1 <= splits <= num_samples:
        raise ValueError(f"splits must lie between 1 and the number of images ({num_samples}), got {splits}.")
    logits = logits.double()
    if shuffle_seed is not None:
        logits = logits[torch.from_numpy(np.random.RandomState(shuffle_seed).permutation(num_samples))]
    log_p = logits.log_softmax(dim=1)
    scores = []
    for index in range(splits):
        part = log_p[index * num_samples // splits : (index + 1) * num_samples // splits]
        log_marginal = part.logsumexp(dim=0) - np.log(len(part))
        divergence = (part.exp() * (part - log_marginal)).sum(dim=1).mean()
        scores.append(float(divergence.exp()))
    return float(np.mean(scores)), float(np.std(scores))


class InceptionScore(FeatureMetric):
    """Inception Score of the fake images; real images are not looked at.

    Only Inception-v3 gives an Inception Score; on another classifier the result is called `classifier_score`.
    """

    name = "inception_score"
    needs_real = False

    def __init__(
        self,
        feature: str | None = None,
        splits: int = _DEFAULT_SPLITS,
        shuffle_seed: int | None = _SHUFFLE_SEED,
    ) -> None:
        super().__init__(feature)
        if splits < 1:
            raise ValueError(f"splits must be at least 1, got {splits}.")
        self.splits = splits
        self.shuffle_seed = shuffle_seed
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
        return {"feature": self.feature, "splits": self.splits, "shuffle_seed": self.shuffle_seed}

    def compute(self) -> dict[str, float]:
        """Return mean and standard deviation over splits."""
        logits = self.features(False)
        if len(logits) < self.splits * logits.shape[1]:
            warnings.warn(
                f"{len(logits)} images in {self.splits} splits are few for {logits.shape[1]} classes: the "
                "Inception Score is "
                "biased downwards (50,000 images are the custom; below two images a split, one split is "
                "taken).",
                SmallSampleWarning,
                stacklevel=2,
            )
        # A split of one image would score exactly 1, whatever the image.
        splits = self.splits if len(logits) >= 2 * self.splits else 1
        mean, std = inception_score(logits, splits, self.shuffle_seed)
        return {f"{self.key}_mean": mean, f"{self.key}_std": std}
