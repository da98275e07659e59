"""Which networks a run needs, and which metrics read each: from the names and options that a user gave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metrics import registry
from metrics.extractors import FeatureExtractor, build_extractor
from metrics.extractors.inception import WEIGHTS as INCEPTION_WEIGHTS
from metrics.metric import FeatureCollector, Metric
from metrics.options import DEFAULT_EXTRACTOR, DEFAULT_PROTOCOL, ScoreOptions
from metrics.scores.kernel import KernelDistance
from metrics.suite import MetricSuite, build_metric

#: Option of a run -> (score, constructor argument).
_ARGUMENTS = {
    "isc_splits": ("is", "splits"),
    "kid_subsets": ("kid", "subsets"),
    "kid_subset_size": ("kid", "subset_size"),
    "prc_neighborhood": ("prc", "k"),
}
#: What a subset of KID takes on two cores: a part of its own, and one for each pair of 2048-d features.
_SUBSET_SECONDS = 1e-2
_PAIR_SECONDS = 2e-7
_DAY_SECONDS = 86_400.0
_SEEDED = {"is": "shuffle_seed", "kid": "seed", "mind": "seed", "fid-infinity": "seed"}


def score_names(options: ScoreOptions) -> list[str]:
    """Return the scores to compute, by our names, each once.

    Raises:
        ValueError: If one is not known.
    """
    names = options.metrics or [name for name in protocol(options).scores if not options.save_stats or _needs_reference(name)]
    return list(dict.fromkeys(registry.canonical_metric(name) for name in names))


def _needs_reference(name: str) -> bool:
    return bool(registry.load(registry.SCORES[name].metric).needs_real)


def protocol(options: ScoreOptions) -> registry.Protocol:
    """Return the run's protocol: the one named; ``clean`` without a name."""
    return registry.PROTOCOLS[options.protocol or DEFAULT_PROTOCOL]


def extractor_of(name: str, options: ScoreOptions) -> str:
    """Return the network that a score reads: its definition's, or the run's."""
    return registry.SCORES[name].extractor or options.extractor


def plan_metric(name: str, options: ScoreOptions) -> Metric:
    """Build a metric with its definition's arguments, then the protocol's, then the user's."""
    score = registry.SCORES[name]
    arguments: dict[str, Any] = {**score.options, **protocol(options).options.get(name, {})}
    for option, (owner, argument) in _ARGUMENTS.items():
        if owner == name and getattr(options, option) is not None:
            arguments[argument] = getattr(options, option)
    if options.isc_splits is not None and name == "is":
        arguments["split_size"] = None  # The user's count of splits, not the protocol's size of them.
    if options.rng_seed is not None and name in _SEEDED and arguments.get(_SEEDED[name], 0) is not None:
        arguments[_SEEDED[name]] = options.rng_seed
    if options.no_samples_shuffle and name == "is":
        arguments["shuffle_seed"] = None
    reads_logits = name in ("is", "am")
    if options.dims is not None and score.extractor is None and not reads_logits:
        arguments["feature"] = registry.FEATURE_BY_DIMS[options.dims]
    metric = build_metric(name, **arguments)
    if isinstance(metric, KernelDistance):
        _check_duration(metric.subsets, metric.subset_size)
    return metric


def _check_duration(subsets: int, subset_size: int) -> None:
    """Raise ``ValueError`` if KID's subsets would take more than a day."""
    seconds_each = _SUBSET_SECONDS + _PAIR_SECONDS * subset_size**2
    if subsets * seconds_each > _DAY_SECONDS:
        raise ValueError(
            f"{subsets:,} subsets of KID of {subset_size:,} images each would take about {subsets * seconds_each / 3600:,.0f} "
            f"hours: give at most --kid-subsets {max(1, int(_DAY_SECONDS / seconds_each))}, or a smaller --kid-subset-size."
        )


