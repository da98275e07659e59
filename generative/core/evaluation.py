"""Scores of a pipeline against held-out real images: the same code during training and at the end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from generative.core.errors import UserError
from generative.core.generation import balanced_requests, generate_images
from generative.core.seed_range import check_seed
from generative.core.seeding import keyed_generator
from generative.data.base import ImageDataset
from generative.data.class_matching import match_classes

if TYPE_CHECKING:
    from metrics.scores.classification import LabelClassifier
    from metrics.suite import MetricSuite
    from pipelines.base import ImageGenerationPipeline, ImagePipeline


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation.

    Attributes:
        scores: Value by name, for example ``frechet_distance``.
        protocol: Everything needed to repeat them: extractor and its weights' sha256, resizer, counts, seed, sampling options.
    """

    scores: dict[str, float]
    protocol: dict[str, Any]


def gather_local(local: Any) -> list[Any]:
    """Every process's object, by rank."""
    everyone: list[Any] = gather_object([local])
    return everyone


class Evaluator:
    """Scores pipelines against one set of real images, whose features are computed once.

    Args:
        data: Held-out real images.
        extractor: Feature extractor: ``efficientnet-lite0`` (packaged), ``inception-v3``, ``clip-vit-l-14-336``.
        weights: File of the extractor's weights; None for the package's, or a verified download.
        input_size: Pixels the extractor sees; None for its own default. 96 is several times cheaper than 224.
        metrics: Metrics by name: ``frechet``, ``kid``, ``precision_recall``, ``inception_score``, ``cmmd``.
        resizer: ``clean``, ``pytorch-fid``, ``tensorflow`` or ``cmmd``; None for the extractor's own.
        num_samples: Images to sample, balanced over the classes.
        batch_size: Images sampled at a time on each process.
        seed: Seed of the samples; the same at every evaluation, so that curves compare like with like.
        classifier_data: Real training images: where given, a support vector machine fitted on them tells how often a sample
            shows the class that was asked for (``classification_accuracy``).

    Attributes:
        skipped: Why nothing is scored, in one sentence; None where it is.
        autocast: Makes the context that samples are drawn in: none, so that they are drawn in float32.
    """

    def __init__(
        self,
        data: ImageDataset,
        extractor: str = "inception-v3",
        weights: Path | None = None,
        input_size: int | None = None,
        metrics: Sequence[str] = ("frechet", "kid", "precision_recall"),
        resizer: str | None = None,
        num_samples: int = 500,
        batch_size: int = 100,
        seed: int = 0,
        classifier_data: ImageDataset | None = None,
    ) -> None:
        if num_samples < 2:
            raise UserError(f"evaluation num_samples must be at least 2, got {num_samples}")
        if batch_size < 1:
            raise UserError(f"evaluation batch_size must be at least 1, got {batch_size}")
        check_seed("evaluation seed", seed)
        self.data = data
        self.extractor = extractor
        self.weights = weights
        self.input_size = input_size
        self.metrics = list(metrics)
        self.resizer = resizer
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.classifier_data = classifier_data
        self.skipped: str | None = None
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._suite: MetricSuite | None = None
        self._classifier: LabelClassifier | None = None
        self._has_reference = False

    def match_classes(self, training: ImageDataset) -> list[str]:
        """Give the real images the labels of the training data, see ``generative.data.class_matching``.

        Args:
            training: Training images.

        Returns:
            What the user should know, one sentence each.

        Raises:
            UserError: If classes cannot be matched.
        """
        notices = match_classes(self.data, training, "evaluation data")
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
        """Load the extractor and make the metrics, so that a mistake in them shows before anything is trained.

        Args:
            accelerator: Its device runs the extractor.
            progress: Show progress bars when images are scored.

        Raises:
            UserError: If a name is not known, or weights are missing or not those expected.
        """
        if self._suite is None:
            from metrics.extractors import build_extractor
            from metrics.suite import MetricSuite

            try:
                extractor = build_extractor(
                    self.extractor, weights=self.weights, input_size=self.input_size, device=accelerator.device
                )
                self._suite = MetricSuite(self.metrics, extractor, resizer=self.resizer, progress=progress)
                self._check_counts(self._suite)
            except (ValueError, FileNotFoundError) as error:
                # The metrics package stands alone and has no error of its own for wrong input.
                raise UserError(f"evaluation: {error}") from error

    def _check_counts(self, suite: MetricSuite) -> None:
        """Refuse fewer images than a metric needs, before anything is trained."""
        real = len(self.data.indices_with_images())
        for metric in suite.metrics:
            for is_real, count, name in ((True, real, "images of the evaluation data"), (False, self.num_samples, "num_samples")):
                least = metric.least_images(is_real)
                if count < least:
                    raise UserError(f"evaluation: metric {metric.name} needs at least {least} {name}, got {count}")

    def _check_training(self, suite: MetricSuite, training: ImageDataset) -> None:
        """Refuse fewer training images than a metric needs: as many of them as samples are scored beside those."""
        count = min(self.num_samples, len(training.indices_with_images()))
        for metric in suite.metrics:
            if count < metric.least_images(False):
                raise UserError(
                    f"evaluation: metric {metric.name} needs at least {metric.least_images(False)} training images, got {count}"
                )

    def prepare_or_skip(self, accelerator: Accelerator, training: ImageDataset) -> None:
        """As ``prepare``; but where the file of the extractor's weights is absent, say so on stderr and score nothing.

        Args:
            accelerator: Its device runs the extractor; its processes skip together.
            training: Training images, for the command that makes the file.

        Raises:
            UserError: As ``prepare``.
        """
        self._check_names()
        is_absent = self.weights is not None and not Path(self.weights).is_file()
        if accelerator.num_processes > 1:
            is_absent = any(gather_local(is_absent))
        if not is_absent:
            self.prepare(accelerator)
            if self._suite is not None:
                self._check_training(self._suite, training)
            return
        self.skipped = (
            f"evaluation is skipped, as the weights of its extractor {self.extractor} are not at {self.weights}: "
            f"{self._remedy(training)}, and the run scores when it goes on with --resume latest"
        )
        if accelerator.is_main_process:
            print(f"note: {self.skipped}", file=sys.stderr)

    def _check_names(self) -> None:
        """Refuse a misspelt name, which no file would mend."""
        from metrics import registry

        try:
            if ".py:" not in self.extractor:
                registry.resolve("extractor", registry.EXTRACTORS, self.extractor)
            for name in self.metrics:
                registry.canonical_metric(name)
            if self.resizer is not None:
                registry.resolve("resizer", registry.RESIZERS, self.resizer)
        except ValueError as error:
            raise UserError(f"evaluation: {error}") from error

    def _remedy(self, training: ImageDataset) -> str:
        from metrics.extractors.training import TRAINABLE

        if self.extractor != TRAINABLE:
            return "put the file there, or name another with --evaluation.init_args.weights"
        train, test = (data.image_path or Path(name) for data, name in ((training, "TRAIN"), (self.data, "TEST")))
        paths = " ".join(shlex.quote(str(path)) for path in (train, test, self.weights))
        size = "" if self.input_size is None else f" --input-size {self.input_size}"
        return f"make them with `fid-score --train-extractor {paths} --extractor {TRAINABLE}{size}`"

    def evaluate(
        self, pipeline: ImageGenerationPipeline, accelerator: Accelerator, options: Mapping[str, Any], progress: bool = False
    ) -> Evaluation:
        """Sample from the pipeline and score.

        Args:
            pipeline: The pipeline, on the accelerator's device.
            accelerator: Its processes share the sampling; every process gets the result.
            options: Options of the pipeline's call, over those that it was saved with.
            progress: Show progress bars.
        """
        self.check_pipeline(pipeline)
        requests = balanced_requests(self.num_samples, pipeline.num_classes)
        suite = self._reference_suite(accelerator, progress)
        suite.reset_fake()
        # Images are not kept: 50,000 of 256 pixels are 9.8 GB, on every process.
        recognised: list[Tensor] = []
        for positions, images in generate_images(
            pipeline,
            requests,
            seed=self.seed,
            batch_size=self.batch_size,
            options=options,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            progress=progress and accelerator.is_main_process,
            autocast=self.autocast,
        ):
            suite.update(images, real=False, indices=torch.tensor(positions))
            recognised.append(self._recognise(images, torch.tensor([requests[p].class_label for p in positions])))
        if accelerator.num_processes > 1:
            suite.gather(gather_local)
            recognised = gather_object(recognised)
        evaluation = self._finish(suite, recognised)
        evaluation.protocol.update(seed=self.seed, labels="balanced", sampling=pipeline.merge_options(options).to_dict())
        return evaluation

    def score_real(self, data: ImageDataset, accelerator: Accelerator) -> Evaluation:
        """Score as many other real images, drawn at random: what a perfect generator would get at this sample count.

        Args:
            data: Real images other than the reference, for example the training images.
            accelerator: Its device runs the extractor; call this after ``evaluate``, on one process or all.
        """
        given = data.indices_with_images()
        order = given[torch.randperm(len(given), generator=keyed_generator(self.seed, "score_real"))][: self.num_samples]
        suite = self._reference_suite(accelerator, progress=False)
        suite.reset_fake()
        for indices in order.split(suite.batch_size):
            suite.update(data.images(indices), real=False)
        evaluation = self._finish(suite, [])
        if self.classifier_data is not None:
            # On the held-out images: the classifier has seen the training ones.
            everything = torch.arange(len(self.data)).split(suite.batch_size)
            held_out = [self._recognise(self.data.images(indices), self.data.labels[indices]) for indices in everything]
            evaluation.scores.update(accuracy_of(held_out))
        return evaluation

    def _finish(self, suite: MetricSuite, recognised: Sequence[Tensor]) -> Evaluation:
        scores = suite.compute()
        protocol = {**suite.protocol, "reference": f"{type(self.data).__name__} {self.data.fingerprint}"}
        if self.classifier_data is not None:
            scores.update(accuracy_of(recognised))
            protocol["classifier"] = self._label_classifier().description
        return Evaluation(scores, protocol)

    def _recognise(self, images: Tensor, class_labels: Tensor) -> Tensor:
        """Whether the classifier takes each image for its class, bool; of a class that it has never seen it says nothing."""
        if self.classifier_data is None:
            return torch.empty(0, dtype=torch.bool)
        known = torch.isin(class_labels, self.classifier_data.labels)
        if not known.any():
            return torch.empty(0, dtype=torch.bool)
        return self._label_classifier().predict(images.cpu()[known]) == class_labels[known]

    def _reference_suite(self, accelerator: Accelerator, progress: bool) -> MetricSuite:
        """The metrics with the reference's features, each process having computed its share of them."""
        if not self._has_reference:
            self.prepare(accelerator, progress)
            assert self._suite is not None
            self._has_reference = True
            mine = range(accelerator.process_index, len(self.data), accelerator.num_processes)
            for start in range(0, len(mine), self.batch_size):
                indices = torch.tensor(mine[start : start + self.batch_size])
                self._suite.update(self.data.images(indices), real=True, indices=indices)
        assert self._suite is not None
        return self._suite

    def _label_classifier(self) -> LabelClassifier:
        if self._classifier is None:
            from metrics.scores.classification import LabelClassifier

            assert self.classifier_data is not None
            self._classifier = LabelClassifier().fit(self.classifier_data.images_uint8(), self.classifier_data.labels)
        return self._classifier


def accuracy_of(recognised: Sequence[Tensor]) -> dict[str, float]:
    """The score ``classification_accuracy``, from whether each image was taken for its class; none without an image."""
    every = torch.cat([torch.empty(0, dtype=torch.bool), *recognised])
    return {"classification_accuracy": float(every.double().mean())} if len(every) else {}
