"""Scores of statistics files against one another: no image is read and no network built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from metrics import registry
from metrics.distributed import describe_error
from metrics.extractors import FeatureExtractor, build_extractor
from metrics.files.statistics import PROTOCOL_FIELDS, FeatureEntry, ReferenceStatistics, check_protocol
from metrics.metric import Metric
from metrics.notes import notes_of_warnings
from metrics.options import ScoreOptions
from metrics.scoring.image_sets import ImageSet
from metrics.scoring.plan import extractor_of, parse_weights, plan_metric, resizer_of
from metrics.scoring.report import Result


@dataclass
class NetworkFacts:
    """What a metric asks of an extractor before it names its result, without the extractor."""

    name: str
    embedding: str
    class_logits: str | None
    frechet_names: Mapping[str, str] = field(default_factory=dict)
    feature_dims: Mapping[str, int] = field(default_factory=dict)


def score_file(reference: ImageSet, samples: ImageSet, names: Sequence[str], options: ScoreOptions, result: Result) -> None:
    """Fill a result from two files alone; a score that they do not serve, or not under one protocol, is said in it."""
    assert reference.statistics is not None and samples.statistics is not None
    is_known = reference.statistics.has_provenance or samples.statistics.has_provenance
    if not is_known:
        result.notes.append("no file names its network, so the distance is not called FID.")
    protocols: dict[str, dict[str, Any]] = {}
    with notes_of_warnings(result.notes):
        for name in names:
            try:
                metric, entries = _loaded(name, reference.statistics, samples.statistics, options, is_known)
                scores = metric.compute()
            except (ValueError, TypeError, OSError) as error:
                result.errors.append(describe_error(error))
                continue
            for key, value in scores.items():
                result.scores[key if key not in result.scores else f"{key}_{metric.feature}"] = value
            known = entries[0].provenance or entries[1].provenance or {}
            protocol = protocols.setdefault(extractor_of(name, options), {key: known.get(key) for key in PROTOCOL_FIELDS})
            protocol.setdefault("metrics", {})[metric.name] = metric.parameters
            protocol["num_real"], protocol["num_fake"] = reference.statistics.num_images, samples.statistics.num_images
    result.protocols = list(protocols.values())


def _network(name: str, options: ScoreOptions) -> FeatureExtractor | type[FeatureExtractor]:
    """Return what states a network's names: its class, or one's own network, which may state them when it is built."""
    if ".py:" in name:
        return build_extractor(name, weights=parse_weights(options.weights, [name]).get(name), input_size=options.input_size)
    cls: type[FeatureExtractor] = registry.resolve("extractor", registry.EXTRACTORS, name)
    return cls


def _protocol_of_run(
    name: str, entry: FeatureEntry, known: FeatureExtractor | type[FeatureExtractor], options: ScoreOptions
) -> dict[str, Any]:
    """Return the protocol that a file must have been made under: its own, where the options leave it open."""
    wanted = {
        **(entry.provenance or {}),
        "resizer": resizer_of(name, options) or known.default_resizer,
        "precision": options.precision,
    }
    return wanted if options.input_size is None else {**wanted, "input_size": options.input_size}


def _stored_features(stored: ReferenceStatistics, network: str, embedding: str) -> dict[str, int]:
    """Return the dimensions of what a file holds of a network, by feature; what is not named is taken for its embedding."""
    return {entry.feature or embedding: entry.dimension for entry in stored.entries if entry.extractor in (network, None)}


def _loaded(
    name: str, first: ReferenceStatistics, second: ReferenceStatistics, options: ScoreOptions, is_known: bool
) -> tuple[Metric, tuple[FeatureEntry, FeatureEntry]]:
    """Return a metric that holds both files' sides, and what they hold of its feature."""
    metric = plan_metric(name, options)
    known = _network(extractor_of(name, options), options)
    network = known.name
    facts = NetworkFacts(
        name=network if is_known else "unknown",
        embedding=known.embedding,
        class_logits=known.class_logits,
        frechet_names=known.frechet_names if is_known else {},
        feature_dims={**_stored_features(first, network, known.embedding), **_stored_features(second, network, known.embedding)},
    )
    feature = metric.feature or metric.default_feature(cast(FeatureExtractor, facts))
    found = [stored.find(network, feature, None) for stored in (first, second)]
    for stored, entry in zip((first, second), found, strict=True):
        if entry is None:
            raise ValueError(f"{stored.path} holds no {feature} features of {network}, which metric {name} compares.")
    ours, theirs = cast(FeatureEntry, found[0]), cast(FeatureEntry, found[1])
    if ours.provenance is not None and theirs.provenance is not None:
        check_protocol(ours, theirs.provenance, first.path, str(second.path))
    for stored, entry in ((first, ours), (second, theirs)):
        check_protocol(entry, _protocol_of_run(name, entry, known, options), stored.path, "this run")
    facts.feature_dims = {feature: ours.dimension}
    metric.bind(cast(FeatureExtractor, facts))
    for stored, entry, real in ((first, ours, True), (second, theirs, False)):
        if not metric.load_statistics(entry, real):
            raise ValueError(
                f"metric {name} needs {'reference' if real else 'sample'} images, or features that --save-stats stored for it, "
                f"and {stored.path} holds neither."
            )
    return metric, (ours, theirs)
