"""A run of `fid-score` from parsed arguments to the report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metrics import registry
from metrics.distributed import Processes, SharedError, choose_device, join_processes
from metrics.feature_cache import FeatureCache, default_cache_root
from metrics.metric import Metric
from metrics.notes import notes_of_warnings
from metrics.scoring import analyses, stored
from metrics.scoring.classes import match_classes
from metrics.scoring.feed import Consumer, Feeder
from metrics.scoring.plan import (
    DEFAULT_EXTRACTOR,
    DEFAULT_PROTOCOL,
    network_notes,
    plan_suites,
    protocol,
    score_names,
    spelling_notes,
)
from metrics.scoring.report import Report, Result, format_table, write_csv, write_json, write_plot
from metrics.scoring.save import save_reference
from metrics.scoring.sides import OpenOptions, Side, check_draw, open_side
from metrics.scoring.train import train_from_arguments
from metrics.suite import MetricSuite, build_metric

_MAX_WORKERS = 8
_SHOWN_NAMES = 5
_JSON_TO_STDOUT = "-"
_FIGURES = ("--plot", "--sensitivity-map")
_FIGURE_FORMATS = (".png", ".pdf", ".svg", ".jpg")


def run(args: argparse.Namespace) -> None:
    """Score, or save statistics, as parsed by `metrics.cli.build_parser`; print and write what was asked for."""
    with join_processes() as processes, _told_to_all(processes):
        _complete(args, processes)
        if args.train_extractor:
            sys.stdout.write(train_from_arguments(args, processes) + "\n")
            return
        names = score_names(args)
        if args.save_stats:
            message = save_reference(Path(args.path[0]), Path(args.path[1]), names, args, _feeder(args, processes))
            if processes.is_main:
                sys.stdout.write(message + "\n")
            return
        report = _score(names, args, processes, has_reference=len(args.path) > 1 or args.dataset is not None)
        if processes.is_main:
            _publish(report, args)


def score(samples: str | Path | Sequence[str | Path], reference: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Score from Python as `fid-score` does.

    Args:
        samples: Folder, archive, npz, statistics file or saved pipeline; or several of them.
        reference: What to compare with; None for scores that need none (the Inception Score), and with `dataset="cifar10"`.
        **options: Flags of `fid-score` by their long names: `metrics="fid,kid"`, `protocol="pytorch-fid"`,
            `extractor=...`, `weights=[...]`, `num_samples=...`, `no_cache=True`.

    Returns:
        The record that `fid-score --json` prints: `scores`, `protocols`, `notes`, `results`. Nothing is printed; files that
        `json`, `csv` and `plot` name are written.

    Raises:
        TypeError: If an option is not a flag of `fid-score`.
        ValueError: If the input is wrong, like FileNotFoundError.
    """
    from metrics.cli import parse_options

    sets = [samples] if isinstance(samples, str | Path) else list(samples)
    args = parse_options([str(path) for path in ([] if reference is None else [reference]) + sets], {"quiet": True, **options})
    if args.save_stats:
        raise ValueError("score() writes no statistics: run fid-score --save-stats IMAGES OUT.npz.")
    if args.train_extractor:
        raise ValueError("score() trains nothing: call metrics.extractor_training.train_extractor.")
    if args.dataset is not None and reference is not None:
        raise ValueError(f"score() got the reference {reference} and the data set {args.dataset}: give one of them.")
    with join_processes() as processes, _told_to_all(processes):
        _complete(args, processes)
        report = _score(score_names(args), args, processes, has_reference=reference is not None or args.dataset is not None)
        if processes.is_main:
            _write_files(report, args)
        return report.record()


@contextmanager
def _told_to_all(processes: Processes) -> Iterator[None]:
    """Let every process know of an error in one of them, so that all end and one speaks."""
    error: Exception | None = None
    try:
        yield
    except SharedError:
        raise
    except (ValueError, TypeError, OSError) as caught:
        error = caught
    processes.agree(error)


