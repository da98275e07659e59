"""Scores of a pipeline against held-out real images: the same code during training and at the end."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator

from generative.core.errors import UserError
from generative.core.generation import balanced_requests
from generative.core.scoring_passes import feed, gather_local, load_reference, processes_of, run_samples
from generative.core.scoring_setup import ScoringSetup, file_sha256, open_reference
from generative.core.seed_range import check_seed
from generative.core.seeding import keyed_generator
from generative.data.base import ImageDataset
from generative.data.class_matching import match_classes

if TYPE_CHECKING:
    from metrics.files.feature_cache import FeatureCache
    from metrics.scores.classification import LabelClassifier
    from metrics.scoring.image_sets import ImageSet
    from metrics.suite import MetricSuite
    from pipelines.base import ImageGenerationPipeline, ImagePipeline

SamplePrecision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation.

    Attributes:
        scores: Value by name, for example ``frechet_distance``.
        protocol: Everything needed to repeat them: extractor and its weights' sha256, resizer, counts, seed, sampling options.
    """

    scores: dict[str, float]
    protocol: dict[str, Any]


class Evaluator:
    """Scores pipelines against one set of real images, whose features are computed once.

    Args:
        data: Held-out real images; or a ``reference`` in their place.
        extractor: Feature extractor of the metrics whose definition names none: ``efficientnet-lite0`` (packaged),
            ``inception-v3``, ...; see `generative list metrics`.
        weights: File of the extractor's weights; None for the package's, or a verified download.
        input_size: Pixels the extractor sees; None for its own default. 96 is several times cheaper than 224.
        metrics: Metrics as `fid-score --metrics` names them (``fid``, ``sfid``, ``is``, ``kid``, ``prc``, ``fd-dinov2``, ``cmmd``
            and so on), a list or with commas; each network that they look through runs once over the samples.
        resizer: ``clean``, ``pytorch-fid``, ``tensorflow`` or ``cmmd``, of metrics whose definition names none; None for the
            protocol's.
        num_samples: Images to sample, balanced over the classes.
        batch_size: Images sampled at a time on each process.
        seed: Seed of the samples; the same at every evaluation, so that curves compare like with like.
        classifier_data: Real training images: where given, a support vector machine fitted on them tells how often a sample
            shows the class that was asked for (``classification_accuracy``).
        reference: Statistics of real images, as `fid-score --save-stats` writes them, or of other tools.
        protocol: As `fid-score --protocol`: ``clean``, ``pytorch-fid``, ``tensorflow``, ``adm`` or ``edm``; None for ``clean``.
        other_weights: Files of the weights of the metrics' other networks, by network: ``{dinov2-vit-l-14: FILE}``.
        sampling: Options of sampling that differ from the objective's, by name: ``{guidance_scale: 1.0}``.
        sample_precision: Autocast of the networks that sample: ``float32`` (none), ``bfloat16`` or ``float16``.

    Attributes:
        skipped: Why nothing is scored, in one sentence; None where it is.
        autocast: Makes the context that samples are drawn in; None for that of ``sample_precision``.
        features_root: Folder that keeps features of samples until an evaluation is done, so that one which is stopped or killed
            goes on; None to keep none.
        should_stop: Asked while samples are drawn: whether this process was asked to stop.
    """

    def __init__(
        self,
        data: ImageDataset | None = None,
        extractor: str = "inception-v3",
        weights: Path | None = None,
        input_size: int | None = None,
        metrics: str | Sequence[str] = ("frechet", "kid", "precision_recall"),
        resizer: str | None = None,
        num_samples: int = 500,
        batch_size: int = 100,
        seed: int = 0,
        classifier_data: ImageDataset | None = None,
        reference: Path | None = None,
        protocol: str | None = None,
        other_weights: dict[str, Path] | None = None,
        sampling: dict[str, Any] | None = None,
        sample_precision: SamplePrecision = "float32",
    ) -> None:
        if num_samples < 2:
            raise UserError(f"evaluation num_samples must be at least 2, got {num_samples}")
        if batch_size < 1:
            raise UserError(f"evaluation batch_size must be at least 1, got {batch_size}")
        check_seed("evaluation seed", seed)
        if data is not None and reference is not None:
            raise UserError(
                f"evaluation has held-out images (data) and the reference '{reference}'; give one of them, the other as null"
            )
        if resizer is not None and protocol is not None:
            raise UserError(f"evaluation: protocol {protocol} has a resizer of its own, got resizer {resizer}; give one of them")
        self.held_out = data
        self.extractor = extractor
        self.weights = weights
        self.input_size = input_size
        self.metrics = [name.strip() for name in metrics.split(",")] if isinstance(metrics, str) else list(metrics)
        self.resizer = resizer
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.classifier_data = classifier_data
        self.reference = None if reference is None else Path(reference)
        self.sampling = dict(sampling or {})
        self.sample_precision = sample_precision
        every = {**({} if weights is None else {extractor: weights}), **(other_weights or {})}
        self.setup = ScoringSetup(
            self.metrics, extractor, {name: Path(path) for name, path in every.items()}, input_size, resizer, protocol
        )
        self.skipped: str | None = None
        self.autocast: Callable[[], AbstractContextManager[Any]] | None = None
        self.features_root: Path | None = None
        self.should_stop: Callable[[], bool] = lambda: False
        self._suites: list[MetricSuite] | None = None
        self._classifier: LabelClassifier | None = None
        self._recognition: MetricSuite | None = None
        self._statistics: ImageSet | None = None
        self._has_reference = False

    @property
    def data(self) -> ImageDataset:
        """The held-out images.

        Raises:
            UserError: If there is a reference in their place.
        """
        if self.held_out is None:
            raise UserError(f"the evaluation has the reference '{self.reference}' and no held-out images; give them as data")
        return self.held_out

    def describe_reference(self) -> str:
        """What samples are compared with, and its fingerprint."""
        if self.held_out is not None:
            return f"{type(self.held_out).__name__} {self.held_out.fingerprint}"
        return "no real images" if self.reference is None else f"{self.reference.name} {file_sha256(self.reference)}"

    def beyond_defaults(self) -> dict[str, Any]:
        """What else decides the scores, JSON values by name, where it is given: protocol, other networks' weights, sampling."""
        others = {name: str(path) for name, path in self.setup.weights.items() if name != self.extractor}
        given = {"protocol": self.setup.protocol, "other_weights": others, "sampling": self.sampling}
        precision = {} if self.sample_precision == "float32" else {"sample_precision": self.sample_precision}
        return {name: value for name, value in given.items() if value} | precision

    def networks(self) -> list[str]:
        """Names of the networks that score."""
        return self.setup.networks()

    def directions(self) -> dict[str, bool]:
        """Whether higher is better, of every score that this evaluation may give; empty before ``prepare``."""
        if self._suites is None:
            return {}
        from metrics.suite import directions

        found = directions(self._suites)
        return found if self.classifier_data is None else {**found, "classification_accuracy": True}

    def match_classes(self, training: ImageDataset) -> list[str]:
        """Give the real images the labels of the training data, see ``generative.data.class_matching``.

        Args:
            training: Training images.

        Returns:
            What the user should know, one sentence each.

        Raises:
            UserError: If classes cannot be matched.
        """
        notices = [] if self.held_out is None else match_classes(self.held_out, training, "evaluation data")
        if self.classifier_data is not None:
            notices += match_classes(self.classifier_data, training, "classifier_data of the evaluation")
        return notices

    def check_pipeline(self, pipeline: ImagePipeline) -> None:
        """Refuse a pipeline that another kind of evaluator scores.

        Raises:
            UserError: Naming that evaluator.
        """
        if pipeline.evaluator not in {f"{each.__module__}.{each.__qualname__}" for each in type(self).__mro__}:
            raise UserError(
                f"evaluation: a {type(pipeline).__name__} {pipeline.purpose}; set evaluation.class_path to {pipeline.evaluator}"
            )

    def prepare(self, accelerator: Accelerator, progress: bool = False) -> None:
        """Load the networks and open the reference, so that a mistake in them shows before anything is trained.

        Args:
            accelerator: Its device runs the networks.
            progress: Show progress bars when images are scored.

        Raises:
            UserError: If a name is not known, weights are missing or not those expected, or the reference does not fit.
        """
        if self._suites is not None:
            return
        try:
            suites = self.setup.build(str(accelerator.device))
            for suite in suites:
                suite.progress = progress
            if self.reference is not None:
                self._statistics = open_reference(self.reference, suites)
        except UserError:
            raise
        except (ValueError, FileNotFoundError) as error:
            # The metrics package stands alone and has no error of its own for wrong input.
            raise UserError(f"evaluation: {error}") from error
        comparing = [metric.name for suite in suites for metric in suite.metrics if metric.needs_real]
        if comparing and self.held_out is None and self.reference is None:
            raise UserError(
                f"evaluation: metric {comparing[0]} compares samples with real images; give held-out images as data, or their "
                "statistics as reference"
            )
        self._check_counts(suites)
        self._suites = suites

    def _check_counts(self, suites: Sequence[MetricSuite]) -> None:
        """Refuse fewer images than a metric needs, before anything is trained."""
        sides = [(False, self.num_samples, "num_samples")]
        if self.held_out is not None:
            sides.insert(0, (True, len(self.held_out.indices_with_images()), "images of the evaluation data"))
        for metric in [metric for suite in suites for metric in suite.metrics]:
            for is_real, count, name in sides:
                least = metric.least_images(is_real)
                if count < least:
                    raise UserError(f"evaluation: metric {metric.name} needs at least {least} {name}, got {count}")

    def _check_training(self, suites: Sequence[MetricSuite], training: ImageDataset) -> None:
        """Refuse fewer training images than a metric needs: as many of them as samples are scored beside those."""
        count = min(self.num_samples, len(training.indices_with_images()))
        for metric in [metric for suite in suites for metric in suite.metrics]:
            if count < metric.least_images(False):
                raise UserError(
                    f"evaluation: metric {metric.name} needs at least {metric.least_images(False)} training images, got {count}"
                )

    def prepare_or_skip(self, accelerator: Accelerator, training: ImageDataset) -> None:
        """As ``prepare``; but where a file of a network's weights is absent, say so on stderr and score nothing.

        Args:
            accelerator: Its device runs the networks; its processes skip together.
            training: Training images, for the command that makes the file.

        Raises:
            UserError: As ``prepare``.
        """
        try:
            self.setup.check()
        except ValueError as error:
            raise UserError(f"evaluation: {error}") from error
        absent = [name for name, path in self.setup.weights.items() if not path.is_file()]
        if accelerator.num_processes > 1:
            absent = [name for part in gather_local(absent) for name in part]
        if not absent:
            self.prepare(accelerator)
            self._check_training(self._suites or [], training)
            return
        path = self.setup.weights[absent[0]]
        self.skipped = (
            f"evaluation is skipped, as the weights of its extractor {absent[0]} are not at {path}: "
            f"{self._remedy(absent[0], path, training)}, and the run scores when it goes on with --resume latest"
        )
        if accelerator.is_main_process:
            print(f"note: {self.skipped}", file=sys.stderr)

    def _remedy(self, network: str, weights: Path, training: ImageDataset) -> str:
        from metrics.extractors.training import TRAINABLE

        if network != TRAINABLE:
            key = "weights" if network == self.extractor else f"other_weights.{network}"
            return f"put the file there, or name another with --evaluation.init_args.{key}"
        sides = ((training, "TRAIN"), (self.held_out, "TEST"))
        train, test = ((None if data is None else data.image_path) or Path(name) for data, name in sides)
        paths = " ".join(shlex.quote(str(path)) for path in (train, test, weights))
        size = "" if self.input_size is None else f" --input-size {self.input_size}"
        return f"make them with `fid-score --train-extractor {paths} --extractor {TRAINABLE}{size}`"

    def evaluate(
        self, pipeline: ImageGenerationPipeline, accelerator: Accelerator, options: Mapping[str, Any], progress: bool = False
    ) -> Evaluation:
        """Sample from the pipeline and score.

        Args:
            pipeline: The pipeline, on the accelerator's device.
            accelerator: Its processes share the sampling; every process gets the result.
            options: Options of the pipeline's call, over those that it was saved with; ``sampling`` goes over them.
            progress: Show progress bars.

        Raises:
            SamplingStopped: On every process, if one was asked to stop; what is sampled is kept in ``features_root``.
            UserError: If images cannot be sampled or scored.
        """
        from generative.core.pipeline_samples import PipelineSamples, precision_context
        from metrics.scoring.extraction import Extraction

        self.check_pipeline(pipeline)
        suites = self._reference_suites(accelerator, progress)
        chosen = {**options, **self.sampling}
        identity, cache = self._open_cache(pipeline, chosen, accelerator)
        samples = PipelineSamples(
            Path("evaluation"),
            pipeline,
            balanced_requests(self.num_samples, pipeline.num_classes),
            seed=self.seed,
            options=chosen,
            autocast=self.autocast or precision_context(self.sample_precision, accelerator.device.type),
            identity=identity,
            should_stop=self.should_stop,
        )
        extraction = Extraction(
            batch_size=self.batch_size,
            num_workers=0,
            processes=processes_of(accelerator),
            cache=cache,
            same_size_for=self.setup.same_size_for,
            progress=progress,
            keep_bar=False,
        )
        run_samples(extraction, suites, samples)
        scores = self._compute(suites, accelerator)
        if cache is not None:
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                shutil.rmtree(cache.root.parent, ignore_errors=True)
                if cache.failure is not None:
                    print(f"note: {cache.failure}", file=sys.stderr)
        protocol = self._facts(suites)
        protocol.update(seed=self.seed, labels="balanced", sampling=pipeline.merge_options(chosen).to_dict())
        if self.sample_precision != "float32":
            protocol["sample_precision"] = self.sample_precision
        return Evaluation(scores, protocol)

    def _open_cache(
        self, pipeline: ImageGenerationPipeline, options: Mapping[str, Any], accelerator: Accelerator
    ) -> tuple[str, FeatureCache | None]:
        """Fingerprint of the samples, and where their features are kept; those of other samples are deleted."""
        if self.features_root is None:
            return "", None
        from generative.core.pipeline_samples import fingerprint_pipeline, software
        from metrics.files.feature_cache import FeatureCache
        from metrics.sources.base import fingerprint

        identity = ""
        if accelerator.is_main_process:
            chosen = sorted(pipeline.merge_options(options).to_dict().items())
            device = accelerator.device.type
            made_from = [fingerprint_pipeline(pipeline), self.seed, self.num_samples, self.sample_precision, device]
            identity = fingerprint(["evaluation", *made_from, *chosen, *software()])
            for other in self.features_root.glob("*"):
                if other.name != identity:
                    shutil.rmtree(other, ignore_errors=True)
        if accelerator.num_processes > 1:
            identity = gather_local(identity)[0]
        return identity, FeatureCache(self.features_root / identity)

    def score_real(self, data: ImageDataset, accelerator: Accelerator) -> Evaluation:
        """Score as many other real images, drawn at random: what a perfect generator would get at this sample count.

        Args:
            data: Real images other than the reference, for example the training images.
            accelerator: Its processes share them; call this after ``evaluate``, on every process.
        """
        given = data.indices_with_images()
        order = given[torch.randperm(len(given), generator=keyed_generator(self.seed, "score_real"))][: self.num_samples]
        suites = self._reference_suites(accelerator, progress=False)
        networks = [suite for suite in suites if suite is not self._recognition]
        feed(networks, data, order, self.batch_size, accelerator, real=False)
        if self._recognition is not None:
            # Of the held-out images: the classifier has seen the training ones.
            held_out = torch.arange(0 if self.held_out is None else len(self.held_out))
            feed([self._recognition], self.held_out or data, held_out, self.batch_size, accelerator, real=False)
        return Evaluation(self._compute(suites, accelerator), self._facts(suites))

    def _compute(self, suites: Sequence[MetricSuite], accelerator: Accelerator) -> dict[str, float]:
        """Scores by name, computed by the main process; a metric that cannot be computed is told and left out."""
        from metrics.suite import compute_all

        errors: list[str] = []
        scores: dict[str, float] = {}
        if accelerator.is_main_process:
            for metric in [metric for suite in suites for metric in suite.metrics if self.held_out is not None]:
                metric.class_names.update(enumerate(self.data.class_names))
            scores = compute_all(suites, errors)
            for error in errors:
                print(f"note: evaluation: {error.removesuffix('.')}; the other scores are computed", file=sys.stderr)
        return gather_local(scores)[0] if accelerator.num_processes > 1 else scores

    def _facts(self, suites: Sequence[MetricSuite]) -> dict[str, Any]:
        """What the scores depend on: the first network's facts, and a list of the others' under ``other_networks``."""
        networks = [suite.protocol for suite in suites if suite is not self._recognition]
        protocol = {**(networks[0] if networks else {}), "reference": self.describe_reference()}
        if len(networks) > 1:
            protocol["other_networks"] = networks[1:]
        if self.setup.protocol is not None:
            protocol["protocol"] = self.setup.protocol
        if self._classifier is not None:
            protocol["classifier"] = self._classifier.description
        return protocol

    def _reference_suites(self, accelerator: Accelerator, progress: bool) -> list[MetricSuite]:
        """The metrics with the reference's features, each process having computed its share of them."""
        self.prepare(accelerator, progress)
        assert self._suites is not None
        if not self._has_reference:
            self._has_reference = True
            if self.held_out is not None:
                everything = torch.arange(len(self.held_out))
                feed(self._suites, self.held_out, everything, self.batch_size, accelerator, real=True)
            elif self._statistics is not None:
                load_reference(self._statistics, self._suites, self.batch_size, accelerator)
        if self.classifier_data is not None and self._recognition is None:
            from metrics.scores.classification import LabelClassifier
            from metrics.scores.recognition import recognition_suite

            known = self.classifier_data
            self._classifier = LabelClassifier().fit(known.images_uint8(), known.labels)
            self._recognition = recognition_suite(self._classifier, known.labels, known.image_size, known.fingerprint)
        return [*self._suites, *([] if self._recognition is None else [self._recognition])]