def plan_suites(
    names: Sequence[str], options: ScoreOptions, collect: bool = False, resizer: str | None = None
) -> list[MetricSuite]:
    """Build one suite per network and resizer, in the order of the names.

    Args:
        names: From ``score_names``.
        options: What is asked for.
        collect: Whether each suite also keeps the features themselves.
        resizer: Of the scores whose definition names none, in the place of the protocol's; None for the protocol's.
    """
    groups: dict[tuple[str, str | None], list[str]] = {}
    for name in names:
        chosen = registry.SCORES[name].resizer or resizer or resizer_of(name, options)
        groups.setdefault((extractor_of(name, options), chosen), []).append(name)
    weights = parse_weights(options.weights, [extractor for extractor, _ in groups])
    built: dict[str, FeatureExtractor] = {}
    suites = []
    for (extractor, chosen), group in groups.items():
        if extractor not in built:
            built[extractor] = build_extractor(
                extractor,
                weights=weights.get(extractor),
                input_size=options.input_size if extractor == options.extractor else None,
                device=options.device,
            )
        metrics: list[Metric] = [plan_metric(name, options) for name in group]
        if collect:
            metrics += _collectors(metrics, built[extractor])
        suites.append(MetricSuite(metrics, built[extractor], chosen, options.batch_size, precision=options.precision))
    return suites


def resizer_of(name: str, options: ScoreOptions) -> str | None:
    """Return the resizer of a score: its definition's, else the named protocol's, else (None) the network's own."""
    score = registry.SCORES[name]
    if score.resizer is not None:
        return score.resizer
    is_inception = extractor_of(name, options) == DEFAULT_EXTRACTOR
    return protocol(options).resizer if options.protocol is not None or is_inception else None


def _collectors(metrics: Sequence[Metric], extractor: FeatureExtractor) -> list[Metric]:
    for metric in metrics:
        metric.bind(extractor)
    wanted = {str(metric.feature) for metric in metrics}
    if extractor.class_logits is not None:
        wanted.add(extractor.class_logits)
    return [FeatureCollector(feature) for feature in sorted(wanted)]


def parse_weights(given: Sequence[str], extractors: Sequence[str]) -> dict[str, Path]:
    """Return extractor -> weight file; a file without a name goes to the run's first network."""
    result: dict[str, Path] = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not separator or (name not in registry.EXTRACTORS and name not in extractors):
            name, path = extractors[0], text
        if name not in extractors:
            raise ValueError(f"--weights names {name}, which this run does not use: it uses {', '.join(extractors)}.")
        if name in result:
            raise ValueError(f"--weights gives two files for {name}: give one, or name the network as NAME=PATH.")
        result[name] = Path(path)
    return result


def spelling_notes(names: Sequence[str], options: ScoreOptions) -> list[str]:
    """Return where a line in another tool's spelling gives another number than that tool."""
    notes = []
    if options.dims is not None and options.protocol is None:
        notes.append("the number of `python -m pytorch_fid` needs --protocol pytorch-fid; this is under clean-fid's.")
    if options.is_fidelity_line and "prc" in names and options.extractor == DEFAULT_EXTRACTOR:
        notes.append(
            "precision and recall of torch-fidelity are on VGG16: they need --extractor vgg16; these are on Inception-v3."
        )
    return notes


def network_notes(suite: MetricSuite) -> list[str]:
    """Return what a reader must know about a suite's network before comparing its numbers."""
    extractor = suite.extractor
    notes = []
    if extractor.name == DEFAULT_EXTRACTOR and not extractor.weights_sha256.startswith(INCEPTION_WEIGHTS.sha256):
        notes.append(
            "these Inception-v3 weights are not the published file of 2015-12-05: the score is not comparable to any FID."
        )
    is_named = any(str(metric.feature) in extractor.frechet_names for metric in suite.metrics)
    if any(metric.name == "frechet" for metric in suite.metrics) and not is_named:
        notes.append(f"a Frechet distance on {extractor.name} is not FID and compares only with others on it.")
    if suite.extraction.precision != "float32":
        notes.append(f"{extractor.name} ran in {suite.extraction.precision}: compare only with scores at the same precision.")
    return notes
