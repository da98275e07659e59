"""What a metric is: it takes features of real and fake images, keeps a state that merges over processes, gives numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from metrics.notes import ScoreNote

if TYPE_CHECKING:
    from metrics.extractors.base import FeatureExtractor
    from metrics.files.statistics import FeatureEntry

#: Name under which a batch's class labels (B,) int64 stand beside its features, where the images have any.
CLASS_LABELS = "class_labels"
SIDES = ("real", "fake")


def side_name(real: bool) -> str:
    """Return "real" or "fake"."""
    return "real" if real else "fake"


class SmallSampleWarning(ScoreNote):
    """Too few samples for the number to mean what its name says."""


class Metric(ABC):
    """One metric over the features of a real and a fake image set.

    A subclass names the feature it reads (``feature``), keeps one state per side and computes from the two.
    Metrics that hold references to the same feature chunks share their memory.

    Args:
        feature: Name of the extractor's feature to read; None takes the extractor's own choice when it is
            bound.
    """

    name: ClassVar[str]
    #: Whether the metric looks at real images at all (the Inception Score does not).
    needs_real: ClassVar[bool] = True
    #: Whether it reads class labels, ``features["class_labels"]``.
    needs_labels: ClassVar[bool] = False
    #: Whether a statistics file must hold every image's features to serve it: moments are not enough.
    needs_stored_features: ClassVar[bool] = False
    #: Whether larger numbers are better; of a distance they are worse.
    higher_is_better: ClassVar[bool] = False

    def __init__(self, feature: str | None = None) -> None:
        self.feature = feature
        #: Class number -> name, for messages; filled where classes have names.
        self.class_names: dict[int, str] = {}

    def bind(self, extractor: FeatureExtractor) -> None:
        """Choose the feature to read, and with it the names of the results."""
        if self.feature is None:
            self.feature = self.default_feature(extractor)
        if self.feature not in extractor.feature_dims:
            raise ValueError(
                f"extractor {extractor.name} has no feature {self.feature!r}: choose from {', '.join(extractor.feature_dims)}."
            )

    def default_feature(self, extractor: FeatureExtractor) -> str:
        """Return the feature of this extractor that the metric reads unless told otherwise."""
        return extractor.embedding

    def select(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return this metric's feature (B, D) of an extractor's output."""
        if self.feature is None:
            raise ValueError(f"metric {self.name} does not know which feature to read: pass feature=NAME or bind an extractor.")
        return features[self.feature]

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything that changes the number, JSON-able, for the protocol."""
        return {"feature": self.feature}

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names that ``compute`` may give its numbers, those that say how good samples are: deviations and errors do not.

        They hold once the metric is bound to an extractor.
        """
        return (str(getattr(self, "key", self.name)),)

    def least_images(self, real: bool) -> int:
        """Return the fewest images of a side that give a number."""
        return 2

    @abstractmethod
    def update(self, features: Mapping[str, Tensor], real: bool) -> None:
        """Take the features {name: (B, D) float32} of one batch of real or fake images."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the numbers by name."""

    @abstractmethod
    def reset(self, real: bool) -> None:
        """Forget one side."""

    @abstractmethod
    def state(self, real: bool) -> Any:
        """Return one side's state, picklable, to be merged over processes."""

    @abstractmethod
    def load_states(self, real: bool, states: Sequence[Any], order: Tensor | None) -> None:
        """Replace one side by the union of several processes' states.

        Args:
            real: Which side.
            states: One ``state(real)`` per process.
            order: (N,) int64 permutation that puts the concatenated samples in global order; None keeps rank
                order.
        """

    def load_statistics(self, entry: FeatureEntry, real: bool) -> bool:
        """Take one side from a statistics file instead of images.

        Args:
            entry: What the file stores of this metric's feature: moments, features, or both.
            real: Which side.

        Returns:
            Whether that is enough for this metric; if not, nothing has changed.
        """
        return False


class FeatureBank:
    """The features of one image set, as the chunks they came in."""

    def __init__(self) -> None:
        self.chunks: list[Tensor] = []

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)

    def append(self, chunk: Tensor) -> None:
        """Add (B, D) features."""
        self.chunks.append(chunk)

    def stack(self) -> Tensor:
        """Return all features (N, D)."""
        if len(self.chunks) > 1:
            self.chunks = [torch.cat(self.chunks)]
        return self.chunks[0]

    def load(self, states: Sequence[Sequence[Tensor]], order: Tensor | None) -> None:
        """Replace the content by several processes' chunks."""
        self.chunks = [chunk for chunks in states for chunk in chunks]
        if order is not None and self.chunks:
            self.chunks = [torch.cat(self.chunks)[order]]


class FeatureMetric(Metric):
    """A metric that needs every feature vector of both sides at once."""

    needs_stored_features = True

    def __init__(self, feature: str | None = None) -> None:
        super().__init__(feature)
        self.banks = {side: FeatureBank() for side in SIDES}

    def update(self, features: Mapping[str, Tensor], real: bool) -> None:
        """Keep the features of one batch."""
        if real and not self.needs_real:
            return
        self.banks[side_name(real)].append(self.select(features))

    def features(self, real: bool) -> Tensor:
        """Return one side's features (N, D).

        Raises:
            ValueError: If it has too few samples for this metric.
        """
        bank, least = self.banks[side_name(real)], self.least_images(real)
        if len(bank) < least:
            raise ValueError(f"metric {self.name} needs at least {least} {side_name(real)} images and got {len(bank)}.")
        return bank.stack()

    def reset(self, real: bool) -> None:
        """Forget one side."""
        self.banks[side_name(real)] = FeatureBank()

    def state(self, real: bool) -> list[Tensor]:
        """Return one side's chunks."""
        return self.banks[side_name(real)].chunks

    def load_states(self, real: bool, states: Sequence[Any], order: Tensor | None) -> None:
        """Concatenate several processes' chunks."""
        self.banks[side_name(real)].load(states, order)

    def load_statistics(self, entry: FeatureEntry, real: bool) -> bool:
        """Take one side from stored features; moments are not enough."""
        if entry.features is None:
            return False
        self.reset(real)
        self.banks[side_name(real)].append(entry.features)
        return True


class FeatureCollector(FeatureMetric):
    """Keeps features for whoever asks afterwards; it computes nothing."""

    name = "features"

    @property
    def score_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def compute(self) -> dict[str, float]:
        """Return no number."""
        return {}
