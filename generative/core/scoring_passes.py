"""Passes of images through the networks that score, shared by the processes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from generative.core.errors import UserError
from generative.data.base import ImageDataset

if TYPE_CHECKING:
    from generative.core.pipeline_samples import PipelineSamples
    from metrics.distributed import Processes
    from metrics.scoring.extraction import Extraction
    from metrics.scoring.image_sets import ImageSet
    from metrics.suite import MetricSuite


def gather_local(local: Any) -> list[Any]:
    """Every process's object, by rank."""
    everyone: list[Any] = gather_object([local])
    return everyone


def feed(
    suites: Sequence[MetricSuite], data: ImageDataset, indices: Tensor, batch_size: int, accelerator: Accelerator, real: bool
) -> None:
    """Give every process the features of some images of a data set, of which it computes its share; a fake side begins anew.

    Args:
        suites: What takes them.
        data: The data set.
        indices: (N,) places in it.
        batch_size: Images decoded at a time.
        accelerator: Its processes share the work.
        real: Whether they are the reference.
    """
    for suite in suites if not real else ():
        suite.reset_fake()
    places = torch.arange(accelerator.process_index, len(indices), accelerator.num_processes)
    for part in places.split(batch_size) if len(places) else ():
        images, labels = data.images(indices[part]), data.labels[indices[part]]
        for suite in suites:
            suite.update(images, real=real, indices=part, labels=labels)
    for suite in suites if accelerator.num_processes > 1 else ():
        suite.gather_side(real, gather_local)


def processes_of(accelerator: Accelerator) -> Processes:
    """The accelerator's processes, as ``metrics`` has them."""
    from metrics.distributed import Processes

    return Processes(accelerator.process_index, accelerator.num_processes, accelerator.local_process_index)


def run_samples(extraction: Extraction, suites: Sequence[MetricSuite], samples: PipelineSamples) -> None:
    """Sample, and give the features to the metrics, on every process.

    Raises:
        SamplingStopped: On every process, if one was asked to stop.
        UserError: If images cannot be sampled or scored, with the words of the first process that failed.
    """
    from generative.core.pipeline_samples import SamplingStopped
    from metrics.distributed import SharedError
    from metrics.scoring.extraction import Consumer

    for suite in suites:
        suite.reset_fake()
    failure: ValueError | None = None
    try:
        extraction.run([Consumer(suite, suite.metrics) for suite in suites], samples, real=False)
    except ValueError as error:
        failure = error
    own = failure.__cause__ if isinstance(failure, SharedError) else failure
    stopped = extraction.processes.gather(isinstance(own, SamplingStopped))
    if any(stopped):
        raise SamplingStopped("the evaluation was asked to stop") from failure
    if failure is not None:
        raise failure if isinstance(failure, UserError) else UserError(f"evaluation: {failure}") from failure


def load_reference(statistics: ImageSet, suites: Sequence[MetricSuite], batch_size: int, accelerator: Accelerator) -> None:
    """Take the real side from a statistics file, and from its images what they serve, as in ADM's files."""
    from metrics.files.feature_cache import FeatureCache, default_cache_root
    from metrics.scoring.extraction import Extraction
    from metrics.scoring.prepare import consumers_of

    consumers = consumers_of(suites, statistics, real=True)
    if consumers and statistics.images is not None:
        cache = FeatureCache(default_cache_root())
        extraction = Extraction(batch_size, num_workers=1, processes=processes_of(accelerator), cache=cache, progress=False)
        extraction.run(consumers, statistics.images, real=True)
