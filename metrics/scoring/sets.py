"""Score sample sets against one reference, each by itself: what goes wrong with one does not cost the scores of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metrics import registry
from metrics.distributed import Processes, describe_error
from metrics.notes import notes_of_warnings
from metrics.options import DEFAULT_PROTOCOL, ScoreOptions
from metrics.scoring import analyses, stored
from metrics.scoring.classes import match_classes
from metrics.scoring.extraction import Consumer, Extraction
from metrics.scoring.image_sets import ImageSet
from metrics.scoring.plan import network_notes, plan_suites, protocol, spelling_notes
from metrics.scoring.prepare import SampleSet, check_sets, consumers_of, open_all, refusals, require_scores
from metrics.scoring.report import Report, Result
from metrics.suite import MetricSuite, name_among

_SHOWN_NAMES = 5
#: What a set may fail with; anything else is a fault of ours and ends the run.
_FAILURES = (ValueError, TypeError, OSError)


def score_sets(
    report: Report,
    names: Sequence[str],
    options: ScoreOptions,
    extraction: Extraction,
    tell: Callable[[str], object],
) -> None:
    """Fill the report; when this raises it holds what was found until then.

    Args:
        report: To be filled.
        names: From ``metrics.scoring.plan.score_names``.
        options: What is asked for.
        extraction: How images are read and run.
        tell: Takes, before any work, a sentence about a set that will lack scores.

    Raises:
        ValueError: If the reference, or every sample set, cannot be scored.
        FileNotFoundError: If a path does not exist.
    """
    reference, sets = open_all(names, options, extraction.processes)
    chosen = options.protocol or DEFAULT_PROTOCOL
    report.reference = "none" if reference is None else reference.describe()
    report.protocol = f"{chosen}, as {registry.PROTOCOLS[chosen].origin}"
    opened = [each.side for each in sets if each.side is not None]
    _note_trust([side for side in (reference, *opened) if side is not None], report)
    with notes_of_warnings(report.notes):
        if reference is not None and reference.images is None and all(side.images is None for side in opened):
            analyses.check([], reference, [each.side for each in sets], options)
            _tell_errors(sets, tell)
            _score_files(report, reference, sets, names, options)
        else:
            _score_images(report, reference, sets, names, options, extraction, tell)
    if not any(result.scores for result in report.results):
        raise ValueError(report.failure())


def _score_files(
    report: Report, reference: ImageSet, sets: Sequence[SampleSet], names: Sequence[str], options: ScoreOptions
) -> None:
    for each in sets:
        report.results.append(each.result)
        if each.side is not None:
            stored.score_file(reference, each.side, names, options, each.result)


def _score_images(
    report: Report,
    reference: ImageSet | None,
    sets: Sequence[SampleSet],
    names: Sequence[str],
    options: ScoreOptions,
    extraction: Extraction,
    tell: Callable[[str], object],
) -> None:
    suites = plan_suites(names, options, collect=options.match_classes is not None)
    if reference is not None:
        refused = refusals(suites, reference, real=True)
        if refused:
            raise ValueError(next(iter(refused.values())))
    check_sets(suites, sets)
    report.notes += match_classes(suites, reference, sets, options)
    require_scores(suites, sets)
    analyses.check(suites, reference, [each.side for each in sets], options)
    _tell_errors(sets, tell)
    if options.protocol is None and all(suite.extraction.resizer.name != protocol(options).resizer for suite in suites):
        report.protocol = "each network's own"
    report.notes += spelling_notes(names, options)
    for suite in suites:
        report.notes += network_notes(suite)
    if reference is not None:
        _extract(consumers_of(suites, reference, real=True), reference, True, extraction, report.notes)
        report.reference = reference.describe()
    for each in sets:
        report.results.append(each.result)
        if each.side is not None:
            _score_set(suites, each, options, extraction)
    if reference is not None and any(result.scores for result in report.results):
        _run_analyses(suites, reference, sets, options, extraction.processes)
    if extraction.cache is not None:
        if extraction.processes.is_main:
            extraction.cache.prune()
        if extraction.cache.failure is not None:
            report.notes.append(extraction.cache.failure)


def _score_set(suites: Sequence[MetricSuite], each: SampleSet, options: ScoreOptions, extraction: Extraction) -> None:
    """Score one set; what fails is said in its result, on all processes."""
    side, result = each.side, each.result
    assert side is not None
    error: Exception | None = None
    for suite in suites:
        suite.reset_fake()
    try:
        with notes_of_warnings(result.notes):
            _extract(consumers_of(suites, side, False, each.lacking), side, False, extraction, result.notes)
            result.samples = side.describe()
            for suite in suites:
                _compute(suite, each)
    except KeyboardInterrupt:
        result.errors.append("interrupted before all its scores were computed.")
        raise
    except _FAILURES as caught:
        error = caught
    _agree(error, result, extraction.processes)
    count = result.protocols[0]["num_fake"] if result.protocols else 0
    wanted = protocol(options).num_samples
    if options.protocol in ("adm", "edm") and count and count < wanted:
        result.notes.append(
            f"published {options.protocol} figures use {wanted:,} samples, here {count:,}: not comparable to them."
        )


def _compute(suite: MetricSuite, each: SampleSet) -> None:
    """Compute one network's metrics, each by itself."""
    result = each.result
    own: dict[str, float] = {}
    result.protocols.append(suite.protocol)
    for metric in suite.metrics:
        if metric in each.lacking:
            continue
        try:
            found = suite.compute_metric(metric, own)
        except _FAILURES as error:
            result.errors.append(describe_error(error))
            continue
        own.update(found)
        for key, value in found.items():
            result.scores[name_among(key, result.scores, suite)] = value


