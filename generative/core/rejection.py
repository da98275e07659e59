"""Rejection sampling by classifier score: draw more images than are wanted and keep those that look most like their class.

Published figures "with rejection" (arXiv 1906.00446, 2012.09841, 2404.02905) are made so. It works on images, so any pipeline can
be sampled this way. Whoever scores the kept images with the network that chose them measures the choice, not the generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.generation import SampleRequest, generate_images

if TYPE_CHECKING:
    from pipelines.base import ImageGenerationPipeline

CAVEAT = (
    "images are chosen by {name}: a FID, an Inception Score or an accuracy on that same network would flatter the generator, "
    "so score them with another"
)

Scores = list[tuple[int, float]]
"""Position of a candidate in its block, and its score."""


class ClassifierJudge:
    """A classifier of the metrics package that says how likely an image shows the class it was asked for.

    Args:
        extractor: Name of a feature extractor that is a classifier (``resnet9``, ``resnet50``), or ``file.py:Class``.
        weights: Its weight file; None takes the packaged one, or a verified download.
        num_classes: Classes of the pipeline; the classifier must have as many, in the same order.
        device: Where it runs.

    Raises:
        UserError: If there is no such extractor, its weights are missing or damaged, it is no classifier, or its classes are not
            as many as the pipeline's.
    """

    def __init__(self, extractor: str, weights: Path | None, num_classes: int, device: torch.device | str = "cpu") -> None:
        from metrics.extraction import Extraction
        from metrics.extractors import build_extractor

        try:
            network = build_extractor(extractor, weights=weights, device=device)
        except (ValueError, FileNotFoundError) as error:
            # The metrics package stands alone and has no error of its own for wrong input.
            raise UserError(f"rejection: {error}") from error
        if network.class_logits is None:
            raise UserError(
                f"rejection needs a classifier, and extractor '{extractor}' has no class logits; use resnet9 or resnet50"
            )
        found = network.feature_dims[network.class_logits]
        if found != num_classes:
            raise UserError(
                f"the classifier '{extractor}' has {found} classes but the pipeline has {num_classes}; train one on the "
                "pipeline's own classes with fid-score --train-extractor"
            )
        self._extraction = Extraction(network)
        self._feature = network.class_logits
        self.name = network.name

    @property
    def description(self) -> dict[str, Any]:
        """What decides its scores, as the protocol of a metric says it: extractor, sha256 of its weights, size, resizer."""
        return self._extraction.protocol(self._feature)

    def log_probabilities(self, images: Tensor, class_labels: Sequence[int]) -> Tensor:
        """Log-probability of each image's label.

        Args:
            images: (B, 3, H, W) uint8.
            class_labels: B labels in [0, num_classes).

        Returns:
            (B,) float32 on the CPU, at most 0.
        """
        logits = self._extraction(images, [self._feature])[self._feature]  # (B, classes)
        return logits.log_softmax(dim=1)[torch.arange(len(logits)), torch.tensor(class_labels)]


def num_candidates(num_images: int, keep: float) -> int:
    """How many images to draw for each class so that ``num_images`` are the share ``keep`` of them, rounded up.

    Raises:
        UserError: If ``keep`` is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise UserError(f"the share of images that rejection keeps must be in (0, 1], got {keep}")
    # 1e-9: 3 / 0.3 is a little over 10 in floating point.
    return max(num_images, math.ceil(num_images / keep - 1e-9))


def choose_best(scores: Sequence[float], num_images: int) -> list[int]:
    """Indices of the ``num_images`` highest scores, in ascending order of index; the earlier of equal ones is taken."""
    best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:num_images]
    return sorted(best)


def generate_best_images(
    pipeline: ImageGenerationPipeline,
    requests: Sequence[SampleRequest],
    judge: ClassifierJudge,
    *,
    num_images_per_class: int,
    keep: float,
    seed: int,
    batch_size: int,
    options: Mapping[str, Any],
    process_index: int = 0,
    num_processes: int = 1,
    gather: Callable[[Scores], Scores] = list,
    progress: bool = False,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[tuple[list[int], Tensor]]:
    """Sample candidates, and yield the best of each class under the names of the requests.

    The candidates of a class are its images 0, 1, ... of plain sampling with the same seed. The j-th one kept, in their order, is
    the class's image j. So the result is a function of seed, count, share and classifier, not of batches, processes or other
    classes.
    Images are held for as few classes at a time as fill a batch on every process.

    Args:
        pipeline: Any pipeline of this project.
        requests: The images wanted, the same list on every process; each index is below ``num_images_per_class``.
        judge: The classifier that scores the candidates.
        num_images_per_class: Images kept of each class.
        keep: Share of the candidates that is kept, in (0, 1].
        seed: Seed of the run.
        batch_size: Images per call of the pipeline on this process.
        options: Keyword arguments of the pipeline's call.
        process_index: This process's number.
        num_processes: How many processes share the candidates.
        gather: Joins the lists of all processes, the same result on each; called by all of them equally often.
        progress: Show progress bars.
        autocast: As in ``generate_images``; the classifier itself stays in float32.

    Yields:
        Positions in ``requests``, and their images (B, 3, H, W) uint8, those that this process has sampled: perhaps none, but
        on every process equally often.
    """
    pool = num_candidates(num_images_per_class, keep)
    wanted = {(request.class_label, request.index): position for position, request in enumerate(requests)}
    labels = sorted({request.class_label for request in requests})
    block_size = max(1, batch_size * num_processes // pool)
    for start in range(0, len(labels), block_size):
        block = labels[start : start + block_size]
        candidates = [SampleRequest(label, index) for label in block for index in range(pool)]
        images: dict[int, Tensor] = {}
        scores: Scores = []
        for positions, batch in generate_images(
            pipeline,
            candidates,
            seed=seed,
            batch_size=batch_size,
            options=options,
            process_index=process_index,
            num_processes=num_processes,
            progress=progress,
            autocast=autocast,
        ):
            values = judge.log_probabilities(batch, [candidates[p].class_label for p in positions])
            scores += zip(positions, values.tolist(), strict=True)
            images.update(zip(positions, batch.cpu(), strict=True))
        by_position = dict(gather(scores))
        kept: dict[int, Tensor] = {}
        for number, label in enumerate(block):
            first = number * pool
            best = choose_best([by_position[first + index] for index in range(pool)], num_images_per_class)
            for rank, index in enumerate(best):
                position = wanted.get((label, rank))
                if position is not None and first + index in images:
                    kept[position] = images[first + index]
        yield list(kept), torch.stack(list(kept.values())) if kept else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
