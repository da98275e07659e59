"""Lets ``fid-score`` score a saved pipeline: it samples while it scores, without writing images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from generative.core.checkpoint import fingerprint_folder
from generative.core.generation import balanced_requests, generate_images
from metrics.sources import ImageSource
from pipelines import find_pipeline_folder, load_pipeline

DEFAULT_NUM_SAMPLES = 50_000
"""Images that published FIDs are computed from."""


class PipelineSource(ImageSource):
    """Samples of a pipeline, balanced over its classes, with its own sampling defaults.

    Args:
        folder: A run or pipeline folder.
        num_samples: Images to sample.
        seed: Seed of the samples, the same images as ``generative sample --seed`` makes.
        device: Where the pipeline runs.
    """

    kind = "saved pipeline"

    def __init__(self, folder: Path, num_samples: int, seed: int, device: str) -> None:
        self.path = find_pipeline_folder(folder)
        self.pipeline = load_pipeline(folder).to(device)
        self.requests = balanced_requests(num_samples, self.pipeline.num_classes)
        self.seed = seed
        # A score is printed with all that it depends on: which weights, under which options, from which seed.
        self.options = self.pipeline.sampling_defaults
        self.kind = f"samples of {type(self.pipeline).__name__} {fingerprint_folder(self.path)}, seed {seed}, "
        self.kind += ", ".join(f"{name} {value}" for name, value in self.options.items()) or "no options"

    def __len__(self) -> int:
        return len(self.requests)

    def batches(self, batch_size: int, num_workers: int = 1) -> Iterator[list[Tensor]]:
        """Yield lists of at most ``batch_size`` images, uint8 (3, H, W); ``num_workers`` has no use here."""
        for _, images in generate_images(
            self.pipeline, self.requests, seed=self.seed, batch_size=batch_size, options=self.options
        ):
            yield list(images.cpu())


def open_pipeline(path: Path, num_samples: int | None, seed: int | None, batch_size: int, device: str) -> PipelineSource:
    """Provider of the entry-point group ``triptych.image_sources``; see ``metrics.sources``."""
    return PipelineSource(path, num_samples or DEFAULT_NUM_SAMPLES, seed or 0, device)
