"""A run of ``fid-score`` from its options to the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from metrics.distributed import Processes, SharedError, choose_device, join_processes
from metrics.files.feature_cache import FeatureCache, default_cache_root
from metrics.options import ANY_DEVICE, ScoreOptions, read_options
from metrics.scoring.extraction import Extraction
from metrics.scoring.outputs import check_outputs, publish, write_files
from metrics.scoring.plan import protocol, score_names
from metrics.scoring.report import IncompleteError, Report
from metrics.scoring.save import save_reference
from metrics.scoring.sets import score_sets
from metrics.scoring.train import train_from_options

_MAX_WORKERS = 8


def run(options: ScoreOptions) -> None:
    """Score, save statistics or train, as ``fid-score`` does; print and write what was asked for."""
    with join_processes() as processes, _told_to_all(processes):
        options = _on_this_machine(options, processes)
        if options.train_extractor:
            sys.stdout.write(train_from_options(options, processes) + "\n")
            return
        names = score_names(options)
        if options.save_stats:
            source, output = map(Path, options.paths)
            message = save_reference(source, output, names, options, _extraction(options, processes))
            if processes.is_main:
                sys.stdout.write(message + "\n")
            return
        report = Report()
        with _published(report, processes, lambda: publish(report, options)):
            score_sets(report, names, options, _extraction(options, processes), _warner(processes))


def score(samples: str | Path | Sequence[str | Path], reference: str | Path | None = None, **keywords: Any) -> dict[str, Any]:
    """Score from Python as ``fid-score`` does.

    Args:
        samples: Folder, archive, npz, statistics file or saved pipeline; or several of them.
        reference: What to compare with; None for scores that need none (the Inception Score), and with ``dataset="cifar10"``.
        **keywords: Flags of ``fid-score`` by their long names: ``metrics="fid,kid"``, ``protocol="pytorch-fid"``,
            ``extractor=...``, ``weights=[...]``, ``num_samples=...``, ``no_cache=True``.

    Returns:
        The record that ``fid-score --json`` prints: ``scores``, ``protocols``, ``notes``, ``results``. Nothing is printed; the
        files that ``json``, ``csv`` and ``plot`` name are written.

    Raises:
        TypeError: If an option is not a flag of ``fid-score``.
        IncompleteError: If some scores could be computed and others not; its ``record`` holds the former. A ValueError.
        ValueError: If the input is wrong, like FileNotFoundError.
    """
    sets = [samples] if isinstance(samples, str | Path) else list(samples)
    paths = [str(path) for path in ([] if reference is None else [reference]) + sets]
    options = read_options(paths, reference is not None, {"quiet": True, **keywords})
    if options.save_stats:
        raise ValueError("score() writes no statistics: run fid-score --save-stats IMAGES OUT.npz.")
    if options.train_extractor:
        raise ValueError("score() trains nothing: call metrics.extractors.training.train_extractor.")
    if options.dataset is not None and reference is not None:
        raise ValueError(f"score() got the reference {reference} and the data set {options.dataset}: give one of them.")
    with join_processes() as processes, _told_to_all(processes):
        options = _on_this_machine(options, processes)
        report = Report()
        with _published(report, processes, lambda: write_files(report, options)):
            score_sets(report, score_names(options), options, _extraction(options, processes), tell=lambda sentence: None)
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


def _on_this_machine(options: ScoreOptions, processes: Processes) -> ScoreOptions:
    """Return the options with the device to run on, after a look at where files shall be written."""
    device = choose_device(None if options.device == ANY_DEVICE else options.device, processes)
    check_outputs(options)
    return replace(options, device=device)


def _num_workers() -> int:
    return min(_MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def _extraction(options: ScoreOptions, processes: Processes) -> Extraction:
    cache = None if options.no_cache else FeatureCache(Path(options.cache_root) if options.cache_root else default_cache_root())
    return Extraction(
        batch_size=options.batch_size,
        num_workers=_num_workers() if options.num_workers is None else options.num_workers,
        processes=processes,
        cache=cache,
        same_size_for=options.protocol if protocol(options).same_size else None,
        progress=False if options.quiet else None,
    )
