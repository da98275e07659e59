"""Many images from one pipeline: who samples which, in batches and over processes, with the same result however it is split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from generative.core.logging import progress_interval
from generative.core.seeding import sample_generators

if TYPE_CHECKING:
    from pipelines.base import ImageGenerationPipeline


@dataclass(frozen=True)
class SampleRequest:
    """One image to sample.

    Attributes:
        class_label: Its class.
        index: Its number within the class; with the run's seed it fixes the image.
    """

    class_label: int
    index: int


def balanced_requests(num_samples: int, num_classes: int) -> list[SampleRequest]:
    """The same number of images of every class, in class order; a remainder goes to the first classes."""
    each, extra = divmod(num_samples, num_classes)
    return [SampleRequest(label, index) for label in range(num_classes) for index in range(each + (label < extra))]


def generate_images(
    pipeline: ImageGenerationPipeline,
    requests: Sequence[SampleRequest],
    *,
    seed: int,
    batch_size: int,
    options: Mapping[str, Any],
    process_index: int = 0,
    num_processes: int = 1,
    progress: bool = False,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[tuple[list[int], Tensor]]:
    """Sample images batch by batch; this process takes every ``num_processes``-th request.

    Args:
        pipeline: Any pipeline of this project.
        requests: All images of the run, the same list on every process.
        seed: Seed of the run.
        batch_size: Images per call of the pipeline on this process.
        options: Options of the pipeline's call (guidance scale and so on), over those that it was saved with.
        process_index: This process's number.
        num_processes: How many processes share the requests.
        progress: Show a progress bar.
        autocast: Makes the context that the pipeline is called in: ``accelerator.autocast`` for half precision.

    Yields:
        Positions in ``requests``, and their images (B, 3, H, W) uint8.
    """
    mine = list(range(process_index, len(requests), num_processes))
    pipeline.set_progress_bar_config(disable=True)
    with tqdm(
        total=len(mine), desc="sampling", unit="img", disable=not progress, leave=False, mininterval=progress_interval()
    ) as bar:
        for start in range(0, len(mine), batch_size):
            positions = mine[start : start + batch_size]
            labels = [requests[p].class_label for p in positions]
            generators = sample_generators(seed, labels, [requests[p].index for p in positions])
            with autocast():
                output = pipeline(class_labels=labels, generator=generators, output_type="uint8", **options)
            bar.update(len(positions))
            yield positions, output.images


def gather_in_rounds(batches: Iterator[tuple[list[int], Tensor]], num_processes: int) -> Iterator[tuple[list[int], Tensor]]:
    """Bring the batches of all processes to each of them, one batch of every process at a time: no more are held.

    Args:
        batches: Of this process, from ``generate_images`` or ``generate_best_images``.
        num_processes: How many take part; all of them must read to the end, whether or not they want the images.

    Yields:
        Positions and their images, on the CPU.
    """
    while True:
        part = next(batches, None)
        parts: list[Any] = [None if part is None else (part[0], part[1].cpu())]
        if num_processes > 1:
            parts = gather_object(parts)
        if all(part is None for part in parts):
            return
        yield from (part for part in parts if part is not None)
