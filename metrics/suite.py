"""Run any number of metrics over two image sets, each image once through one extractor, and say under which protocol."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from metrics import registry
from metrics.extraction import Extraction, Images, check_finite, map_on_cores, microbatch_size, num_cores
from metrics.extractors.base import FeatureExtractor
from metrics.metric import CLASS_LABELS, SIDES, FeatureCollector, Metric, side_name
from metrics.resize import check_images

if TYPE_CHECKING:
    from metrics.files.statistics import ReferenceStatistics

__all__ = ["Metric", "MetricSuite", "build_metric", "compute_all", "directions", "name_among", "score_images"]

_DEFAULT_BATCH_SIZE = 64


def build_metric(metric: Metric | str, **options: Any) -> Metric:
    """Return a metric given by name ("fid", "kid", ...), or the one given.

    Args:
        metric: Name or metric.
        **options: Constructor arguments that take precedence over the name's own.

    Raises:
        ValueError: If no metric has that name, or an option has a wrong value.
    """
    if isinstance(metric, Metric):
        return metric
    score = registry.SCORES[registry.canonical_metric(metric)]
    built: Metric = registry.load(score.metric)(**{"feature": score.feature, **score.options, **options})
    return built


class MetricSuite:
    """Metrics that share one extractor and one resizer.

    One reference scores many sample sets: feed it once, then ``reset_fake()`` between sets.

    Args:
        metrics: Names ("fid", "kid", "prc", "is", "cmmd", ...) or ``Metric`` objects.
        extractor: The frozen network.
        resizer: Name of the resizer; None takes the extractor's own ("cmmd" for CLIP, "clean" for most).
        batch_size: Images per forward pass on a GPU; it changes speed and memory, not results.
        progress: Whether to show a bar for updates of more than one batch.
        precision: "float32"; "bfloat16" and "float16" are faster on some hardware and give another score.
    """

    def __init__(
        self,
        metrics: Sequence[Metric | str],
        extractor: FeatureExtractor,
        resizer: str | None = None,
        batch_size: int = _DEFAULT_BATCH_SIZE,
        progress: bool = False,
        precision: str = "float32",
    ) -> None:
        if isinstance(metrics, str) or not metrics:
            raise ValueError(f"metrics must be a list of at least one metric, got {metrics!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.metrics = [build_metric(metric) for metric in metrics]
        self.extractor = extractor
        self.extraction = Extraction(extractor, resizer, precision)
        self.batch_size = batch_size
        self.progress = progress
        for metric in self.metrics:
            metric.bind(extractor)
        names = [metric.name for metric in self.metrics]
        if len({(metric.name, repr(metric.parameters)) for metric in self.metrics}) < len(names):
            raise ValueError(f"metrics name one of them twice: {', '.join(names)}.")
        self._stored: dict[str, dict[str, Any]] = {}
        self._indices: dict[str, list[Tensor]] = {side: [] for side in SIDES}
        self._is_gathered = {side: False for side in SIDES}

    @property
    def features(self) -> list[str]:
        """Names of the features that the metrics read."""
        return sorted({str(metric.feature) for metric in self.metrics})

    def update(self, images: Images, real: bool, indices: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Score a batch of any length.

        Args:
            images: uint8 (B, 3, H, W), or a list of uint8 (3, H, W) of mixed sizes.
            real: Whether they belong to the reference.
            indices: (B,) int64 place of each image in the whole set, over all processes. Several processes
                must give them if metrics that depend on the order (KID's subsets, the Inception Score's
                splits) are to equal those of one process; they also reveal an image counted twice. None
                numbers the images as they come.
            labels: (B,) int64 classes, for metrics that need them.

        Raises:
            TypeError: If images are not uint8.
            ValueError: If a shape is wrong or a feature is not finite.
        """
        if isinstance(images, Tensor):
            check_images(images)
        if indices is not None and len(indices) != len(images):
            raise ValueError(f"indices must have one entry per image ({len(images)}), got {len(indices)}.")
        first = self.count(real)
        places = torch.arange(first, first + len(images)) if indices is None else indices.cpu().long()
        features: dict[str, Tensor] = {}
        if len(images) and (not real or any(metric.needs_real for metric in self.metrics)):
            features = self._extract(images, side_name(real), first)
        self.add(features, real, places, labels)

    def _extract(self, images: Images, side: str, first: int) -> dict[str, Tensor]:
        size = microbatch_size([self.extractor], self.batch_size)
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        is_shown = self.progress and len(images) > self.batch_size
        results = map_on_cores(lambda part: self.extraction(part, self.features), parts, num_cores([self.extractor]))
        shown = list(tqdm(results, desc=f"{side} features", total=len(parts), disable=not is_shown, leave=False))
        features = {name: torch.cat([result[name] for result in shown]) for name in self.features}
        check_finite(features, range(first, first + len(images)), side, self.extractor)
        return features

    def add(
        self,
        features: Mapping[str, Tensor],
        real: bool,
        indices: Tensor,
        labels: Tensor | None = None,
        metrics: Sequence[Metric] | None = None,
    ) -> None:
        """Take features that were extracted already.

        Args:
            features: Feature name -> float32 (B, D); empty where no metric looks at this side.
            real: Whether they belong to the reference.
            indices: (B,) int64 place of each image in the whole set.
            labels: (B,) int64 classes, for metrics that need them.
            metrics: Those of the suite's metrics that take them; None for all.
        """
        side = side_name(real)
        if self._is_gathered[side]:
            raise RuntimeError(f"the {side} side has been gathered over processes: reset it before adding images.")
        if features:
            given = dict(features) if labels is None else {**features, CLASS_LABELS: labels}
            for metric in self.metrics if metrics is None else metrics:
                if metric.needs_labels and labels is None:
                    raise ValueError(f"metric {metric.name} needs class labels, and the {side} images have none.")
                metric.update(given, real)
        self._indices[side].append(indices)

    def count(self, real: bool) -> int:
        """Return how many images one side has had (after ``gather``, over all processes)."""
        return sum(len(chunk) for chunk in self._indices[side_name(real)])

    def compute(self) -> dict[str, float]:
        """Return all numbers by name.

        Raises:
            ValueError: If a side has too few images for a metric.
        """
        scores: dict[str, float] = {}
        for metric in self.metrics:
            scores.update(self.compute_metric(metric, scores))
        return scores

    def compute_metric(self, metric: Metric, taken: Mapping[str, float]) -> dict[str, float]:
        """Return one metric's numbers, by names that are not among those ``taken`` by this suite's others.

        Raises:
            ValueError: If a side has too few images for it.
        """
        return {key if key not in taken else f"{key}_{metric.feature}": value for key, value in metric.compute().items()}

    def reset_fake(self) -> None:
        """Forget the fake side and keep the reference."""
        self._reset(real=False)

    def reset(self) -> None:
        """Forget both sides."""
        self._reset(real=False)
        self._reset(real=True)

    def _reset(self, real: bool) -> None:
        for metric in self.metrics:
            metric.reset(real)
        self._indices[side_name(real)] = []
        self._is_gathered[side_name(real)] = False
        self._stored.pop(side_name(real), None)

    def load_statistics(self, stored: ReferenceStatistics, real: bool = True) -> list[Metric]:
        """Take one side from a statistics file instead of images.

        Returns:
            The metrics for which the file does not hold enough: they need that side's images.

        Raises:
            ValueError: If the file was made under another protocol or dimension.
        """
        from metrics.files.statistics import check_protocol

        lacking = []
        wanting = [metric for metric in self.metrics if metric.needs_real or not real]
        for metric in wanting:
            feature = str(metric.feature)
            entry = stored.find(self.extractor.name, feature, self.extractor.feature_dims[feature])
            if entry is not None:
                check_protocol(entry, self.extraction.protocol(feature), stored.path, "this run")
            if entry is None or not metric.load_statistics(entry, real):
                lacking.append(metric)
        if len(lacking) < len(wanting):
            self._stored[side_name(real)] = {"path": str(stored.path), "num_images": stored.num_images}
        return lacking

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that the numbers depend on, JSON-able."""
        protocol = self.extraction.protocol("")
        del protocol["feature"]
        return {
            **protocol,
            "num_real": self._num_images(True),
            "num_fake": self._num_images(False),
            # Of a file of statistics and images, as ADM's: the images, which serve what the statistics do not.
            **{f"num_{side}_images": self.count(side == "real") for side in self._stored if self.count(side == "real")},
            "reference": self._stored.get("real"),
            "metrics": self._parameters(),
        }

    def _num_images(self, real: bool) -> int | None:
        """Return the size of a side; None for a statistics file that does not tell."""
        stored = self._stored.get(side_name(real))
        number: int | None = self.count(real) if stored is None else stored["num_images"]
        return number

    def _parameters(self) -> dict[str, dict[str, Any]]:
        """Return each metric's parameters by its name, told apart by feature where two share one, else by number."""
        scoring = [metric for metric in self.metrics if not isinstance(metric, FeatureCollector)]
        found: dict[str, dict[str, Any]] = {}
        for metric in scoring:
            is_shared = sum(other.name == metric.name for other in scoring) > 1
            name = f"{metric.name}_{metric.feature}" if is_shared else metric.name
            found[name if name not in found else f"{name}_{len(found)}"] = metric.parameters
        return found

    def gather(self, gather_object: Callable[[Any], list[Any]]) -> None:
        """Merge the states of all processes, so that each holds the whole; call it on every process before
        ``compute``.

        A side that is gathered already, such as a kept reference, is left alone.

        Args:
            gather_object: Takes this process's object and returns all processes' objects by rank, for example
                ``lambda local: accelerate.utils.gather_object([local])``.

        Raises:
            ValueError: If given ``indices`` show that an image was counted twice, as padded samplers do.
        """
        for real in (True, False):
            if not self._is_gathered[side_name(real)]:
                self.gather_side(real, gather_object)

    def gather_side(self, real: bool, gather_object: Callable[[Any], list[Any]], metrics: Sequence[Metric] | None = None) -> None:
        """Merge one side over all processes; ``metrics`` are those that were fed images (None: all)."""
        side = side_name(real)
        merged = self.metrics if metrics is None else metrics
        everyone = gather_object({"indices": self._indices[side], "states": [metric.state(real) for metric in merged]})
        indices = [torch.cat(part["indices"]) for part in everyone if part["indices"]]
        order = _global_order(indices, side)
        for position, metric in enumerate(merged):
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


