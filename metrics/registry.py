"""Names that users type, and where their classes live. A new metric, extractor or resizer is one file and one
line here.

This module imports nothing heavy, so a command line can list and check names before it loads torch.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Metric name -> class. The class is a `metrics.metric.Metric`.
METRICS: dict[str, str] = {
    "frechet": "metrics.frechet:FrechetDistance",
    "kid": "metrics.kernel:KernelDistance",
    "precision_recall": "metrics.manifold:PrecisionRecall",
    "inception_score": "metrics.inception_score:InceptionScore",
    "cmmd": "metrics.kernel:CMMD",
}

#: Names that other tools use -> ours.
METRIC_ALIASES: dict[str, str] = {
    "fid": "frechet",
    "fd": "frechet",
    "is": "inception_score",
    "prc": "precision_recall",
}

#: Extractor name -> class. The class is a `metrics.extractors.base.FeatureExtractor`.
EXTRACTORS: dict[str, str] = {
    "inception-v3": "metrics.extractors.inception:InceptionV3",
    "clip-vit-l-14-336": "metrics.extractors.clip:CLIPImageEncoder",
    "efficientnet-lite0": "metrics.extractors.efficientnet_lite:EfficientNetLite0",
}

#: Resizer name -> class. The class is a `metrics.resize.Resizer`.
RESIZERS: dict[str, str] = {
    "clean": "metrics.resize:CleanResizer",
    "pytorch-fid": "metrics.resize:PytorchFidResizer",
    "tensorflow": "metrics.resize:TensorflowResizer",
    "cmmd": "metrics.resize:CmmdResizer",
}

#: Protocol -> resizer. A protocol fixes every step before the network; the network is --extractor.
PROTOCOLS = {"clean": "clean", "pytorch-fid": "pytorch-fid", "tensorflow": "tensorflow"}
#: --dims -> feature of Inception-v3.
FEATURE_BY_DIMS = {64: "64", 192: "192", 768: "768", 2048: "pool3"}


def canonical_metric(name: str) -> str:
    """Return our name of a metric, `fid` -> `frechet`.

    Raises:
        ValueError: If no metric has that name.
    """
    key = METRIC_ALIASES.get(name, name)
    if key not in METRICS:
        raise ValueError(f"metric {name!r} is not known: choose from {', '.join([*METRICS, *METRIC_ALIASES])}.")
    return key


def resolve(kind: str, table: dict[str, str], name: str) -> Any:
    """Import the class that a table names.

    Args:
        kind: What the table holds, for the message ("extractor").
        table: One of the tables above.
        name: The key a user gave.

    Raises:
        ValueError: If the table has no such key.
    """
    if name not in table:
        raise ValueError(f"{kind} {name!r} is not known: choose from {', '.join(table)}.")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
