"""Lets ``fid-score`` score a saved pipeline: it samples while it scores, without writing images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import torch

from generative.core.checkpoint import fingerprint_folder
from generative.core.generation import balanced_requests, generate_images
from metrics.sources import ImageBatch, ImageSource
from metrics.sources.base import check_range, checked_class_names, fingerprint
from pipelines import find_pipeline_folder, load_pipeline

DEFAULT_NUM_SAMPLES = 50_000
"""Images that published FIDs are computed from."""


class PipelineSource(ImageSource):
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

    is_costly = True

    def __init__(self, folder: Path, num_samples: int, seed: int, device: str, precision: str = "float32") -> None:
        if precision == "float16" and torch.device(device).type == "cpu":
            raise ValueError("sample precision float16 needs a GPU; on the CPU give bfloat16 or float32")
        super().__init__(find_pipeline_folder(folder))
        self.pipeline = load_pipeline(folder).to(device)
        self.requests = balanced_requests(num_samples, self.pipeline.num_classes)
        self.has_labels = self.has_class_numbers = self.pipeline.num_classes > 1
        if self.has_labels:
            self.labels = [str(request.class_label) for request in self.requests]
            names = self.pipeline.class_names
            self.class_names = None if names is None else checked_class_names(names, self.labels, self.path)
        self.seed = seed
        # A score is printed with all that it depends on: which weights, under which options, from which seed.
        self.pipeline.check_options()
        self.options = self.pipeline.merge_options().to_dict()
        self.fingerprint = fingerprint_folder(self.path)
        self.device = torch.device(device).type
        self.precision = precision
        self.kind = f"samples of {type(self.pipeline).__name__} {self.fingerprint}, seed {seed}, "
        self.kind += ", ".join(f"{name} {value}" for name, value in self.options.items()) or "no options"
        if precision != "float32":
            self.kind += f", {precision}"

    def __len__(self) -> int:
        return len(self.requests)

    def identity(self) -> str:
        """Fingerprint of all that decides the images: pipeline, seed, options, number, precision, kind of device, software."""
        software = [_sources_sha256(), *(f"{name} {version(name)}" for name in ("torch", "diffusers"))]
        made_from = ["pipeline", self.fingerprint, self.seed, *sorted(self.options.items()), len(self), self.device]
        made_from += [] if self.precision == "float32" else [self.precision]
        return fingerprint([*made_from, *software])

    def batches(self, batch_size: int, num_workers: int = 1, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        """Sample the images of places ``start`` to ``stop``, uint8 (3, H, W); ``num_workers`` has no use here.

        Every image has a random stream of its own, so any range gives the same images as the whole.
        """
        end = check_range(len(self), batch_size, num_workers, start, stop)
        requests = self.requests[start:end]
        autocast = (
            nullcontext if self.precision == "float32" else partial(torch.autocast, self.device, getattr(torch, self.precision))
        )
        for positions, images in generate_images(
            self.pipeline, requests, seed=self.seed, batch_size=batch_size, options={}, autocast=autocast
        ):
            labels = None if self.labels is None else [self.labels[start + position] for position in positions]
            yield ImageBatch([start + position for position in positions], list(images.cpu()), labels)


@cache
def _sources_sha256() -> str:
    """sha256 of the source files that sample: an edit of a sampler is another set of images."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(path for package in ("generative", "pipelines") for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def open_pipeline(
    path: Path, num_samples: int | None, seed: int | None, batch_size: int, device: str, precision: str = "float32"
) -> PipelineSource:
    """Provider of the entry-point group ``triptych.image_sources``; see ``metrics.sources``."""
    return PipelineSource(path, num_samples or DEFAULT_NUM_SAMPLES, seed or 0, device, precision)