def _agree(error: Exception | None, result: Result, processes: Processes) -> None:
    """Let every process's result say what failed in one of them."""
    try:
        processes.agree(error)
    except _FAILURES as shared:
        result.errors.append(describe_error(shared))


def _extract(consumers: Sequence[Consumer], side: ImageSet, real: bool, extraction: Extraction, notes: list[str]) -> None:
    """Run an input's images for those who want them."""
    if not consumers or side.images is None:
        return
    notes += side.images.notes
    extracted = extraction.run(consumers, side.images, real)
    if extracted.num_skipped:
        side.num_skipped = extracted.num_skipped
        names = ", ".join(extracted.skipped[:_SHOWN_NAMES]) + (", ..." if len(extracted.skipped) > _SHOWN_NAMES else "")
        notes.append(
            f"{extracted.num_skipped} images of {side.path} could not be read and were skipped{': ' if names else ''}{names}."
        )


def _run_analyses(
    suites: Sequence[MetricSuite], reference: ImageSet, sets: Sequence[SampleSet], options: ScoreOptions, processes: Processes
) -> None:
    """Run what is asked for beyond scores, on the main process; the others hear of what failed."""
    if processes.is_main:
        for each in sets:
            if each.side is not None and each.result.scores:
                analyses.run_all(suites, reference, each.side, options, each.result)
    for each, errors in zip(sets, processes.gather([each.result.errors for each in sets])[0], strict=True):
        each.result.errors = errors


def _note_trust(sides: Sequence[ImageSet], report: Report) -> None:
    for side in sides:
        if side.statistics is not None and not side.statistics.has_provenance:
            if side.statistics.source is not None:
                report.notes.append(f"the reference is {side.statistics.source}, by the file's name.")
                continue
            report.notes.append(f"{side.path} does not say how it was made; that its protocol is this one is taken on trust.")


def _tell_errors(sets: Sequence[SampleSet], tell: Callable[[str], object]) -> None:
    for each in sets:
        for error in each.result.errors:
            tell(f"{each.result.path}: {error.removesuffix('.')}; the other scores are computed.")
