"""How well a run uses its machine: share of the peak, of the time spent waiting for data, and memory at most."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from generative.core.devices import known_device
from generative.core.objective import Objective
from generative.core.runtime import Precision
from generative.core.types import Batch
from generative.data.base import ImageDataset

COUNTING_SECONDS = 1.0
"""What counting a step's operations may take, once at the start of a run; MFU is left out where it would take longer."""


class Gauges:
    """Gauges of one process.

    Args:
        device: Where it computes.
        num_processes: Processes that the images of a step are divided over.
        peak: Operations per second that the device can do; None where that is not known.
        step_flops: Operations of a training step per image, nothing computed twice counted twice; None where not counted.
    """

    def __init__(
        self, device: torch.device, num_processes: int = 1, peak: float | None = None, step_flops: float | None = None
    ) -> None:
        self.device = device
        self.num_processes = num_processes
        self.peak = peak
        self.step_flops = step_flops
        self.waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside is time without data."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    def read(self, images_per_second: float, seconds: float) -> dict[str, float]:
        """Read the gauges, and begin anew.

        Args:
            images_per_second: Since they were read last, over all processes.
            seconds: Of training, since then.

        Returns:
            ``system/data_wait`` in [0, 1], ``system/memory_peak_gb`` since the process began, and ``system/mfu`` in [0, 1] where
            the device's peak is known: model FLOPs utilisation (arXiv 2204.02311, appendix B).
        """
        values = {"system/data_wait": min(1.0, self.waited / seconds), "system/memory_peak_gb": memory_peak(self.device) / 1e9}
        self.waited = 0.0
        if self.peak and self.step_flops:
            values["system/mfu"] = images_per_second * self.step_flops / (self.peak * self.num_processes)
        return values


def build_gauges(objective: Objective, dataset: ImageDataset, accelerator: Accelerator, precision: Precision) -> Gauges:
    """Gauges of this process; counts the operations of a step if they are of use.

    Args:
        objective: As it was built: neither compiled, nor sharded, nor with gradient checkpointing.
        dataset: Training images, whose batches' shapes are taken.
        accelerator: Device and processes.
        precision: Of the training.
    """
    device = known_device(accelerator.device)
    gauges = Gauges(accelerator.device, accelerator.num_processes, None if device is None else device.peak(precision))
    if device is not None:
        from generative.core.footprint import count_step_flops

        gauges.step_flops = count_step_flops(objective, lambda size: blank_batch(size, dataset, objective), COUNTING_SECONDS)
        if gauges.step_flops is None and accelerator.is_main_process:
            print("note: the operations of a step could not be counted quickly: MFU is not logged", file=sys.stderr)
    return gauges


def blank_batch(size: int, dataset: ImageDataset, objective: Objective) -> Batch:
    """A batch without content as a data set would give it to an objective."""
    batch = dataset.blank_batch(size, objective.image_size, vars(dataset))
    brings, inner = set(dataset.brings), getattr(dataset, "source", None)
    while inner is not None:
        brings |= set(inner.brings)
        inner = getattr(inner, "source", None)
    return objective.as_cached(batch, brings, torch.Generator().manual_seed(0))


def memory_peak(device: torch.device) -> float:
    """Bytes that this process had at most so far: of the GPU's tensors, or else of the machine's memory; 0 if not known."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)
