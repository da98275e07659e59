"""Accuracy of a noised classifier on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from generative.core.errors import UserError
from generative.core.evaluation import Evaluation, Evaluator
from generative.core.images import images_to_float
from generative.core.seeding import ImageNoise, keyed_generator
from generative.data.base import ImageDataset
from generative.diffusion.objectives.classifier import is_among, top_counts
from generative.diffusion.objectives.noise_monitor import QUARTERS

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline
    from pipelines.classifier import NoisedClassifierPipeline


class ClassifierEvaluator(Evaluator):
    """Noises held-out images to drawn times, the same at every evaluation, and counts whose class is told.

    Scores: ``noised_accuracy`` over all times (top-1), ``noised_top5_accuracy`` of ten classes and more, and
    ``noised_accuracy_q0`` to ``q3`` by quarter of the noise level, q0 the cleanest.

    Args:
        data: Held-out real images.
        num_images: Only so many of them, spread evenly; None for all.
        batch_size: Images classified at a time on each process.
        seed: Seed of times and noise.
    """

    def __init__(self, data: ImageDataset, num_images: int | None = None, batch_size: int = 250, seed: int = 0) -> None:
        count = len(data) if num_images is None else min(num_images, len(data))
        super().__init__(data, metrics=(), num_samples=count, batch_size=batch_size, seed=seed)

    def check_pipeline(self, pipeline: ImagePipeline) -> None:
        """Refuse a pipeline that classifies nothing."""
        if not hasattr(pipeline, "logits"):
            raise UserError(f"a {type(pipeline).__name__} classifies no images; score it with {pipeline.evaluator}")

    def prepare(self, accelerator: Accelerator, progress: bool = False) -> None:
        """Nothing: the pipeline itself is the classifier that scores."""

    def prepare_or_skip(self, accelerator: Accelerator, training: ImageDataset) -> None:
        """Nothing is missing."""

    def evaluate(
        self, pipeline: ImagePipeline, accelerator: Accelerator, options: Mapping[str, Any], progress: bool = False
    ) -> Evaluation:
        """Classify the held-out images.

        Args:
            pipeline: A ``NoisedClassifierPipeline``, on the accelerator's device.
            accelerator: Its processes share the images; every process gets the result.
            options: Not used: a classifier has none.
            progress: Not used.

        Raises:
            UserError: If it is another pipeline.
        """
        self.check_pipeline(pipeline)
        classifier = cast("NoisedClassifierPipeline", pipeline)
        formulation = classifier.formulation
        order = torch.arange(self.num_samples) * len(self.data) // self.num_samples  # whatever their order, all classes
        times = formulation.draw_times(self.num_samples, keyed_generator(self.seed, "times"))
        parts: list[Tensor] = []
        mine = torch.arange(accelerator.process_index, self.num_samples, accelerator.num_processes)
        for places in mine.split(self.batch_size):
            images = images_to_float(self.data.images(order[places])).to(classifier.device)
            noise = ImageNoise([keyed_generator(self.seed, "noise", int(place)) for place in places], classifier.device)
            at = times[places].to(classifier.device)
            logits = classifier.logits(formulation.add_noise(images, noise.randn(*images.shape[1:]), at), at)
            labels = self.data.labels[order[places]].to(logits.device)
            hits = [is_among(logits, labels, count) for count in top_counts(classifier.num_classes).values()]
            parts.append(torch.stack([formulation.noise_level(at).float(), *hits]).cpu())  # (1 + counts, b)
        if accelerator.num_processes > 1:
            parts = gather_object(parts)
        levels, *hits = torch.cat(parts, dim=1)
        names = ["noised_accuracy", "noised_top5_accuracy"][: len(hits)]  # the second where classes are many, see top_counts
        scores = {name: float(hit.double().mean()) for name, hit in zip(names, hits, strict=True)}
        quarters = (levels * QUARTERS).long().clamp(0, QUARTERS - 1)
        for quarter in range(QUARTERS):
            if bool((quarters == quarter).any()):
                scores[f"noised_accuracy_q{quarter}"] = float(hits[0][quarters == quarter].double().mean())
        protocol = {"num_images": self.num_samples, "seed": self.seed, "formulation": type(formulation).__name__}
        protocol["reference"] = f"{type(self.data).__name__} {self.data.fingerprint}"
        return Evaluation(scores, protocol)

    def score_real(self, data: ImageDataset, accelerator: Accelerator) -> Evaluation:
        """Nothing: other real images say nothing of a classifier."""
        return Evaluation({}, {})
