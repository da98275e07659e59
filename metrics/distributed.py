"""Several processes that score one image set together: ``torchrun --nproc-per-node 8 -m metrics.cli A B``.

Scores are those of one process to a relative 5e-7: batches are cut elsewhere, so a float32 network rounds differently, and
float64 sums are merged in another order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

#: Processes meet only when each has done its share, and the slowest may sample for hours after the fastest.
_TIMEOUT = timedelta(hours=24)


class SharedError(ValueError):
    """An error that every process of the run has been told of: the main one says it."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run and this one's place among them.

    Args:
        rank: This process, from 0.
        count: All of them.
        local_rank: This process among those of its machine; it names the GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """Return this process's part of ``total`` items: consecutive, none twice, none left out."""
        return range(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def gather(self, local: Any) -> list[Any]:
        """Return every process's object, by rank, on all of them."""
        if self.count == 1:
            return [local]
        everyone: list[Any] = [None] * self.count
        dist.all_gather_object(everyone, local)
        return everyone

    def agree(self, error: Exception | None) -> None:
        """Raise on all processes if one of them failed, so that none waits for it forever.

        Raises:
            SharedError: With the message of the first process that failed; alone, a process raises its own error.
        """
        if self.count == 1:
            if error is not None:
                raise error
            return
        failed = [message for message in self.gather(None if error is None else describe_error(error)) if message is not None]
        if failed:
            raise SharedError(failed[0]) from error


def describe_error(error: Exception) -> str:
    """Return an error as one sentence; texts of the operating system carry "[Errno 28]", ours are sentences already."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the processes that torchrun or ``accelerate launch`` started; without them this one is alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Processes()
        return
    # Gathered states lie in main memory, so gloo serves machines with GPUs as well.
    try:
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR', 'MASTER_ADDR')}:{os.environ.get('MASTER_PORT', 'MASTER_PORT')}"
        raise ConnectionError(
            f"the {count} processes did not meet at {place} ({str(error).split('. ')[0]}); is the port taken, or were fewer "
            "started?"
        ) from error
    try:
        yield Processes(dist.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()


def choose_device(name: str | None, processes: Processes) -> str:
    """Return the device to run on: the one named, else this process's GPU, else the CPU.

    Raises:
        ValueError: If the named device is not available.
    """
    if name is None:
        return f"cuda:{processes.local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # "meta" makes tensors that hold nothing.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here: leave --device out or name another.") from error
    return name
