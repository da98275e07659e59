"""What can be said of the inputs before any network runs: whether they open, and which scores each of them can have."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metrics.distributed import Processes, describe_error
from metrics.metric import FeatureMetric, Metric, side_name
from metrics.options import ScoreOptions
from metrics.scoring.extraction import Consumer
from metrics.scoring.image_sets import ImageSet, OpenOptions, check_draw, open_image_set
from metrics.scoring.report import Result
from metrics.suite import MetricSuite, build_metric


@dataclass
class SampleSet:
    """One sample set of a run.

    Args:
        result: What is found of it.
        side: The set, opened; None if that failed.
        lacking: The metrics that it cannot have.
    """

    result: Result
    side: ImageSet | None
    lacking: set[Metric] = field(default_factory=set)

    def refuse(self, metrics: Iterable[Metric], reason: str) -> None:
        """Note that the set cannot have these metrics, and why."""
        self.lacking.update(metrics)
        if reason not in self.result.errors:
            self.result.errors.append(reason)


def open_all(names: Sequence[str], options: ScoreOptions, processes: Processes) -> tuple[ImageSet | None, list[SampleSet]]:
    """Open the reference (the first path, or --dataset, if there is one) and the sample sets (the others).

    A set that is damaged is no reason to give up the others: its result says so.

    Raises:
        FileNotFoundError: If a path does not exist, which is a mistake in the command.
        ValueError: If the reference or the only sample set can't be opened, or the options don't fit the inputs.
    """
    paths = [Path(path) for path in options.paths]
    needing = [name for name in names if build_metric(name).needs_real]
    if needing and not options.has_reference:
        given = ", ".join(map(str, paths))
        raise ValueError(f"metric {needing[0]} compares samples with a reference, and only {given} is given: fid-score A B.")
    check_draw(paths, options)
    opening = OpenOptions.of(options)
    reference = None
    if options.dataset is not None:
        from metrics.scoring.named import open_named

        reference = open_named(names, options)
    elif options.has_reference:
        reference = open_image_set(paths.pop(0), opening)
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise FileNotFoundError(f"path {missing[0]} does not exist.")
    sets: list[SampleSet] = []
    failures: list[str | None] = []
    for path in paths:
        try:
            side = open_image_set(path, opening)
            sets.append(SampleSet(Result(path, side.describe()), side))
            failures.append(None)
        except (ValueError, TypeError, OSError) as error:
            if len(paths) == 1:
                raise
            sets.append(SampleSet(Result(path, str(path)), None))
            failures.append(describe_error(error))
    processes.agree(None)  # Any process that has raised by now is heard here.
    for sample_set, *messages in zip(sets, *processes.gather(failures), strict=True):
        failed = [message for message in messages if message is not None]
        if failed:
            sample_set.side = None
            sample_set.result.errors.append(failed[0])
    return reference, sets


def check_sets(suites: Sequence[MetricSuite], sets: Sequence[SampleSet]) -> None:
    """Find out what each opened set cannot have, before any network runs."""
    for each in sets:
        if each.side is not None:
            for metric, reason in refusals(suites, each.side, real=False).items():
                each.refuse([metric], reason)


def require_scores(suites: Sequence[MetricSuite], sets: Sequence[SampleSet]) -> None:
    """Raise if the only set lacks something, or no set can have any score.

    Raises:
        ValueError: With the first reason.
    """
    num_metrics = sum(len(suite.metrics) for suite in suites)
    is_hopeless = all(each.side is None or len(each.lacking) == num_metrics for each in sets)
    if is_hopeless or len(sets) == 1:
        errors = [error for each in sets for error in each.result.errors]
        if errors:
            raise ValueError(errors[0])


def refusals(suites: Sequence[MetricSuite], side: ImageSet, real: bool) -> dict[Metric, str]:
    """Return for each metric that an input cannot serve the sentence that says why; statistics are loaded."""
    found: dict[Metric, str] = {}
    for suite in suites:
        wanted = [metric for metric in suite.metrics if metric.needs_real or not real]
        try:
            wanting = wanted if side.statistics is None else suite.load_statistics(side.statistics, real)
        except ValueError as error:  # Made under another protocol.
            found.update(dict.fromkeys(wanted, str(error)))
            continue
        for metric in wanting:
            reason = _refusal(metric, suite, side, real)
            if reason is not None:
                found[metric] = reason
    return found


def consumers_of(
    suites: Sequence[MetricSuite], side: ImageSet, real: bool, lacking: frozenset[Metric] | set[Metric] = frozenset()
) -> list[Consumer]:
    """Load an input's statistics, and return who wants its images, after ``refusals``."""
    consumers = []
    for suite in suites:
        metrics = [metric for metric in suite.metrics if (metric.needs_real or not real) and metric not in lacking]
        if metrics and side.statistics is not None:
            wanting = suite.load_statistics(side.statistics, real)
            metrics = [metric for metric in metrics if metric in wanting]
        if metrics:
            consumers.append(Consumer(suite, metrics))
    return consumers


def _refusal(metric: Metric, suite: MetricSuite, side: ImageSet, real: bool) -> str | None:
    """Return why an input's images cannot serve a metric that its statistics do not, or None."""
    if side.images is None:
        assert side.statistics is not None
        feature = str(metric.feature)
        dimension, wanted = suite.extractor.feature_dims[feature], "reference" if real else "sample"
        return (
            f"metric {metric.name} needs {wanted} images, or {dimension}-d {feature} of {suite.extractor.name} that --save-stats "
            f"stored for it, and {side.path} holds {side.statistics.describe()}."
        )
    count, least = len(side.images), metric.least_images(real)
    if count < 2:
        return f"{side.path} holds one image: a score needs at least two on each side."
    if count < least:
        return f"metric {metric.name} needs at least {least} {side_name(real)} images, and {side.path} holds {count}: give more."
    size = 4 * count * suite.extractor.feature_dims[str(metric.feature)] if isinstance(metric, FeatureMetric) else 0
    if size > _total_memory():
        return (
            f"metric {metric.name} keeps every image's features: {size / 1e9:,.0f} GB for the {count:,} of {side.path}, and this "
            f"machine has {_total_memory() / 1e9:,.0f} GB of memory: give fewer, or score fid alone."
        )
    if metric.needs_labels and not side.images.has_labels:
        return f"metric {metric.name} needs class labels, and {side.images.lack_of_labels()}"
    return None


def _total_memory() -> int:
    """Return the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
