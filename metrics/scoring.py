"""What `fid-score` does once its arguments are parsed: open both sides, extract, compute, report."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from metrics import registry
from metrics.extractors import FeatureExtractor, build_extractor
from metrics.extractors.inception import WEIGHTS as INCEPTION_WEIGHTS
from metrics.frechet import FrechetDistance, gaussian_distance
from metrics.metric import Metric, SmallSampleWarning
from metrics.sources import ImageSource, is_generator, open_source
from metrics.statistics import (
    PROTOCOL_FIELDS,
    FeatureStatistics,
    check_protocol,
    load_statistics,
    npz_keys,
    save_statistics,
)
from metrics.suite import MetricSuite, build_metric

_MAX_WORKERS = 8
_CMMD_EXTRACTOR = "clip-vit-l-14-336"
_SHOWN_HASH_DIGITS = 8


@dataclass
class Side:
    """One of the two inputs.

    Args:
        path: What the user named.
        images: Its images, if it has any.
        statistics: Its stored statistics, if it is a statistics file.
    """

    path: Path
    images: ImageSource | None = None
    statistics: FeatureStatistics | None = None

    def describe(self) -> str:
        """Return a line for the table."""
        if self.statistics is None:
            assert self.images is not None
            return f"{self.path} ({self.images.kind}, {len(self.images)} images)"
        count = (self.statistics.provenance or {}).get("num_images")
        return f"{self.path} (statistics of {count if count is not None else 'an unknown number of'} images)"


@dataclass
class Report:
    """What a run found."""

    reference: str
    samples: str
    scores: dict[str, float] = field(default_factory=dict)
    protocols: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(args: argparse.Namespace) -> None:
    """Score, or save statistics, as parsed by `metrics.cli.build_parser`."""
    names = list(dict.fromkeys(registry.canonical_metric(name.strip()) for name in args.metrics.split(",") if name.strip()))
    if not names:
        raise ValueError(f"--metrics names no metric, got {args.metrics!r}: try --metrics fid.")
    if args.dims is not None and args.extractor != "inception-v3":
        raise ValueError(f"--dims chooses a feature of inception-v3; {args.extractor} has no such choice: leave it out.")
    args.device = _device(args.device)
    if args.num_workers is None:
        args.num_workers = min(_MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    first, second = (Path(path) for path in args.path)
    if args.save_stats:
        _save_stats(first, second, args)
        return
    sides = _open_sides(first, second, args)
    report = Report(reference=sides[0].describe(), samples=sides[1].describe())
    for side in sides:
        if side.statistics is not None and side.statistics.provenance is None:
            report.notes.append(f"{side.path} does not say how it was made; that its protocol is this one is taken on trust.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SmallSampleWarning)
        _score(sides, names, args, report)
    for warning in caught:
        if issubclass(warning.category, SmallSampleWarning):
            report.notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    _print(report, args.json)


def _device(name: str | None) -> str:
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here: leave --device out or name another.") from error
    return name


def _open_sides(first: Path, second: Path, args: argparse.Namespace) -> tuple[Side, Side]:
    if (args.num_samples is not None or args.seed is not None) and not (is_generator(first) or is_generator(second)):
        raise ValueError("--num-samples and --seed apply to saved pipelines only, and neither path is one.")
    return _open_side(first, args), _open_side(second, args)


def _open_side(path: Path, args: argparse.Namespace) -> Side:
    if path.suffix.lower() == ".npz" and {"mu", "sigma"} <= set(npz_keys(path)):
        return Side(path, statistics=load_statistics(path))
    return Side(path, images=_open_images(path, args))


def _open_images(path: Path, args: argparse.Namespace) -> ImageSource:
    if is_generator(path):
        return open_source(path, args.num_samples, args.seed, args.batch_size, args.device)
    return open_source(path)


def _score(sides: tuple[Side, Side], names: Sequence[str], args: argparse.Namespace, report: Report) -> None:
    """Fill the report, extractor by extractor."""
    reference, samples = sides
    if samples.statistics is not None:
        _score_statistics(reference, samples.statistics, names, args, report)
        return
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_CMMD_EXTRACTOR if name == "cmmd" else args.extractor, []).append(name)
    weights = _parse_weights(args.weights, list(groups))
    for extractor_name, group in groups.items():
        needs_images = [name for name in group if name != "frechet" and build_metric(name).needs_real]
        if reference.statistics is not None and needs_images:
            raise ValueError(f"metric {needs_images[0]} needs reference images, and {reference.path} holds statistics only.")
        suite = _build_suite(extractor_name, group, weights, args, report)
        if reference.statistics is not None:
            suite.load_reference(reference.statistics)
        elif any(metric.needs_real for metric in suite.metrics):
            _feed(suite, reference, True, args)
        _feed(suite, samples, False, args)
        report.scores.update(suite.compute())
        report.protocols.append(suite.protocol)


def _score_statistics(
    reference: Side,
    samples: FeatureStatistics,
    names: Sequence[str],
    args: argparse.Namespace,
    report: Report,
) -> None:
    """Score where B is a statistics file: only a Frechet distance can be had, and against statistics no network is needed."""
    others = [name for name in names if name != "frechet"]
    if others:
        raise ValueError(f"metric {others[0]} needs sample images, and {samples.path} holds statistics only.")
    if reference.statistics is not None:
        _score_two_files(reference.statistics, samples, report)
        return
    # The distance is symmetric: let the file be the reference of the suite.
    suite = _build_suite(args.extractor, names, _parse_weights(args.weights, [args.extractor]), args, report)
    suite.load_reference(samples)
    _feed(suite, reference, False, args)
    report.scores.update(suite.compute())
    protocol = suite.protocol
    protocol["num_real"], protocol["num_fake"] = protocol["num_fake"], protocol["num_real"]
    report.protocols.append(protocol)


def _score_two_files(first: FeatureStatistics, second: FeatureStatistics, report: Report) -> None:
    if first.provenance is not None and second.provenance is not None:
        check_protocol(first, second.provenance, second.path)
    known = first.provenance or second.provenance or {}
    is_fid = (known.get("extractor"), known.get("feature")) == ("inception-v3", "pool3")
    key = "fid" if is_fid else "frechet_distance"
    report.scores[key] = gaussian_distance(first.gaussian(), second.gaussian())
    protocol = {name: known.get(name) for name in PROTOCOL_FIELDS}
    protocol["num_real"] = first.gaussian().num_samples
    protocol["num_fake"] = second.gaussian().num_samples
    report.protocols.append(protocol)
    if not known:
        report.notes.append("neither file names its network, so the distance is not called FID.")


def _parse_weights(given: Sequence[str], extractors: Sequence[str]) -> dict[str, Path]:
    """Return extractor -> weight file; a file without a name goes to the run's first network."""
    result: dict[str, Path] = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not separator or name not in registry.EXTRACTORS:
            name, path = extractors[0], text
        if name not in extractors:
            raise ValueError(f"--weights names {name}, which this run does not use: it uses {', '.join(extractors)}.")
        if name in result:
            raise ValueError(f"--weights gives two files for {name}: give one, or name the network as NAME=PATH.")
        result[name] = Path(path)
    return result


