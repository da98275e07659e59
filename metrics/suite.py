"""Run any number of metrics over two image sets, each image once through one extractor, and say under which protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metrics import registry
from metrics.extractors.base import FeatureExtractor
from metrics.metric import SIDES, Metric, side_name
from metrics.resize import build_resizer, check_images
from metrics.statistics import FeatureStatistics, check_protocol

__all__ = ["Metric", "MetricSuite", "score_images"]

_DEFAULT_BATCH_SIZE = 64
Images = Tensor | list[Tensor]


def build_metric(metric: Metric | str) -> Metric:
    """Return a metric given by name ("frechet", "kid", ...), or the one given.

    Raises:
        ValueError: If no metric has that name.
    """
    if isinstance(metric, Metric):
        return metric
    built: Metric = registry.resolve("metric", registry.METRICS, registry.canonical_metric(metric))()
    return built


class MetricSuite:
    """Metrics that share one extractor and one resizer.

    One reference scores many sample sets: feed it once, then `reset_fake()` between sets.

    Args:
        metrics: Names ("frechet", "kid", "precision_recall", "inception_score", "cmmd") or `Metric` objects.
        extractor: The frozen network.
        resizer: Name of the resizer; None takes the extractor's own ("cmmd" for CLIP, "clean" for the
            others).
        batch_size: Images per forward pass; it changes speed and memory, not results.
        progress: Whether to show a bar for updates of more than one batch.
    """

    def __init__(
        self,
        metrics: Sequence[Metric | str],
        extractor: FeatureExtractor,
        resizer: str | None = None,
        batch_size: int = _DEFAULT_BATCH_SIZE,
        progress: bool = False,
    ) -> None:
        if isinstance(metrics, str) or not metrics:
            raise ValueError(f"metrics must be a list of at least one metric, got {metrics!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.metrics = [build_metric(metric) for metric in metrics]
        names = [metric.name for metric in self.metrics]
        if len({(metric.name, metric.feature) for metric in self.metrics}) < len(names):
            raise ValueError(f"metrics name one of them twice: {', '.join(names)}.")
        self.extractor = extractor
        self.resizer = build_resizer(resizer or extractor.default_resizer)
        self.batch_size = batch_size
        self.progress = progress
        for metric in self.metrics:
            metric.bind(extractor)
        self.reference: dict[str, Any] | None = None
        self._indices: dict[str, list[Tensor]] = {side: [] for side in SIDES}
        self._is_gathered = {side: False for side in SIDES}

    def update(self, images: Images, real: bool, indices: Tensor | None = None) -> None:
        """Score a batch of any length.

        Args:
            images: uint8 (B, 3, H, W), or a list of uint8 (3, H, W) of mixed sizes.
            real: Whether they belong to the reference.
            indices: (B,) int64 place of each image in the whole set, over all processes. Several processes
                must give them if metrics that depend on the order (KID's subsets, the Inception Score's
                splits) are to equal those of one process; they also reveal an image counted twice. None
                numbers the images as they come.

        Raises:
            TypeError: If images are not uint8.
            ValueError: If a shape is wrong or a feature is not finite.
        """
        side = side_name(real)
        if self._is_gathered[side]:
            raise RuntimeError(f"the {side} side has been gathered over processes: reset it before adding images.")
        if isinstance(images, Tensor):
            check_images(images)
        if indices is not None and len(indices) != len(images):
            raise ValueError(f"indices must have one entry per image ({len(images)}), got {len(indices)}.")
        first = self.count(real)
        if not real or any(metric.needs_real for metric in self.metrics):
            starts = range(0, len(images), self.batch_size)
            is_shown = self.progress and len(starts) > 1
            for start in tqdm(starts, desc=f"{side} features", disable=not is_shown, leave=False):
                features = self._extract(images[start : start + self.batch_size], side, first + start)
                for metric in self.metrics:
                    metric.update(features, real)
        self._indices[side].append(torch.arange(first, first + len(images)) if indices is None else indices.cpu().long())

    def _extract(self, images: Images, side: str, first: int) -> dict[str, Tensor]:
        device = self.extractor.device
        batch = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
        with torch.inference_mode():
            pixels = self.resizer(batch, self.extractor.input_size)  # (B, 3, h, w)
            output = self.extractor(self.extractor.match_protocol(pixels, self.resizer.name))
            needed = {str(metric.feature) for metric in self.metrics}
            features = {name: output[name].float().cpu() for name in needed}  # (B, D) each
        for name, values in features.items():
            is_bad = ~torch.isfinite(values).all(1)
            if bool(is_bad.any()):
                raise ValueError(
                    f"feature {name} of {side} image {first + int(is_bad.nonzero()[0])} is NaN or infinite: "
                    "the weights of "
                    f"{self.extractor.name} are damaged or overflow in this precision."
                )
        # Tensors made in inference mode can't be saved for a gradient or changed in place; copies can.
        return {name: values.clone() for name, values in features.items()}

    def count(self, real: bool) -> int:
        """Return how many images one side has had (after `gather`, over all processes)."""
        return sum(len(chunk) for chunk in self._indices[side_name(real)])

    def compute(self) -> dict[str, float]:
        """Return all numbers by name.

        Raises:
            ValueError: If a side has too few images for a metric.
        """
        scores: dict[str, float] = {}
        for metric in self.metrics:
            for key, value in metric.compute().items():
                name = key if key not in scores else f"{key}_{metric.feature}"
                scores[name] = value
        return scores

    def reset_fake(self) -> None:
        """Forget the fake side and keep the reference."""
        self._reset(real=False)

    def reset(self) -> None:
        """Forget both sides."""
        self._reset(real=False)
        self._reset(real=True)
        self.reference = None

    def _reset(self, real: bool) -> None:
        for metric in self.metrics:
            metric.reset(real)
        self._indices[side_name(real)] = []
        self._is_gathered[side_name(real)] = False

    def load_reference(self, statistics: FeatureStatistics) -> None:
        """Take the reference from stored statistics instead of images.

        Raises:
            ValueError: If they were made under another protocol or dimension, or a metric needs the images
                themselves.
        """
        for metric in self.metrics:
            if not metric.needs_real:
                continue
            dimension = self.extractor.feature_dims[str(metric.feature)]
            if len(statistics.mu) != dimension:
                raise ValueError(
                    f"{statistics.path} holds {len(statistics.mu)}-d statistics, but {metric.feature} of "
                    f"{self.extractor.name} is "
                    f"{dimension}-d: use the matching extractor and --dims."
                )
            check_protocol(statistics, self.feature_protocol(str(metric.feature)), "this run")
            metric.load_reference(statistics)
        self.reference = {"path": statistics.path, "provenance": statistics.provenance}

    def feature_protocol(self, feature: str) -> dict[str, Any]:
        """Return what decides a feature's values: the `metrics.statistics.PROTOCOL_FIELDS`."""
        return {
            "extractor": self.extractor.name,
            "weights_sha256": self.extractor.weights_sha256,
            "feature": feature,
            "input_size": self.extractor.input_size,
            "resizer": self.resizer.name,
            "normalization": self.extractor.normalization(self.resizer.name),
        }

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that the numbers depend on, JSON-able."""
        protocol = self.feature_protocol("")
        del protocol["feature"]
        return {
            **protocol,
            "num_real": self._num_real(),
            "num_fake": self.count(False),
            "reference": self.reference,
            "metrics": {name: metric.parameters for name, metric in zip(self._metric_names(), self.metrics, strict=True)},
        }

    def _num_real(self) -> int | None:
        """Return the size of the reference; None for a statistics file that does not tell."""
        if self.reference is None:
            return self.count(True)
        return (self.reference["provenance"] or {}).get("num_images")

    def _metric_names(self) -> list[str]:
        names = [metric.name for metric in self.metrics]
        return [
            name if names.count(name) == 1 else f"{name}_{metric.feature}"
            for name, metric in zip(names, self.metrics, strict=True)
        ]

    def gather(self, gather_object: Callable[[Any], list[Any]]) -> None:
        """Merge the states of all processes, so that each holds the whole; call it on every process before
        `compute`.

        A side that is gathered already, such as a kept reference, is left alone.

        Args:
            gather_object: Takes this process's object and returns all processes' objects by rank, for example
                `lambda local: accelerate.utils.gather_object([local])`.

        Raises:
            ValueError: If given `indices` show that an image was counted twice, as padded samplers do.
        """
        for real in (True, False):
            side = side_name(real)
            if self._is_gathered[side]:
                continue
            local = {
                "indices": self._indices[side],
                "states": [metric.state(real) for metric in self.metrics],
            }
            everyone = gather_object(local)
            indices = [torch.cat(part["indices"]) for part in everyone if part["indices"]]
            order = _global_order(indices, side)
            for position, metric in enumerate(self.metrics):
                metric.load_states(real, [part["states"][position] for part in everyone], order)
            self._indices[side] = [torch.cat(indices)] if indices else []
            self._is_gathered[side] = True


def _global_order(indices: list[Tensor], side: str) -> Tensor | None:
    """Return the permutation into global order, or None when every process numbered its own images from 0."""
    if not indices or all(torch.equal(part, torch.arange(len(part))) for part in indices):
        return None
    merged = torch.cat(indices)
    if len(merged.unique()) < len(merged):
        raise ValueError(
            f"{len(merged) - len(merged.unique())} {side} images were counted twice over the processes: "
            "split the set without "
            "padding it."
        )
    return merged.argsort()


def score_images(
    real: Iterable[Images],
    fake: Iterable[Images],
    metrics: Sequence[Metric | str],
    extractor: FeatureExtractor,
    resizer: str | None = None,
    batch_size: int = _DEFAULT_BATCH_SIZE,
    progress: bool = False,
) -> dict[str, Any]:
    """Score one sample set against one reference.

    Args:
        real: Batches of reference images, each uint8 (B, 3, H, W) or a list of uint8 (3, H, W).
        fake: Batches of samples, likewise.
        metrics: Names or `Metric` objects.
        extractor: The frozen network.
        resizer: Name of the resizer; None takes the extractor's own.
        batch_size: Images per forward pass.
        progress: Whether to show a bar.

    Returns:
        Each number by name, and `protocol`, the dict without which they mean nothing.
    """
    suite = MetricSuite(metrics, extractor, resizer, batch_size)
    for is_real, batches in ((True, real), (False, fake)):
        shown = tqdm(batches, desc=f"{side_name(is_real)} images", leave=False) if progress else nullcontext(batches)
        with shown as iterator:
            for images in iterator:
                suite.update(images, is_real)
    return {**suite.compute(), "protocol": suite.protocol}
