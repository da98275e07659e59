"""What can be asked beyond scores: class matching, maps of what FID sees, classification accuracy, the cost of a precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch

from metrics.distributed import describe_error
from metrics.extraction import Extraction, map_on_cores, microbatch_size, num_cores
from metrics.metric import FeatureCollector
from metrics.options import ScoreOptions
from metrics.scores.frechet import FrechetDistance, frechet_distance_from_features
from metrics.scoring.image_sets import ImageSet
from metrics.scoring.report import Result
from metrics.suite import MetricSuite

_PAPER_POOL_SHARE = 5  # arXiv:2203.06026 draws 50,000 of a pool of 250,000.
_MAP_IMAGES = 8
_PRECISION_IMAGES = 64  # Of each side: enough to see a percent, seconds on a CPU.
_READ_IMAGES = 16


def check(
    suites: Sequence[MetricSuite], reference: ImageSet | None, samples: Sequence[ImageSet | None], options: ScoreOptions
) -> None:
    """Raise before any work if an analysis that is asked for lacks what it needs.

    Args:
        suites: The run's networks with their metrics.
        reference: What samples are compared with, if anything.
        samples: The sample sets.
        options: What is asked for.

    Raises:
        ValueError: If it does.
    """
    wanted = [flag for flag in ("match_classes", "sensitivity_map", "cas") if getattr(options, flag) is not None]
    if not wanted:
        return
    if reference is None or len(samples) != 1 or samples[0] is None:
        raise ValueError(f"--{wanted[0].replace('_', '-')} needs a reference and one sample set: fid-score A B.")
    fakes = samples[0]
    if options.match_classes is not None:
        for side in (reference, fakes):
            if side.images is None:
                raise ValueError(f"--match-classes needs the images of both sides, and {side.path} holds statistics.")
        if all(suite.extractor.class_logits is None for suite in suites):
            raise ValueError("--match-classes needs a network that is a classifier: score fid (Inception-v3) as well.")
        if not any(isinstance(metric, FrechetDistance) for suite in suites for metric in suite.metrics):
            raise ValueError("--match-classes shows what matching does to Frechet distances: score fid or another as well.")
        if options.match_num is not None and options.match_num > len(fakes.images or ()):
            raise ValueError(f"--match-num must not exceed the samples ({len(fakes.images or ())}), got {options.match_num}.")
    if options.sensitivity_map is not None and (fakes.images is None or _fid_of(suites) is None):
        raise ValueError("--sensitivity-map needs FID and sample images: score fid on a set of images.")
    if options.cas is not None:
        from metrics.scores.classification_accuracy import check_architecture

        check_architecture(options.cas)
        for side in (fakes, reference):
            if side.images is None:
                raise ValueError(f"--cas needs labelled images, and {side.path} holds statistics.")
            if not side.images.has_labels:
                raise ValueError(f"--cas needs class labels, and {side.images.lack_of_labels()}")


def run_all(suites: Sequence[MetricSuite], reference: ImageSet, samples: ImageSet, options: ScoreOptions, result: Result) -> None:
    """Run the analyses that are asked for, after ``check`` has passed them.

    One that fails is said in the result and keeps neither the scores nor the others from being published; one that is
    interrupted, too, and ends the run.
    """
    work: list[tuple[str, Callable[[], None]]] = []
    matched, map_file, architecture = options.match_classes, options.sensitivity_map, options.cas
    if matched is not None:
        work.append(("class matching", lambda: _match_classes(suites, matched, options, result)))
    if map_file is not None:
        work.append(("the sensitivity map", lambda: _draw_sensitivity(suites, samples, Path(map_file), result)))
    if architecture is not None:
        work.append(
            (
                "the classification accuracy score",
                lambda: _classification_accuracy(reference, samples, architecture, options, result),
            )
        )
    if options.precision != "float32":
        work.append(("the effect of the precision", lambda: _precision_effect(suites, reference, samples, result)))
    for name, analyse in work:
        try:
            analyse()
        except KeyboardInterrupt:
            result.errors.append(f"{name} was interrupted.")
            raise
        except (ValueError, TypeError, OSError) as error:
            result.errors.append(f"{name} failed: {describe_error(error)}")


def _fid_of(suites: Sequence[MetricSuite]) -> tuple[MetricSuite, FrechetDistance] | None:
    for suite in suites:
        for metric in suite.metrics:
            if isinstance(metric, FrechetDistance) and (suite.extractor.name, metric.feature) == ("inception-v3", "pool3"):
                return suite, metric
    return None


def _match_classes(suites: Sequence[MetricSuite], kind: str, options: ScoreOptions, result: Result) -> None:
    """Draw samples whose classes are distributed as the reference's and score those."""
    from metrics.scores.class_matching import match_classes

    classifier = next(suite for suite in suites if suite.extractor.class_logits is not None)
    logits = _collected(classifier, str(classifier.extractor.class_logits))
    real, fake = {}, {}
    for suite in suites:
        for metric in suite.metrics:
            if isinstance(metric, FrechetDistance):
                pair = _collected(suite, str(metric.feature))
                real[metric.key], fake[metric.key] = pair
    num = options.match_num or max(2, len(logits[1]) // _PAPER_POOL_SHARE)
    found = match_classes(logits[0], logits[1], real, fake, num, kind, seed=options.rng_seed or 0, progress=not options.quiet)
    for key in found.after:
        result.scores[f"{key}_drawn"] = found.before[key]
        result.scores[f"{key}_matched"] = found.after[key]
    result.notes.append(
        f"class matching: {num} samples drawn of {len(logits[1])} at random (_drawn) and so that {kind} classes of "
        f"{classifier.extractor.name} are distributed as the reference's (_matched; {found.num_distinct} distinct): "
        "what a distance loses thereby was class proportions, not image quality."
    )


def _collected(suite: MetricSuite, feature: str) -> tuple[torch.Tensor, torch.Tensor]:
    for metric in suite.metrics:
        if isinstance(metric, FeatureCollector) and metric.feature == feature:
            return metric.features(True), metric.features(False)
    raise AssertionError(f"no features {feature} were collected of {suite.extractor.name}")


def _draw_sensitivity(suites: Sequence[MetricSuite], side: ImageSet, path: Path, result: Result) -> None:
    from metrics.resize import build_resizer
    from metrics.scores.sensitivity import fid_sensitivity, save_overlays

    found = _fid_of(suites)
    assert found is not None, "checked before"
    suite, metric = found
    images = _first_images(side, _MAP_IMAGES)
    # The figure shows images side by side, so they are brought to one size first; that is the size the network sees.
    resizer = suite.extraction.resizer.name
    batch = build_resizer(resizer)(images, suite.extractor.input_size).round().clamp(0, 255).to(torch.uint8)
    maps = fid_sensitivity(suite.extractor, batch, metric.gaussian(True), metric.gaussian(False), resizer)
    save_overlays(path, batch, maps)
    result.notes.append(f"{path} shows what FID looks at in the first {len(images)} samples (arXiv:2203.06026, section 3).")


def _classification_accuracy(
    reference: ImageSet, samples: ImageSet, architecture: str, options: ScoreOptions, result: Result
) -> None:
    from metrics.scores.classification_accuracy import classification_accuracy_score

    assert samples.images is not None and reference.images is not None
    scores = classification_accuracy_score(
        samples.images,
        reference.images,
        architecture=architecture,
        image_size=options.cas_size,
        epochs=options.cas_epochs,
        seed=options.rng_seed or 0,
        device=options.device,
        progress=not options.quiet,
    )
    result.scores.update(scores)
    result.notes.append(
        f"classification accuracy: {architecture} at {options.cas_size} px trained {options.cas_epochs} epochs on the samples, "
        "tested on the reference (arXiv:1905.10887)."
    )


def _precision_effect(suites: Sequence[MetricSuite], reference: ImageSet, side: ImageSet, result: Result) -> None:
    """Say how far the lower precision moves the distance, on the first images of both sides."""
    if reference.images is None or side.images is None:
        result.notes.append("what the precision costs is not known: it is measured on the images of both sides.")
        return
    pairs = [_first_images(each, _PRECISION_IMAGES) for each in (reference, side)]
    for suite in suites:
        for metric in suite.metrics:
            if isinstance(metric, FrechetDistance):
                feature = str(metric.feature)
                values = []
                for precision in ("float32", suite.extraction.precision):
                    extraction = Extraction(suite.extractor, suite.extraction.resizer.name, precision)
                    sets = [_features(extraction, images, feature) for images in pairs]
                    values.append(frechet_distance_from_features(*sets))
                # Of one set scored against itself the distance in float32 is 0.
                effect = f"{100 * (values[1] / values[0] - 1):+.2f} %" if values[0] > 0.0 else f"{values[1]:+.4f}"
                result.notes.append(
                    f"{suite.extraction.precision} moved {metric.key} by {effect} on the first "
                    f"{len(pairs[0])} + {len(pairs[1])} images ({values[0]:.4f} in float32)."
                )


def _features(extraction: Extraction, images: list[torch.Tensor], feature: str) -> torch.Tensor:
    size = microbatch_size([extraction.extractor], _READ_IMAGES)
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    found = map_on_cores(lambda part: extraction(part, [feature])[feature], parts, num_cores([extraction.extractor]))
    return torch.cat(list(found))


def _first_images(side: ImageSet, count: int) -> list[torch.Tensor]:
    assert side.images is not None
    batches = side.images.batches(_READ_IMAGES, 0, 0, min(count, len(side.images)))
    return [image for batch in islice(batches, count) for image in batch.images]