def _build_suite(
    extractor_name: str,
    names: Sequence[str],
    weights: dict[str, Path],
    args: argparse.Namespace,
    report: Report | None,
) -> MetricSuite:
    is_main = extractor_name == args.extractor
    extractor = build_extractor(
        extractor_name,
        weights=weights.get(extractor_name),
        input_size=args.input_size if is_main else None,
        device=args.device,
    )
    if report is not None:
        report.notes += _weights_notes(extractor)
        if "frechet" in names and extractor_name != "inception-v3":
            report.notes.append(f"a Frechet distance on {extractor_name} is not FID and compares only with others on it.")
    resizer = None if extractor_name == _CMMD_EXTRACTOR else registry.PROTOCOLS[args.protocol]
    metrics = [_build_metric(name, args) if is_main else build_metric(name) for name in names]
    return MetricSuite(metrics, extractor, resizer, args.batch_size)


def _build_metric(name: str, args: argparse.Namespace) -> Metric:
    metric = build_metric(name)
    if args.dims is not None and name != "inception_score":
        metric.feature = registry.FEATURE_BY_DIMS[args.dims]
    return metric


def _weights_notes(extractor: FeatureExtractor) -> list[str]:
    if extractor.name == "inception-v3" and not extractor.weights_sha256.startswith(INCEPTION_WEIGHTS.sha256):
        return ["these Inception-v3 weights are not the published file of 2015-12-05: the score is not comparable to any FID."]
    return []


