"""One contender of ``gan_training.py`` in a process of its own, which waits while the others run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

_KIBIBYTES_PER_MEBIBYTE = 1024


@dataclass(frozen=True)
class Contender:
    """What a process runs.

    Attributes:
        name: Of its row.
        is_ours: Ours or the rival.
        precision: ``no`` for float32, or ``bf16``.
        channels_last: Memory format of weights and images.
        compile: torch.compile of the networks.
        keep_memory: glibc keeps what torch frees (``metrics.allocator``).
    """

    name: str
    is_ours: bool
    precision: str = "no"
    channels_last: bool = False
    compile: bool = False
    keep_memory: bool = False


@dataclass(frozen=True)
class Task:
    """What all of them are to do.

    Attributes:
        model: ``sagan`` or ``biggan``.
        resolution: Side of the images, in pixels.
        channels: Channel multiplier.
        batch_size: Images of a step.
        threads: Of each process.
        checkout: Of the rival.
        folder: Holds ``state.pt``, the weights that all start from.
    """

    model: str
    resolution: int
    channels: int
    batch_size: int
    threads: int
    checkout: Path
    folder: Path


def make_batch(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Real images (B, 3, H, W) in [-1, 1] and labels (B,): noise, as nothing here depends on what they show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(task.batch_size, 3, task.resolution, task.resolution, generator=generator).tanh()
    return images, torch.randint(10, (task.batch_size,), generator=generator)


def build(contender: Contender, task: Task) -> Any:
    """Make a ``RivalGAN`` or ``OurGAN``."""
    state = torch.load(task.folder / "state.pt", weights_only=True)
    images, labels = make_batch(task)
    if contender.is_ours:
        from our_gan import OurGAN

        options = (contender.precision, contender.channels_last, contender.compile, task.folder / "run")
        return OurGAN(task.model, task.resolution, task.channels, images, labels, state, *options)
    from rival_gan import RivalGAN

    gan = RivalGAN(task.checkout, task.model, task.resolution, task.channels, images, labels, contender.channels_last)
    gan.load(state)
    return gan


def peak_memory() -> float:
    """Highest resident memory of this process so far, in MiB (Linux; getrusage would count the parent's before the exec)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / _KIBIBYTES_PER_MEBIBYTE


def count_flops(call: Any) -> float:
    """Floating-point operations of convolutions and matrix products in a call, backward included, in 1e9."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def measure_peak(precision: str) -> float:
    """1e9 operations per second of the best convolution or matrix product found, in one precision."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.randn(2048, 2048).to(dtype)
    sample = torch.randn(32, 256, 16, 16).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    calls = (
        (2 * 2048**3, lambda: matrix @ matrix),
        (2 * weight.numel() * 32 * 16**2, lambda: torch.conv2d(sample, weight, padding=1)),
    )
    best = 0.0
    for operations, call in calls:
        for _ in range(12):
            start = time.perf_counter()
            call()
            best = max(best, operations / (time.perf_counter() - start) / 1e9)
    return best


def serve(contender: Contender, task: Task, pipe: Connection) -> None:
    """Run commands until the pipe closes; answer each with a number."""
    torch.set_num_threads(task.threads)
    warnings.simplefilter("ignore")
    if contender.keep_memory:
        from metrics.allocator import keep_freed_memory

        keep_freed_memory()
    torch.manual_seed(0)
    gan = build(contender, task)
    with contextlib.suppress(EOFError):
        while True:
            command = pipe.recv()
            if command in ("step", "sample"):
                start = time.perf_counter()
                getattr(gan, command)()
                pipe.send(time.perf_counter() - start)
            elif command == "memory":
                pipe.send(peak_memory())
            elif command == "peak":
                pipe.send(measure_peak(contender.precision))
            else:
                pipe.send(count_flops(getattr(gan, command.removeprefix("flops of "))))


class Worker:
    """A contender's process, as seen from outside.

    Args:
        contender: What it runs.
        task: The sizes.
    """

    def __init__(self, contender: Contender, task: Task) -> None:
        self.contender = contender
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        os.environ["OMP_NUM_THREADS"] = str(task.threads)
        self.process = context.Process(target=serve, args=(contender, task, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, command: str) -> float:
        """Run a command in it and wait for the number.

        Raises:
            SystemExit: If the process died.
        """
        try:
            self.pipe.send(command)
            return float(self.pipe.recv())
        except (EOFError, BrokenPipeError):
            raise SystemExit(f"{self.contender.name} failed, see above") from None

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(10)
