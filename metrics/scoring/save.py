"""``fid-score --save-stats IMAGES OUT.npz``: keep what a later run needs of a reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metrics.files.statistics import FeatureEntry, save_statistics
from metrics.metric import FeatureCollector, Metric
from metrics.options import ScoreOptions
from metrics.scores.frechet import FrechetDistance
from metrics.scoring.extraction import Consumer, Extraction
from metrics.scoring.image_sets import OpenOptions, check_draw, open_images
from metrics.scoring.outputs import check_output
from metrics.scoring.plan import plan_suites
from metrics.suite import MetricSuite


def save_reference(source: Path, output: Path, names: Sequence[str], options: ScoreOptions, extraction: Extraction) -> str:
    """Extract, and write moments (for Frechet distances) and features (for metrics that need them).

    Args:
        source: The images.
        output: The npz to write; must not exist.
        names: Scores that the file shall serve.
        options: What is asked for.
        extraction: How images are read and run.

    Returns:
        A line that says what was written, after notes on the images.

    Raises:
        FileExistsError: If the output exists.
        ValueError: If its name is no .npz or a score needs no reference.
    """
    if output.suffix.lower() != ".npz":
        raise ValueError(f"--save-stats writes an .npz file, got the output {output}: name it {output}.npz.")
    if output.exists():
        raise FileExistsError(f"output file {output} exists: remove it or choose another name.")
    check_output(output, "--save-stats output")
    check_draw([source], options)
    images = open_images(source, OpenOptions.of(options))
    suites = [_storing(suite) for suite in plan_suites(names, options)]
    extracted = extraction.run([Consumer(suite, suite.metrics) for suite in suites], images, real=True)
    entries = [entry for suite in suites for entry in _entries(suite)]
    if extraction.processes.is_main:
        save_statistics(
            output, entries, num_images=extracted.num_images, source=source.name, source_sha256=extracted.pixels_sha256
        )
    what = ", ".join(
        f"{len(entry.mu)}-d statistics of {entry.extractor} {entry.feature}"
        + (" with features" if entry.features is not None else "")
        for entry in entries
        if entry.mu is not None
    )
    message = f"wrote {output}: {what}, {extracted.num_images} images of {source}"
    return "\n".join([*(f"note: {note}" for note in images.notes), message])


def _storing(suite: MetricSuite) -> MetricSuite:
    """Return a suite that collects what the given one's metrics would read of a reference."""
    wanted: dict[str, Metric] = {}
    for metric in suite.metrics:
        if not metric.needs_real:
            raise ValueError(f"metric {metric.name} looks at samples only: leave it out of --save-stats.")
        if metric.needs_labels:
            raise ValueError(f"metric {metric.name} needs the reference's images by class: a statistics file cannot hold them.")
        feature = str(metric.feature)
        wanted.setdefault(f"moments {feature}", FrechetDistance(feature))
        if metric.needs_stored_features:
            wanted.setdefault(f"features {feature}", FeatureCollector(feature))
    extraction = suite.extraction
    return MetricSuite(
        list(wanted.values()), suite.extractor, extraction.resizer.name, suite.batch_size, precision=extraction.precision
    )


def _entries(suite: MetricSuite) -> list[FeatureEntry]:
    features = {str(metric.feature): metric.features(True) for metric in suite.metrics if isinstance(metric, FeatureCollector)}
    entries = []
    for metric in suite.metrics:
        if isinstance(metric, FrechetDistance):
            name, fitted = str(metric.feature), metric.gaussian(True)
            entries.append(
                FeatureEntry(
                    extractor=suite.extractor.name,
                    feature=name,
                    mu=fitted.mu,
                    sigma=fitted.covariance(),
                    features=features.get(name),
                    provenance=suite.extraction.protocol(name),
                )
            )
    return entries
