"""How often samples show the class that was asked for, as a score beside the others: a fitted classifier in a network's place.

So its answers are kept, resumed and merged over processes as features are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from metrics.extractors.base import FeatureExtractor
from metrics.metric import CLASS_LABELS, Metric
from metrics.scores.classification import LabelClassifier
from metrics.suite import MetricSuite

_PREDICTED = "predicted_class"
_SAME_SIZE = "clean"  # To the size that images have already it changes no pixel.


class ClassifierNetwork(FeatureExtractor):
    """A fitted ``LabelClassifier`` whose one feature is the class that it takes an image for.

    Args:
        classifier: The classifier.
        image_size: Side of the images that it was fitted on.
        fitted_on: Fingerprint of those images.
    """

    name = "label-classifier"
    embedding = _PREDICTED

    def __init__(self, classifier: LabelClassifier, image_size: int, fitted_on: str) -> None:
        super().__init__()
        self.classifier = classifier
        self.input_size = image_size
        self.weights_sha256 = f"{classifier.description}, {fitted_on}"
        self.feature_dims = {_PREDICTED: 1}

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Raise: it is fitted to images.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a label classifier is fitted to images, not read from a file.")

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the predicted class (B, 1) float32 of images, float32 (B, 3, h, w) in [0, 255]."""
        return {_PREDICTED: self.classifier.predict(images.round().clamp(0, 255).to(torch.uint8)).float()[:, None]}


class ClassificationAccuracy(Metric):
    """Share of samples taken for the class that was asked for, ``classification_accuracy``.

    Of a class that the classifier has never seen it says nothing; there is no number where there is no other.

    Args:
        known: (K,) int64 classes that it has seen.
    """

    name = "classification_accuracy"
    needs_real = False
    needs_labels = True
    higher_is_better = True

    def __init__(self, known: Tensor) -> None:
        super().__init__(_PREDICTED)
        self.known = known
        self.hits: list[Tensor] = []

    def least_images(self, real: bool) -> int:
        """Return 0: without an image there is no number."""
        return 0

    def update(self, features: Mapping[str, Tensor], real: bool) -> None:
        """Compare predicted and requested classes of one batch."""
        if real:
            return
        labels = features[CLASS_LABELS].cpu()
        is_hit = self.select(features)[:, 0].long() == labels
        self.hits.append(is_hit[torch.isin(labels, self.known)])

    def compute(self) -> dict[str, float]:
        """Return the share, if there is one."""
        hits = torch.cat([torch.empty(0, dtype=torch.bool), *self.hits])
        return {self.name: float(hits.double().mean())} if len(hits) else {}

    def reset(self, real: bool) -> None:
        """Forget the samples."""
        if not real:
            self.hits = []

    def state(self, real: bool) -> list[Tensor]:
        """Return which samples were recognised."""
        return [] if real else self.hits

    def load_states(self, real: bool, states: Sequence[Any], order: Tensor | None) -> None:
        """Take the samples of all processes."""
        if not real:
            self.hits = [hits for part in states for hits in part]


def recognition_suite(classifier: LabelClassifier, labels: Tensor, image_size: int, fitted_on: str) -> MetricSuite:
    """Return a suite that scores samples by a classifier.

    Args:
        classifier: Fitted.
        labels: (N,) int64 classes that it was fitted on.
        image_size: Side of the images in pixels.
        fitted_on: Fingerprint of them.
    """
    network = ClassifierNetwork(classifier, image_size, fitted_on)
    return MetricSuite([ClassificationAccuracy(labels.unique())], network, _SAME_SIZE)
