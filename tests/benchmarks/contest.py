"""Contenders in processes of their own that take turns, and the table of what they did; for the scripts beside it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

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


class Task(Protocol):
    """What all of them are to do; a picklable dataclass in a module of its own, as each process imports it anew.

    Attributes:
        batch_size: Images of a step.
        threads: Of each process.
    """

    batch_size: int
    threads: int

    def build(self, contender: Contender) -> Any:
        """Make what runs: an object with ``step()`` and ``sample()``."""


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


def clock_of(threads: int) -> Callable[[], float]:
    """Processor time for one thread, which other programs on the machine do not stretch; wall clock for several."""
    return time.process_time if threads == 1 else time.perf_counter


def measure_peak(precision: str, clock: Callable[[], float]) -> float:
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
            start = clock()
            call()
            best = max(best, operations / (clock() - start) / 1e9)
    return best


def serve(contender: Contender, task: Task, pipe: Connection) -> None:
    """Run commands until the pipe closes; answer each with a number."""
    torch.set_num_threads(task.threads)
    warnings.simplefilter("ignore")
    if contender.keep_memory:
        from metrics.allocator import keep_freed_memory

        keep_freed_memory()
    torch.manual_seed(0)
    clock = clock_of(task.threads)
    runner = task.build(contender)
    with contextlib.suppress(EOFError):
        while True:
            command = pipe.recv()
            if command in ("step", "sample"):
                start = clock()
                getattr(runner, command)()
                pipe.send(clock() - start)
            elif command == "memory":
                pipe.send(peak_memory())
            elif command == "peak":
                pipe.send(measure_peak(contender.precision, clock))
            elif getattr(runner, "is_foreign", False):  # not torch: nothing of it would be counted
                pipe.send(0.0)
            else:
                pipe.send(count_flops(getattr(runner, command.removeprefix("flops of "))))


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


def take_turns(workers: Sequence[Worker], command: str, turns: int) -> list[list[float]]:
    """Seconds of each worker in each turn, after one that is not counted."""
    rows = [[worker.ask(command) for worker in workers] for _ in range(turns + 1)]
    return [list(column) for column in zip(*rows[1:], strict=True)]


def print_table(
    task: Task,
    command: str,
    workers: Sequence[Worker],
    seconds: list[list[float]],
    peaks: dict[str, float],
    count_ours: bool,
) -> None:
    """One line per contender; without ``count_ours`` all are credited with the first one's operations."""
    reference = seconds[0]
    print(f"\n{'training step' if command == 'step' else 'sampling':<32}{'images/s':>9}{'ratio':>7}", end="")
    print(f"{'GFLOP':>8}{'GFLOP/s':>9}{'of peak':>9}{'MiB':>7}")
    counts: dict[bool, float] = {}  # a compiled network's operations are not seen: those of the same side's first row
    for worker, times in zip(workers, seconds, strict=True):
        contender, median = worker.contender, statistics.median(times)
        ratio = statistics.median([first / own for first, own in zip(reference, times, strict=True)])
        memory = worker.ask("memory")
        kind = contender.is_ours and count_ours
        if kind not in counts:
            counts[kind] = worker.ask(f"flops of {command}")
        speed = counts[kind] / median
        print(f"{contender.name:<32}{task.batch_size / median:>9.1f}{ratio:>6.2f}x", end="")
        share = speed / peaks[contender.precision]
        print(f"{counts[kind]:>8.1f}{speed:>9.0f}{share:>9.0%}{memory:>7.0f}", flush=True)


def contest(task: Task, rows: Sequence[Contender], turns: int, count_ours: bool = True) -> None:
    """Run all contenders of one size, turn by turn, and print a table for training and one for sampling.

    Args:
        task: What they do.
        rows: The contenders, the one that all are compared with first.
        turns: Training steps of each that count; twice as many samplings.
        count_ours: Count our operations by themselves; torch's counter does not see those inside autograd functions of our own.
    """
    workers = [Worker(contender, task) for contender in rows]
    try:
        ready = [worker.ask("memory") for worker in workers]
        print(f"  memory before the first step: {min(ready):.0f} to {max(ready):.0f} MiB")
        by_precision = {worker.contender.precision: worker for worker in workers}
        peaks = {precision: worker.ask("peak") for precision, worker in sorted(by_precision.items())}
        print("  peak: " + ", ".join(f"{name.replace('no', 'float32')} {value:.0f} GFLOP/s" for name, value in peaks.items()))
        for command in ("step", "sample"):
            seconds = take_turns(workers, command, turns if command == "step" else 2 * turns)
            print_table(task, command, workers, seconds, peaks, count_ours)
    finally:
        for worker in workers:
            worker.close()
