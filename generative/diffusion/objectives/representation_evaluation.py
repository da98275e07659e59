"""Distance of sampled representations to those of held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from generative.core.errors import UserError
from generative.core.evaluation import Evaluation, Evaluator
from generative.core.generation import balanced_requests
from generative.core.images import images_to_float
from generative.core.seeding import sample_generators
from generative.data.base import ImageDataset
from generative.tokenizers.representation import RepresentationEncoder, describe_encoder
from metrics.scores.frechet import frechet_distance_from_features

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline
    from pipelines.representation import RepresentationPipeline


class RepresentationEvaluator(Evaluator):
    """Frechet distance between sampled representations and those of held-out images, ``representation_distance``.

    It says how well the representation diffusion learnt, and nothing of images.

    Args:
        data: Held-out real images.
        encoder: Encodes them, as the objective's.
        num_samples: Representations to sample.
        batch_size: At a time, on each process.
        seed: Of the samples, the same at every evaluation.
    """

    def __init__(
        self, data: ImageDataset, encoder: RepresentationEncoder, num_samples: int = 500, batch_size: int = 250, seed: int = 0
    ) -> None:
        super().__init__(data, metrics=(), num_samples=num_samples, batch_size=batch_size, seed=seed)
        self.encoder = encoder

    def check_pipeline(self, pipeline: ImagePipeline) -> None:
        """Refuse a pipeline that makes no representations, or those of another encoder.

        Raises:
            UserError: Naming what scores it, or both encoders.
        """
        super().check_pipeline(pipeline)
        learnt = pipeline.config.representation_encoder
        if learnt is not None and dict(learnt) != self.encoder.config:
            raise UserError(
                f"evaluation: the pipeline learnt {describe_encoder(learnt)}, and the evaluation's encoder gives "
                f"{describe_encoder(self.encoder.config)}; give the same"
            )

    def prepare(self, accelerator: Accelerator, progress: bool = False) -> None:
        """Move the encoder to the accelerator."""
        self.encoder.to(accelerator.device)

    def prepare_or_skip(self, accelerator: Accelerator, training: ImageDataset) -> None:
        """As ``prepare``: the encoder is there."""
        self.prepare(accelerator)

    @torch.no_grad()
    def evaluate(
        self, pipeline: ImagePipeline, accelerator: Accelerator, options: Mapping[str, Any], progress: bool = False
    ) -> Evaluation:
        """Sample representations and compare them.

        Args:
            pipeline: A ``RepresentationPipeline``, on the accelerator's device.
            accelerator: Its processes share the samples; every process gets the result.
            options: Of sampling, over the pipeline's defaults.
            progress: Not used.

        Raises:
            UserError: As ``check_pipeline``.
        """
        self.check_pipeline(pipeline)
        sampled = cast("RepresentationPipeline", pipeline)
        sampled.set_progress_bar_config(disable=True)
        mine = balanced_requests(self.num_samples, sampled.num_classes)[accelerator.process_index :: accelerator.num_processes]
        parts: list[Tensor] = []
        for start in range(0, len(mine), self.batch_size):
            requests = mine[start : start + self.batch_size]
            labels = [request.class_label for request in requests]
            generators = sample_generators(self.seed, labels, [request.index for request in requests])
            parts.append(sampled(labels, generator=generators, **options).cpu())
        if accelerator.num_processes > 1:
            parts = gather_object(parts)
        distance = frechet_distance_from_features(torch.cat(parts), self.encode(self.data, accelerator.device))
        return Evaluation({"representation_distance": distance}, self.protocol(sampled))

    def encode(self, data: ImageDataset, device: torch.device) -> Tensor:
        """Representations (N, D) of all images."""
        batches = torch.arange(len(data)).split(self.batch_size)
        return torch.cat([self.encoder(images_to_float(data.images(batch)).to(device)).cpu() for batch in batches])

    def protocol(self, pipeline: RepresentationPipeline) -> dict[str, Any]:
        """What is needed to repeat a score."""
        return {
            "encoder": describe_encoder(self.encoder.config),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "reference": f"{type(self.data).__name__} {self.data.fingerprint}",
            "options": pipeline.merge_options().to_dict(),
        }

    def score_real(self, data: ImageDataset, accelerator: Accelerator) -> Evaluation:
        """The distance of other real images' representations: what perfect samples would score.

        Args:
            data: Training images.
            accelerator: Its device encodes them.
        """
        distance = frechet_distance_from_features(
            self.encode(data, accelerator.device), self.encode(self.data, accelerator.device)
        )
        return Evaluation({"representation_distance": distance}, {})
