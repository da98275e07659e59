"""Class-wise Frechet distance: the mean over classes of the distance between the fakes and the reals of one class ("intra-FID",
Miyato and Koyama, arXiv:1802.05637, section 5).

It sees a generator that ignores its labels, which FID cannot. With few images per class each distance is strongly biased
upwards, so only numbers at equal counts per class compare.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from metrics.metric import CLASS_LABELS, SIDES, Metric, SmallSampleWarning, side_name
from metrics.scores.frechet import gaussian_distance
from metrics.scores.moments import MomentAccumulator

if TYPE_CHECKING:
    from metrics.extractors.base import FeatureExtractor

_NUM_NAMED = 10  # Classes that a message lists before it counts the rest.


class ClassFrechetDistance(Metric):
    """Mean over classes of the Frechet distance to the reals of the same class.

    Called ``class_fid`` on Inception-v3's pool3 and ``class_frechet_distance`` elsewhere. A class keeps its moments only: with n
    images below D features, n rows in float32; beyond, one (D, D) matrix in float64.

    Args:
        feature: Feature to read; None takes the extractor's own.
    """

    name = "class_frechet"
    needs_labels: ClassVar[bool] = True

    def __init__(self, feature: str | None = None) -> None:
        super().__init__(feature)
        self.key = "class_frechet_distance"
        self.accumulators: dict[str, dict[int, MomentAccumulator]] = {side: {} for side in SIDES}

    def bind(self, extractor: FeatureExtractor) -> None:
        """Choose the feature, and the name that its distance has in the literature."""
        super().bind(extractor)
        self.key = f"class_{extractor.frechet_names.get(str(self.feature), 'frechet_distance')}"

    def update(self, features: Mapping[str, Tensor], real: bool) -> None:
        """Accumulate the features of one batch by class.

        Args:
            features: The feature (B, D) float32 and ``class_labels`` (B,) int64.
            real: Which side.

        Raises:
            ValueError: If the images have no labels.
        """
        if CLASS_LABELS not in features:
            raise ValueError(f"metric {self.name} needs class labels, and the {side_name(real)} images have none.")
        values, labels = self.select(features), features[CLASS_LABELS].cpu()
        side = self.accumulators[side_name(real)]
        for label in labels.unique().tolist():
            side.setdefault(label, MomentAccumulator()).append(values[labels == label])

    def per_class(self) -> dict[int, float]:
        """Return class -> Frechet distance, by class number.

        Raises:
            ValueError: If a class has fewer than two images on one side.
        """
        real, fake = (self.accumulators[side] for side in SIDES)
        for side, own, other in (("real", real, fake), ("fake", fake, real)):
            few = sorted(label for label in own | other if label not in own or len(own[label]) < 2)
            if few or not own:
                shown = [self.class_names.get(label, str(label)) for label in few[:_NUM_NAMED]]
                named = ", ".join(shown) + (f" and {len(few) - _NUM_NAMED} more" if few[_NUM_NAMED:] else "")
                raise ValueError(
                    f"class-wise distances need at least 2 {side} images of every class, and these classes have fewer: "
                    f"{named or 'all'}."
                )
        return {label: gaussian_distance(real[label].gaussian(), fake[label].gaussian()) for label in sorted(real)}

    def compute(self) -> dict[str, float]:
        """Return the mean over classes."""
        distances = self.per_class()
        counts = [len(accumulator) for side in SIDES for accumulator in self.accumulators[side].values()]
        first = next(iter(self.accumulators["real"].values())).gaussian()
        if min(counts) < len(first.mu):
            warnings.warn(
                f"the smallest class has {min(counts)} images, fewer than the {len(first.mu)} feature dimensions: class-wise "
                "distances are biased upwards; compare only at equal counts per class.",
                SmallSampleWarning,
                stacklevel=2,
            )
        return {self.key: float(torch.tensor(list(distances.values()), dtype=torch.float64).mean())}

    def reset(self, real: bool) -> None:
        """Forget one side."""
        self.accumulators[side_name(real)] = {}

    def state(self, real: bool) -> dict[int, dict[str, Any]]:
        """Return one side's moments by class."""
        return {label: accumulator.state() for label, accumulator in self.accumulators[side_name(real)].items()}

    def load_states(self, real: bool, states: Sequence[Any], order: Tensor | None) -> None:
        """Sum several processes' moments (the order of samples has no effect)."""
        merged: dict[int, MomentAccumulator] = {}
        for label in sorted({label for state in states for label in state}):
            merged[label] = MomentAccumulator()
            merged[label].load([state[label] for state in states if label in state])
        self.accumulators[side_name(real)] = merged