def name_among(name: str, taken: Container[str], suite: MetricSuite) -> str:
    """Return what a suite's number is called beside those of others: where two networks share a name, the second adds its own."""
    return name if name not in taken else f"{name}_{suite.extractor.name}"


def compute_all(suites: Sequence[MetricSuite], errors: list[str]) -> dict[str, float]:
    """Return the numbers of several networks over the same images by name, named as ``fid-score`` names them.

    Args:
        suites: One per network.
        errors: Gets, of each metric that cannot be computed, the sentence that says why; it does not cost the others.
    """
    scores: dict[str, float] = {}
    for suite in suites:
        own: dict[str, float] = {}
        for metric in suite.metrics:
            try:
                own.update(suite.compute_metric(metric, own))
            except ValueError as error:
                errors.append(str(error))
        scores.update({name_among(name, scores, suite): value for name, value in own.items()})
    return scores


def directions(suites: Sequence[MetricSuite]) -> dict[str, bool]:
    """Return for each number that ``compute_all`` may give, and that says how good samples are, whether higher is better."""
    found: dict[str, bool] = {}
    for suite in suites:
        own: dict[str, bool] = {}
        for metric in suite.metrics:
            names = [name if name not in own else f"{name}_{metric.feature}" for name in metric.score_names]
            own.update(dict.fromkeys(names, metric.higher_is_better))
        found.update({name_among(name, found, suite): better for name, better in own.items()})
    return found


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
        metrics: Names or ``Metric`` objects.
        extractor: The frozen network.
        resizer: Name of the resizer; None takes the extractor's own.
        batch_size: Images per forward pass.
        progress: Whether to show a bar.

    Returns:
        Each number by name, and ``protocol``, the dict without which they mean nothing.
    """
    suite = MetricSuite(metrics, extractor, resizer, batch_size)
    for is_real, batches in ((True, real), (False, fake)):
        shown = tqdm(batches, desc=f"{side_name(is_real)} images", leave=False) if progress else nullcontext(batches)
        with shown as iterator:
            for images in iterator:
                suite.update(images, is_real)
    return {**suite.compute(), "protocol": suite.protocol}
