"""What is known of an image set without its images: moments or features of it, and the protocol they were made under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from metrics.scores.moments import Gaussian, MomentAccumulator

#: Fields that change the features, so must agree before two sets of statistics may be compared.
PROTOCOL_FIELDS = ("extractor", "weights_sha256", "feature", "input_size", "resizer", "normalization", "precision")


@dataclass(frozen=True)
class FeatureEntry:
    """What a file holds of one feature: moments, feature vectors, or both.

    Args:
        extractor: Network, or None where the file does not say.
        feature: Feature of it, or None where the file does not say.
        mu: (D,) float64 mean, or None.
        sigma: (D, D) float64 unbiased covariance, or None.
        features: (N, D) float32, or None.
        provenance: The ``PROTOCOL_FIELDS`` they were made under, or None for a file of another tool.
        num_images: Images they were made from, or None where the file does not say.
    """

    extractor: str | None
    feature: str | None
    mu: Tensor | None = None
    sigma: Tensor | None = None
    features: Tensor | None = None
    provenance: Mapping[str, Any] | None = None
    num_images: int | None = None

    @property
    def dimension(self) -> int:
        """D."""
        if self.mu is not None:
            return len(self.mu)
        return 0 if self.features is None else self.features.shape[1]

    @property
    def names(self) -> tuple[str | None, str | None]:
        """Extractor and feature."""
        return self.extractor, self.feature

    def gaussian(self) -> Gaussian:
        """Return the fitted Gaussian that the Frechet distance takes: the stored one, else that of the feature vectors.

        Raises:
            ValueError: If there is neither, or there are fewer than two vectors.
        """
        if self.mu is not None and self.sigma is not None:
            return Gaussian(mu=self.mu, sigma=self.sigma, num_samples=self.num_images)
        accumulator = MomentAccumulator()
        if self.features is not None:
            accumulator.append(self.features)
        return accumulator.gaussian()


@dataclass(frozen=True)
class ReferenceStatistics:
    """The content of a statistics file.

    Args:
        path: Where it was read, for messages.
        entries: One per feature.
        num_images: Images it was made from, or None where the file does not say.
        source: What they were, or None.
        source_sha256: Fingerprint of them (``ImageSource.identity``), or None.
        has_provenance: Whether the file says how it was made.
    """

    path: str
    entries: tuple[FeatureEntry, ...]
    num_images: int | None = None
    source: str | None = None
    source_sha256: str | None = None
    has_provenance: bool = False

    def find(self, extractor: str, feature: str, feature_dim: int | None) -> FeatureEntry | None:
        """Return what the file holds of a feature.

        Args:
            extractor: Name of the network ("inception-v3").
            feature: Name of its feature ("pool3").
            feature_dim: D of that feature; None takes any.

        Returns:
            The entry of that name; else one without a name that has this dimension, which is then taken on trust; else None.
        """
        for wanted in ((extractor, feature), (None, None)):
            for entry in self.entries:
                if entry.names == wanted and feature_dim in (None, entry.dimension):
                    return entry
        return None

    def describe(self) -> str:
        """Return in words what the file holds, for a message about what it does not."""
        parts = []
        for entry in self.entries:
            what = [word for word, value in (("moments", entry.mu), ("features", entry.features)) if value is not None]
            name = f" of {entry.extractor} {entry.feature}" if entry.extractor else ""
            parts.append(f"{entry.dimension}-d {' and '.join(what)}{name}")
        return ", ".join(parts)


def check_protocol(entry: FeatureEntry, protocol: Mapping[str, Any], path: str | Path, against: str) -> None:
    """Raise if statistics were made under another protocol than the one they are compared under.

    Args:
        entry: What was read; without provenance nothing can be checked but the caller should say so.
        protocol: The ``PROTOCOL_FIELDS`` of the other side.
        path: Where the entry was read, for the message.
        against: What the other side is, for the message.

    Raises:
        ValueError: If a field differs; a distance across protocols would be a number without meaning.
    """
    if entry.provenance is None:
        return
    differing = [field for field in PROTOCOL_FIELDS if entry.provenance.get(field) != protocol.get(field)]
    if differing:
        field = differing[0]
        raise ValueError(
            f"{path} was made with {field} {entry.provenance.get(field)!r}, but {against} has {protocol.get(field)!r}: "
            "score under one protocol, or save the statistics again with --save-stats."
        )
