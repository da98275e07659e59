"""Samples of a pipeline as a source of images to score: ``metrics`` runs, keeps and shares them as it does images of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from generative.core.checkpoint import fingerprint_network
from generative.core.errors import UserError
from generative.core.generation import SampleRequest, generate_images
from metrics.sources import ImageBatch, ImageSource
from metrics.sources.base import check_range, fingerprint

if TYPE_CHECKING:
    from pipelines.base import ImageGenerationPipeline, ImagePipeline

FULL_PRECISION = "float32"
"""Precision in which nothing is cast."""


class SamplingStopped(ValueError):
    """The run was asked to stop while it sampled; what is sampled is kept."""


class PipelineSamples(ImageSource):
    """Samples of a pipeline, one for each request; every image has a random stream of its own, whatever it is sampled with.

    Args:
        path: What to call it in messages.
        pipeline: The pipeline, where it is to run.
        requests: Class and number of every image.
        seed: Seed of the samples.
        options: Options of the pipeline's call, over those that it was saved with.
        autocast: Makes the context that it is called in.
        identity: Fingerprint of all that decides the images; it may be empty where nothing is kept.
        should_stop: Asked before every batch.
    """

    kind = "samples"
    is_costly: ClassVar[bool] = True

    def __init__(
        self,
        path: Path,
        pipeline: ImageGenerationPipeline,
        requests: Sequence[SampleRequest],
        seed: int,
        options: Mapping[str, Any],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        identity: str = "",
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(path)
        self.pipeline = pipeline
        self.requests = list(requests)
        self.seed = seed
        self.options = dict(options)
        self.autocast = autocast
        self.should_stop = should_stop
        self.has_labels = self.has_class_numbers = True
        self.labels: list[str] | None = [str(request.class_label) for request in self.requests]
        self._identity = identity

    def __len__(self) -> int:
        return len(self.requests)

    def identity(self) -> str:
        """Fingerprint of all that decides the images."""
        return self._identity

    def batches(self, batch_size: int, num_workers: int = 1, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        """Sample the images of places ``start`` to ``stop``, uint8 (3, H, W); ``num_workers`` has no use here.

        Raises:
            SamplingStopped: Once the run is asked to stop.
        """
        end = check_range(len(self), batch_size, num_workers, start, stop)
        sampled = generate_images(
            self.pipeline,
            self.requests[start:end],
            seed=self.seed,
            batch_size=batch_size,
            options=self.options,
            autocast=self.autocast,
        )
        place = start
        while place < end:
            if self.should_stop():
                raise SamplingStopped("sampling was asked to stop")
            positions, images = next(sampled)
            place += len(positions)
            labels = None if self.labels is None else [self.labels[start + position] for position in positions]
            yield ImageBatch([start + position for position in positions], list(images.cpu()), labels)


def precision_context(precision: str, device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What makes the context that networks run in.

    Args:
        precision: ``float32`` (no cast), ``bfloat16`` or ``float16``.
        device: Kind of device, ``cpu`` or ``cuda``.

    Raises:
        UserError: If float16 is asked for on a CPU, where autocast has no use for it.
    """
    if precision == FULL_PRECISION:
        return nullcontext
    if precision == "float16" and device == "cpu":
        raise UserError("sample precision float16 needs a GPU; on the CPU give bfloat16 or float32")
    return partial(torch.autocast, device, getattr(torch, precision))


def software() -> list[str]:
    """What software samples, as texts for a fingerprint: our source files, and the libraries that compute."""
    return [_sources_sha256(), *(f"{name} {version(name)}" for name in ("torch", "diffusers"))]


@cache
def _sources_sha256() -> str:
    """sha256 of the source files that sample: an edit of a sampler is another set of images."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for path in sorted(path for package in ("generative", "pipelines") for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def fingerprint_pipeline(pipeline: ImagePipeline) -> str:
    """sha256 of a pipeline's class, config, and the class, config and weights of its parts, 64 hexadecimal digits."""
    parts: list[object] = [type(pipeline).__name__, _config(pipeline)]
    for name, part in sorted(pipeline.components.items()):
        own = fingerprint_network(part) if isinstance(part, nn.Module) else _config(part)
        parts += [name, type(part).__name__, own]
    return fingerprint(parts)


def _config(part: Any) -> str:
    config = dict(getattr(part, "config", None) or {})
    return json.dumps({key: value for key, value in config.items() if not key.startswith("_")}, sort_keys=True, default=str)
