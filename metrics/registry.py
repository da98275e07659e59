"""Names that users type, and where their classes live. A new metric, extractor or resizer is one file and one
line here.

This module imports nothing heavy, so a command line can list and check names before it loads torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Score:
    """What a metric's name on the command line stands for.

    Args:
        metric: "module:Class" of a ``metrics.metric.Metric``.
        help: What it is, in a few words, for ``fid-score --help``.
        extractor: The network that its definition names; None takes the run's (``--extractor``).
        feature: Feature of that network; None takes the metric's own choice.
        resizer: Resizer that its definition names; None takes the protocol's.
        options: Constructor arguments of the class.
    """

    metric: str
    help: str
    extractor: str | None = None
    feature: str | None = None
    resizer: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


SCORES: dict[str, Score] = {
    "fid": Score("metrics.scores.frechet:FrechetDistance", "Frechet distance (FID on Inception-v3)"),
    "sfid": Score("metrics.scores.frechet:FrechetDistance", "FID on spatial features", "inception-v3", "spatial"),
    "fid-infinity": Score("metrics.scores.frechet_infinity:FrechetInfinity", "FID extrapolated to infinitely many samples"),
    "class-fid": Score("metrics.scores.class_frechet:ClassFrechetDistance", "mean FID over classes (needs labels)"),
    "fd-dinov2": Score(
        "metrics.scores.frechet:FrechetDistance", "Frechet distance on DINOv2 ViT-L/14", "dinov2-vit-l-14", resizer="dinov2"
    ),
    "clip-fid": Score(
        "metrics.scores.frechet:FrechetDistance", "clean-fid's CLIP-FID (ViT-B/32)", "clip-vit-b-32", resizer="clip-fid"
    ),
    "is": Score("metrics.scores.inception_score:InceptionScore", "Inception Score"),
    "am": Score("metrics.scores.am_score:AMScore", "AM score of AM-GAN (lower is better)"),
    "kid": Score("metrics.scores.kernel:KernelDistance", "kernel Inception distance"),
    "cmmd": Score(
        "metrics.scores.kernel:CMMD", "CLIP maximum mean discrepancy, as published", "clip-vit-l-14-336", resizer="cmmd"
    ),
    "cmmd-unbiased": Score(
        "metrics.scores.kernel:CMMD",
        "CMMD without the diagonals",
        "clip-vit-l-14-336",
        resizer="cmmd",
        options=MappingProxyType({"estimator": "unbiased"}),
    ),
    "mind": Score("metrics.scores.mind:MongeInceptionDistance", "Monge Inception distance (sliced Wasserstein)"),
    "prc": Score("metrics.scores.manifold:PrecisionRecall", "precision, recall, density, coverage"),
}

#: Other names for the same, those of earlier versions and of the literature -> ours.
METRIC_ALIASES: dict[str, str] = {
    "frechet": "fid",
    "fd": "fid",
    "inception_score": "is",
    "isc": "is",
    "precision_recall": "prc",
    "am-score": "am",
}

#: Extractor name -> class. The class is a ``metrics.extractors.base.FeatureExtractor``.
EXTRACTORS: dict[str, str] = {
    "inception-v3": "metrics.extractors.inception:InceptionV3",
    "clip-vit-l-14-336": "metrics.extractors.clip:CLIPViTL14At336",
    "clip-vit-b-32": "metrics.extractors.clip:CLIPViTB32",
    "dinov2-vit-s-14": "metrics.extractors.dinov2:DINOv2ViTS14",
    "dinov2-vit-b-14": "metrics.extractors.dinov2:DINOv2ViTB14",
    "dinov2-vit-l-14": "metrics.extractors.dinov2:DINOv2ViTL14",
    "dinov2-vit-g-14": "metrics.extractors.dinov2:DINOv2ViTG14",
    "mocov3-vit-s": "metrics.extractors.mocov3:MoCoV3ViTS",
    "mocov3-vit-b": "metrics.extractors.mocov3:MoCoV3ViTB",
    "mocov3-vit-l": "metrics.extractors.mocov3:MoCoV3ViTL",
    "msn-vit-s-16": "metrics.extractors.msn:MSNViTS16",
    "msn-vit-b-16": "metrics.extractors.msn:MSNViTB16",
    "msn-vit-l-16": "metrics.extractors.msn:MSNViTL16",
    "msn-vit-b-4": "metrics.extractors.msn:MSNViTB4",
    "msn-vit-l-7": "metrics.extractors.msn:MSNViTL7",
    "efficientnet-lite0": "metrics.extractors.efficientnet_lite:EfficientNetLite0",
    "resnet50": "metrics.extractors.torchvision_classifier:ResNet50",
    "vgg16": "metrics.extractors.torchvision_classifier:VGG16",
    "resnet9": "metrics.extractors.resnet9:ResNet9",
}

#: Resizer name -> class. The class is a ``metrics.resize.Resizer``.
RESIZERS: dict[str, str] = {
    "clean": "metrics.resize:CleanResizer",
    "pytorch-fid": "metrics.resize:PytorchFidResizer",
    "tensorflow": "metrics.resize:TensorflowResizer",
    "cmmd": "metrics.resize:CmmdResizer",
    "clip-fid": "metrics.resize:ClipFidResizer",
    "dinov2": "metrics.resize:Dinov2Resizer",
    "dinov2-pil": "metrics.resize:Dinov2PilResizer",
}


@dataclass(frozen=True)
class Protocol:
    """Everything before and after the network that a published way of scoring fixes; the network is --extractor.

    Args:
        origin: Whose way it is.
        resizer: Key of ``RESIZERS``.
        scores: Scores that the origin prints, taken where the user names none.
        options: Constructor arguments by score name, where the origin's differ from ours.
        same_size: Whether all images must have one size.
        num_samples: Sample count that the origin's published figures use.
    """

    origin: str
    resizer: str
    scores: tuple[str, ...] = ("fid",)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    same_size: bool = False
    num_samples: int = 50_000


PROTOCOLS: dict[str, Protocol] = {
    "clean": Protocol("clean-fid (arXiv:2104.11222)", "clean"),
    "pytorch-fid": Protocol("pytorch-fid 0.3", "pytorch-fid"),
    "tensorflow": Protocol("torch-fidelity 0.4, TTUR (arXiv:1706.08500)", "tensorflow"),
    "adm": Protocol(
        "evaluation suite of guided diffusion (arXiv:2105.05233)",
        "tensorflow",
        scores=("is", "fid", "sfid", "prc"),
        options=MappingProxyType({"is": MappingProxyType({"split_size": 5000, "shuffle_seed": None})}),
        same_size=True,
    ),
    "edm": Protocol("EDM and EDM2 (arXiv:2206.00364, 2312.02696)", "tensorflow", same_size=True),
}
#: --dims -> feature of Inception-v3.
FEATURE_BY_DIMS = {64: "64", 192: "192", 768: "768", 2048: "pool3"}


def canonical_metric(name: str) -> str:
    """Return our name of a score, ``frechet`` -> ``fid``.

    Raises:
        ValueError: If no score has that name.
    """
    key = METRIC_ALIASES.get(name, name)
    if key not in SCORES:
        raise ValueError(f"metric {name!r} is not known: choose from {', '.join(SCORES)}.")
    return key


def load(target: str) -> Any:
    """Import what "module:attribute" names."""
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


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
    return load(table[name])
