"""Scores of image generators, each with its protocol: FID, IS, KID, CMMD, precision, recall, density,
coverage.

Images enter as uint8, any size each; a named resizer makes one float batch; an extractor turns it into
features; metrics accumulate the features. ``MetricSuite`` does the three for any number of metrics in one pass
over the images.

Importing this package imports nothing heavy: each name below is loaded when it is first used. The pure
function of the Inception Score is ``metrics.scores.inception_score.inception_score``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metrics.extractors import FeatureExtractor, build_extractor
    from metrics.files.statistics import FeatureEntry, ReferenceStatistics, load_statistics, save_statistics
    from metrics.metric import Metric
    from metrics.resize import build_resizer
    from metrics.scores.frechet import FrechetDistance, frechet_distance, frechet_distance_from_features
    from metrics.scores.inception_score import InceptionScore
    from metrics.scores.kernel import CMMD, KernelDistance, cmmd, kernel_distance, polynomial_mmd2
    from metrics.scores.manifold import PrecisionRecall, precision_recall
    from metrics.scoring import score
    from metrics.sources import open_source
    from metrics.suite import MetricSuite, score_images

_EXPORTS = {
    "CMMD": "metrics.scores.kernel",
    "FeatureExtractor": "metrics.extractors",
    "FeatureEntry": "metrics.files.statistics",
    "ReferenceStatistics": "metrics.files.statistics",
    "FrechetDistance": "metrics.scores.frechet",
    "InceptionScore": "metrics.scores.inception_score",
    "KernelDistance": "metrics.scores.kernel",
    "Metric": "metrics.metric",
    "MetricSuite": "metrics.suite",
    "PrecisionRecall": "metrics.scores.manifold",
    "build_extractor": "metrics.extractors",
    "build_resizer": "metrics.resize",
    "cmmd": "metrics.scores.kernel",
    "frechet_distance": "metrics.scores.frechet",
    "frechet_distance_from_features": "metrics.scores.frechet",
    "kernel_distance": "metrics.scores.kernel",
    "load_statistics": "metrics.files.statistics",
    "open_source": "metrics.sources",
    "polynomial_mmd2": "metrics.scores.kernel",
    "precision_recall": "metrics.scores.manifold",
    "save_statistics": "metrics.files.statistics",
    "score": "metrics.scoring",
    "score_images": "metrics.suite",
}

__all__ = [
    "CMMD",
    "FeatureExtractor",
    "FeatureEntry",
    "ReferenceStatistics",
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "Metric",
    "MetricSuite",
    "PrecisionRecall",
    "build_extractor",
    "build_resizer",
    "cmmd",
    "frechet_distance",
    "frechet_distance_from_features",
    "kernel_distance",
    "load_statistics",
    "open_source",
    "polynomial_mmd2",
    "precision_recall",
    "save_statistics",
    "score",
    "score_images",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'metrics' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
