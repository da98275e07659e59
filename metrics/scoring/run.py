"""A run of `fid-score` from parsed arguments to the report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metrics.distributed import Processes, SharedError, choose_device, join_processes
from metrics.feature_cache import FeatureCache, default_cache_root
from metrics.scoring.feed import Feeder
from metrics.scoring.outputs import check_outputs, publish, write_files
from metrics.scoring.plan import DEFAULT_EXTRACTOR, protocol, score_names
from metrics.scoring.report import IncompleteError, Report
from metrics.scoring.save import save_reference
from metrics.scoring.sets import score_sets
from metrics.scoring.train import train_from_arguments

_MAX_WORKERS = 8


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
        report = Report()
        with _published(report, processes, lambda: publish(report, args)):
            has_reference = len(args.path) > 1 or args.dataset is not None
            score_sets(report, names, args, _feeder(args, processes), has_reference, _warner(processes))


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
        IncompleteError: If some scores could be computed and others not; its `record` holds the former. A ValueError.
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
        report = Report()
        with _published(report, processes, lambda: write_files(report, args)):
            has_reference = reference is not None or args.dataset is not None
            score_sets(report, score_names(args), args, _feeder(args, processes), has_reference, tell=lambda sentence: None)
        return report.record()


@contextmanager
def _published(report: Report, processes: Processes, publish: Callable[[], None]) -> Iterator[None]:
    """Publish what the block finds, also when it is interrupted or fails.

    Raises:
        IncompleteError: If a sample set lacks scores.
    """
    try:
        yield
    except BaseException:
        if processes.is_main and any(result.scores for result in report.results):
            publish()
        raise
    if processes.is_main:
        publish()
    failure = report.failure()
    if failure:
        raise IncompleteError(failure, report.record())


def _warner(processes: Processes) -> Callable[[str], object]:
    """Return what takes a sentence to be said at once; the main process says it for all."""
    return (lambda sentence: sys.stderr.write(f"warning: {sentence}\n")) if processes.is_main else (lambda sentence: None)


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
    check_outputs(args)


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
