"""AM score (Zhou et al., "Activation Maximization Generative Adversarial Nets", arXiv:1703.02000, section 6).

    AM = KL( mean_real C(x) || mean_fake C(x) ) + mean_fake H( C(x) ),    lower is better, 0 at best

C(x) are class probabilities. The Inception Score rewards a uniform spread over classes; the first term here asks for the
spread of the training data instead. The paper takes a classifier trained on that data, so on another data set than
ImageNet Inception-v3's value says little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metrics.metric import SIDES, Metric, side_name

if TYPE_CHECKING:
    from metrics.extractors.base import FeatureExtractor
    from metrics.files.statistics import FeatureEntry

_BIASED_LOGITS = "logits"


def am_score(real_logits: Tensor, fake_logits: Tensor) -> float:
    """AM score of class logits.

    Args:
        real_logits: (N, K) logits of real images.
        fake_logits: (M, K) logits of generated images.

    Returns:
        The score in nats, >= 0.

    Raises:
        ValueError: If a set is empty or the numbers of classes differ.
    """
    real, fake = ClassProbabilities(), ClassProbabilities()
    real.append(real_logits)
    fake.append(fake_logits)
    return _score(real, fake)


class ClassProbabilities:
    """Mean class probabilities and mean entropy of a stream of logits, in O(K) memory.

    Sums are kept as logarithms: a class that no fake shows has a mean probability that may underflow, while the divergence
    needs its logarithm.
    """

    def __init__(self) -> None:
        self.count = 0
        self.log_sum: Tensor | None = None  # (K,) float64, log of the summed probabilities.
        self.entropy_sum = 0.0

    def append(self, logits: Tensor) -> None:
        """Add (B, K) logits."""
        if len(logits) == 0:
            return
        log_p = logits.cpu().double().log_softmax(dim=1)
        self._merge(len(logits), log_p.logsumexp(dim=0), -float((log_p.exp() * log_p).sum()))

    def log_mean(self) -> Tensor:
        """Return the log of the mean probabilities (K,) float64."""
        assert self.log_sum is not None, "log_mean needs at least one image"
        return self.log_sum - torch.log(torch.tensor(self.count, dtype=torch.float64))

    def mean_entropy(self) -> float:
        """Return the mean entropy in nats."""
        return self.entropy_sum / self.count

    def state(self) -> dict[str, Any]:
        """Return the state, picklable."""
        return {"count": self.count, "log_sum": self.log_sum, "entropy_sum": self.entropy_sum}

    @classmethod
    def merged(cls, states: Sequence[dict[str, Any]]) -> ClassProbabilities:
        """Return the union of several processes' states."""
        result = cls()
        for state in states:
            if state["log_sum"] is not None:
                result._merge(state["count"], state["log_sum"], state["entropy_sum"])
        return result

    def _merge(self, count: int, log_sum: Tensor, entropy_sum: float) -> None:
        self.count += count
        self.log_sum = log_sum if self.log_sum is None else torch.logaddexp(self.log_sum, log_sum)
        self.entropy_sum += entropy_sum


def _score(real: ClassProbabilities, fake: ClassProbabilities) -> float:
    for side, probabilities in (("real", real), ("fake", fake)):
        if probabilities.count == 0:
            raise ValueError(f"the AM score needs at least one {side} image and got none.")
    log_real, log_fake = real.log_mean(), fake.log_mean()
    if log_real.shape != log_fake.shape:
        raise ValueError(f"numbers of classes differ: {len(log_real)} real and {len(log_fake)} fake; use one classifier.")
    divergence = float((log_real.exp() * (log_real - log_fake)).sum())
    return max(divergence, 0.0) + fake.mean_entropy()  # Equal means may round to -1e-17.


class AMScore(Metric):
    """AM score of the fake images against the real ones.

    Args:
        feature: Class logits to read; None takes the classifier's own. On Inception-v3 those are ``logits``, with bias: the
            Inception Score drops the bias by a custom of its own, but C(x) here is what the classifier says.
    """

    name = "am_score"
    needs_stored_features = True

    def __init__(self, feature: str | None = None) -> None:
        super().__init__(feature)
        self.probabilities = {side: ClassProbabilities() for side in SIDES}

    def default_feature(self, extractor: FeatureExtractor) -> str:
        """Return the classifier's logits, with bias where it has them so."""
        if extractor.class_logits is None:
            raise ValueError(f"extractor {extractor.name} is no classifier: the AM score needs one such as inception-v3.")
        return _BIASED_LOGITS if _BIASED_LOGITS in extractor.feature_dims else extractor.class_logits

    def update(self, features: Mapping[str, Tensor], real: bool) -> None:
        """Accumulate the logits of one batch."""
        self.probabilities[side_name(real)].append(self.select(features))

    def compute(self) -> dict[str, float]:
        """Return the score as ``am_score``."""
        return {"am_score": _score(self.probabilities["real"], self.probabilities["fake"])}

    def reset(self, real: bool) -> None:
        """Forget one side."""
        self.probabilities[side_name(real)] = ClassProbabilities()

    def state(self, real: bool) -> dict[str, Any]:
        """Return one side's sums."""
        return self.probabilities[side_name(real)].state()

    def load_states(self, real: bool, states: Sequence[Any], order: Tensor | None) -> None:
        """Sum several processes' states (the order of samples has no effect)."""
        self.probabilities[side_name(real)] = ClassProbabilities.merged(states)

    def load_statistics(self, entry: FeatureEntry, real: bool) -> bool:
        """Take one side from stored logits; moments are not enough."""
        if entry.features is None:
            return False
        self.reset(real)
        self.probabilities[side_name(real)].append(entry.features)
        return True