def _feed(suite: MetricSuite, side: Side, real: bool, args: argparse.Namespace) -> None:
    images = side.images
    assert images is not None
    if len(images) < 2:
        raise ValueError(f"{side.path} holds one image: a score needs at least two on each side.")
    # tqdm's disable=None shows the bar on a terminal only.
    with tqdm(total=len(images), desc=str(side.path), unit="img", disable=True if args.quiet else None) as bar:
        for batch in images.batches(args.batch_size, args.num_workers):
            suite.update(batch, real)
            bar.update(len(batch))


def _save_stats(source: Path, output: Path, args: argparse.Namespace) -> None:
    if output.suffix.lower() != ".npz":
        raise ValueError(f"--save-stats writes an .npz file, got the output {output}: name it {output}.npz.")
    if output.exists():
        raise FileExistsError(f"output file {output} exists: remove it or choose another name.")
    side = Side(source, images=_open_images(source, args))
    suite = _build_suite(args.extractor, ["frechet"], _parse_weights(args.weights, [args.extractor]), args, None)
    metric = suite.metrics[0]
    assert isinstance(metric, FrechetDistance)
    _feed(suite, side, False, args)
    provenance = {**suite.feature_protocol(str(metric.feature)), "source": source.name}
    save_statistics(output, metric.gaussian(False), provenance)
    sys.stdout.write(f"wrote {output}: {len(metric.gaussian(False).mu)}-d statistics of {side.describe()}\n")


def _print(report: Report, json_target: str | None) -> None:
    if json_target is not None:
        record = {
            "scores": report.scores,
            "protocols": report.protocols,
            "reference": report.reference,
            "samples": report.samples,
            "notes": report.notes,
        }
        text = json.dumps(record, indent=2) + "\n"
        if json_target == "-":
            sys.stdout.write(text)
            return
        Path(json_target).write_text(text)
    sys.stdout.write(format_report(report))


def format_report(report: Report) -> str:
    """Return the table: inputs, protocol of each network, notes, numbers last."""
    lines = [("reference", report.reference), ("samples", report.samples)]
    for protocol in report.protocols:
        digest = str(protocol["weights_sha256"])[:_SHOWN_HASH_DIGITS] if protocol.get("weights_sha256") else "unknown"
        lines.append(("network", f"{protocol.get('extractor') or 'unknown'} (weights sha256 {digest})"))
        lines.append(
            (
                "protocol",
                f"resize {protocol.get('resizer') or 'unknown'} to {protocol.get('input_size') or '?'} px, "
                f"{protocol.get('normalization') or 'unknown normalisation'}",
            )
        )
        for name, parameters in protocol.get("metrics", {}).items():
            lines.append((name, ", ".join(f"{key} {value}" for key, value in parameters.items())))
    lines += [("note", note) for note in report.notes]
    width = max(len(name) for name, _ in [*lines, *((key, "") for key in report.scores)])
    table = [f"{name:<{width}}  {text}" for name, text in lines]
    table += ["-" * (width + 2 + 14)]
    table += [f"{key:<{width}}  {value:14.6f}" for key, value in report.scores.items()]
    return "\n".join(table) + "\n"
