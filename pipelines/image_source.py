"""Lets ``fid-score`` score a saved pipeline: it samples while it scores, without writing images."""

from __future__ import annotations

from pathlib import Path

import torch

from generative.core.checkpoint import fingerprint_folder
from generative.core.generation import balanced_requests
from generative.core.pipeline_samples import FULL_PRECISION, PipelineSamples, precision_context, software
from metrics.sources.base import checked_class_names, fingerprint
from pipelines import find_pipeline_folder, load_pipeline

DEFAULT_NUM_SAMPLES = 50_000
"""Images that published FIDs are computed from."""


class PipelineSource(PipelineSamples):
    """Samples of a pipeline, balanced over its classes, with its own sampling defaults.

    Labels are the requested classes, as numbers, with the pipeline's names for them; a pipeline of one class has none.

    Args:
        folder: A run or pipeline folder.
        num_samples: Images to sample.
        seed: Seed of the samples, the same images as ``generative sample --seed`` makes.
        device: Where the pipeline runs.
        precision: Autocast of its networks: ``float32`` (none), ``bfloat16`` or ``float16``.

    Raises:
        ValueError: If float16 is asked for on a CPU, where autocast has no use for it.
    """

    def __init__(self, folder: Path, num_samples: int, seed: int, device: str, precision: str = FULL_PRECISION) -> None:
        self.device = torch.device(device).type
        autocast = precision_context(precision, self.device)
        path, pipeline = find_pipeline_folder(folder), load_pipeline(folder).to(device)
        super().__init__(path, pipeline, balanced_requests(num_samples, pipeline.num_classes), seed, {}, autocast)
        self.has_labels = self.has_class_numbers = pipeline.num_classes > 1
        if not self.has_labels:
            self.labels = None
        elif pipeline.class_names is not None and self.labels is not None:
            self.class_names = checked_class_names(pipeline.class_names, self.labels, self.path)
        # A score is printed with all that it depends on: which weights, under which options, from which seed.
        self.pipeline.check_options()
        self.chosen = self.pipeline.merge_options().to_dict()
        self.fingerprint = fingerprint_folder(self.path)
        self.precision = precision
        self.kind = f"samples of {type(self.pipeline).__name__} {self.fingerprint}, seed {seed}, "
        self.kind += ", ".join(f"{name} {value}" for name, value in self.chosen.items()) or "no options"
        if precision != FULL_PRECISION:
            self.kind += f", {precision}"

    def identity(self) -> str:
        """Fingerprint of all that decides the images: pipeline, seed, options, number, precision, kind of device, software."""
        made_from = ["pipeline", self.fingerprint, self.seed, *sorted(self.chosen.items()), len(self), self.device]
        made_from += [] if self.precision == FULL_PRECISION else [self.precision]
        return fingerprint([*made_from, *software()])


def open_pipeline(
    path: Path, num_samples: int | None, seed: int | None, batch_size: int, device: str, precision: str = FULL_PRECISION
) -> PipelineSource:
    """Provider of the entry-point group ``triptych.image_sources``; see ``metrics.sources``."""
    return PipelineSource(path, num_samples or DEFAULT_NUM_SAMPLES, seed or 0, device, precision)