def _complete(args: argparse.Namespace, processes: Processes) -> None:
    """Fill in what depends on the machine, and check what depends on several flags."""
    if args.match_num is not None and args.match_classes is None:
        raise ValueError("--match-num counts the samples that --match-classes draws: name what to match, --match-classes top1.")
    if args.dims is not None and args.extractor != DEFAULT_EXTRACTOR:
        raise ValueError(f"--dims chooses a feature of inception-v3; {args.extractor} has no such choice: leave it out.")
    args.device = choose_device(args.device, processes)
    if args.num_workers is None:
        args.num_workers = min(_MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if args.json not in (None, _JSON_TO_STDOUT):
        _check_writable(Path(args.json), "--json")
    for flag in ("csv", "plot", "sensitivity_map"):
        if getattr(args, flag) is not None:
            _check_writable(Path(getattr(args, flag)), f"--{flag.replace('_', '-')}")


def _check_writable(path: Path, flag: str) -> None:
    if path.is_dir() or not path.suffix:
        raise ValueError(f"{flag} {path} must be a file name with an extension.")
    if flag in _FIGURES and path.suffix.lower() not in _FIGURE_FORMATS:
        raise ValueError(f"{flag} {path} must end with {', '.join(_FIGURE_FORMATS)}.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{flag} {path} lies in a folder that does not exist: make it first.")


def _feeder(args: argparse.Namespace, processes: Processes) -> Feeder:
    cache = None if args.no_cache else FeatureCache(Path(args.cache_root) if args.cache_root else default_cache_root())
    return Feeder(
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        processes=processes,
        cache=cache,
        same_size_for=args.protocol if protocol(args).same_size else None,
        progress=False if args.quiet else None,
    )


def _score(names: Sequence[str], args: argparse.Namespace, processes: Processes, has_reference: bool) -> Report:
    options = OpenOptions(args.num_samples, args.seed, args.batch_size, args.device, args.skip_corrupt)
    reference, sample_sides = _open_all(names, args, options, has_reference)
    chosen = args.protocol or DEFAULT_PROTOCOL
    report = Report(
        reference="none" if reference is None else reference.describe(),
        protocol=f"{chosen}, as {registry.PROTOCOLS[chosen].origin}",
    )
    _note_trust([side for side in (reference, *sample_sides) if side is not None], report)
    if reference is not None and reference.images is None and all(side.images is None for side in sample_sides):
        with notes_of_warnings(report.notes):
            stored.score_files(reference, sample_sides, names, args, report)
        return report
    suites = plan_suites(names, args, collect=args.match_classes is not None)
    analyses.check(suites, reference, sample_sides, args)
    report.notes += match_classes(names, reference, sample_sides, args)
    if args.protocol is None and all(suite.extraction.resizer.name != protocol(args).resizer for suite in suites):
        report.protocol = "each network's own"
    report.notes += spelling_notes(names, args)
    for suite in suites:
        report.notes += network_notes(suite)
    feeder = _feeder(args, processes)
    with notes_of_warnings(report.notes):
        if reference is not None:
            _load(suites, reference, True, feeder, report.notes)
            report.reference = reference.describe()
        for side in sample_sides:
            _score_samples(suites, side, args, feeder, report)
        if processes.is_main:
            analyses.run_all(suites, reference, sample_sides, args, report)
    if feeder.cache is not None:
        if processes.is_main:
            feeder.cache.prune()
        if feeder.cache.failure is not None:
            report.notes.append(feeder.cache.failure)
    return report


def _open_all(
    names: Sequence[str], args: argparse.Namespace, options: OpenOptions, has_reference: bool
) -> tuple[Side | None, list[Side]]:
    """Open the reference (the first path, if there is one) and the sample sets (the others)."""
    paths = [Path(path) for path in args.path]
    needs_reference = any(build_metric(name).needs_real for name in names)
    if needs_reference and not has_reference:
        first = next(name for name in names if build_metric(name).needs_real)
        raise ValueError(
            f"metric {first} compares samples with a reference, and only {', '.join(map(str, paths))} is given: fid-score A B."
        )
    check_draw(paths, args)
    if args.dataset is not None:
        from metrics.scoring.named import open_named

        return open_named(names, args), [open_side(path, options) for path in paths]
    sides = [open_side(path, options) for path in paths]
    return (sides[0], sides[1:]) if has_reference else (None, sides)


def _note_trust(sides: Sequence[Side], report: Report) -> None:
    for side in sides:
        if side.statistics is not None and not side.statistics.has_provenance:
            if side.statistics.source is not None:
                report.notes.append(f"the reference is {side.statistics.source}, by the file's name.")
                continue
            report.notes.append(f"{side.path} does not say how it was made; that its protocol is this one is taken on trust.")


def _score_samples(suites: Sequence[MetricSuite], side: Side, args: argparse.Namespace, feeder: Feeder, report: Report) -> None:
    for suite in suites:
        suite.reset_fake()
    result = Result(side.path, side.describe())
    report.results.append(result)
    with notes_of_warnings(result.notes):
        _load(suites, side, False, feeder, result.notes)
        result.samples = side.describe()
        for suite in suites:
            for key, value in suite.compute().items():
                result.scores[key if key not in result.scores else f"{key}_{suite.extractor.name}"] = value
            result.protocols.append(suite.protocol)
    count = result.protocols[0]["num_fake"] if result.protocols else 0
    wanted = protocol(args).num_samples
    if args.protocol in ("adm", "edm") and count and count < wanted:
        result.notes.append(f"published {args.protocol} figures use {wanted:,} samples, here {count:,}: not comparable to them.")


def _load(suites: Sequence[MetricSuite], side: Side, real: bool, feeder: Feeder, notes: list[str]) -> None:
    """Give one side to every suite: from its statistics as far as they go, from its images for the rest."""
    consumers = []
    for suite in suites:
        wanting = [metric for metric in suite.metrics if metric.needs_real or not real]
        if side.statistics is not None:
            wanting = suite.load_statistics(side.statistics, real)
        if wanting and side.images is None:
            raise ValueError(_lacks(wanting[0], suite, side, real))
        if wanting:
            consumers.append(Consumer(suite, wanting))
    if not consumers or side.images is None:
        return
    _check_countable(side, consumers)
    notes += side.images.notes
    fed = feeder.feed(consumers, side.images, real)
    if fed.num_skipped:
        side.num_skipped = fed.num_skipped
        names = ", ".join(fed.skipped[:_SHOWN_NAMES]) + (", ..." if len(fed.skipped) > _SHOWN_NAMES else "")
        notes.append(f"{fed.num_skipped} images of {side.path} could not be read and were skipped{': ' if names else ''}{names}.")


def _lacks(metric: Metric, suite: MetricSuite, side: Side, real: bool) -> str:
    """Return the sentence for a file that does not hold what a metric needs."""
    assert side.statistics is not None
    feature = str(metric.feature)
    return (
        f"metric {metric.name} needs {'reference' if real else 'sample'} images, or {suite.extractor.feature_dims[feature]}-d "
        f"{feature} of {suite.extractor.name} that --save-stats stored for it, and {side.path} holds "
        f"{side.statistics.describe()}."
    )


def _check_countable(side: Side, consumers: Sequence[Consumer]) -> None:
    assert side.images is not None
    if len(side.images) < 2:
        raise ValueError(f"{side.path} holds one image: a score needs at least two on each side.")
    for consumer in consumers:
        for metric in consumer.metrics:
            if metric.needs_labels and not side.images.has_labels:
                raise ValueError(
                    f"metric {metric.name} needs class labels, and {side.path} has none: put images into one folder per class, "
                    "or give a parquet or npz file with labels."
                )


def _publish(report: Report, args: argparse.Namespace) -> None:
    """Print first: a file that can't be written must not cost the numbers."""
    if args.json == _JSON_TO_STDOUT:
        sys.stdout.write(json.dumps(report.record(), indent=2) + "\n")
    else:
        sys.stdout.write(format_table(report))
    _write_files(report, args)


def _write_files(report: Report, args: argparse.Namespace) -> None:
    if args.json not in (None, _JSON_TO_STDOUT):
        write_json(report, Path(args.json))
    if args.csv is not None:
        write_csv(report, Path(args.csv))
    if args.plot is not None:
        write_plot(report, Path(args.plot))
