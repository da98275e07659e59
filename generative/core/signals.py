"""Signals: SIGTERM and SIGINT save and stop instead of killing in mid-step; a loader worker's death is told in words."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from generative.core.errors import RunError
from generative.core.processes import explain_lost_process, is_several

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

DEATH_SECONDS = 2.0
"""A worker's end of a connection closes before the process is gone: how long to look for a dead one after a failed read."""


def survive_first_signal(worker: int) -> None:
    """Make a loader worker outlive the first SIGTERM or SIGINT, as the trainer does, unless it is the trainer that sends it.

    Ctrl-C and cluster schedulers signal every process of a job; the run needs its workers until it is saved. But at its end the
    main process stops its workers by SIGTERM and waits for them: that one must work, or the end is never reached. Who sent a
    signal is only told to a thread that waits for it.
    """
    if not hasattr(signal, "sigwaitinfo"):
        # macOS: Ctrl-C is the main process's business, and SIGTERM ends a worker.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_wait_for_stop, args=(os.getppid(),), daemon=True, name="stop signals").start()


def _wait_for_stop(parent: int) -> None:
    """End this process at the parent's first signal, or at anyone's second."""
    for is_last in (False, True):
        received = signal.sigwaitinfo(STOP_SIGNALS)
        if is_last or received.si_pid == parent:
            os._exit(0 if received.si_pid == parent else 128 + received.si_signo)


@contextmanager
def catch_signals(request_stop: Callable[[int], None]) -> Iterator[None]:
    """While inside, SIGTERM and SIGINT ask the trainer to stop instead of killing the process; a second one kills.

    Raises:
        RunError: If a communication failed inside as another process of the job is gone.
    """

    def handle(number: int, frame: Any) -> None:
        request_stop(number)
        signal.signal(number, previous[number])

    try:
        previous: dict[int, Any] = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number in previous:
            signal.signal(number, handle)
    except ValueError:
        # Not in the main thread (a notebook's worker, a test): signals are the caller's.
        yield
        return
    try:
        yield
    except RuntimeError as error:
        stopped = error if isinstance(error, RunError) else explain_lost_process(error)
        if stopped is None:
            raise
        if is_several():
            # A launcher sends SIGTERM to the rest of a job as soon as one process is gone; this one ends, but has to say why.
            previous[signal.SIGTERM] = signal.SIG_IGN
        raise stopped from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class WorkerWatch:
    """Notices the death of loader workers where a batch is waited for, and nowhere else.

    PyTorch raises from its SIGCHLD handler, wherever the main process happens to be: in the middle of an optimizer's step, whose
    state could then not be saved.

    Args:
        workers: The worker processes.
    """

    def __init__(self, workers: Sequence[BaseProcess]) -> None:
        self.workers = workers
        self._is_waiting = False
        self._has_lost_one = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take SIGCHLD over from PyTorch while inside."""
        inner = signal.getsignal(signal.SIGCHLD)
        if not self.workers or not callable(inner) or threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: Any) -> None:
            self._has_lost_one = True
            if self._is_waiting:
                inner(number, frame)

        signal.signal(signal.SIGCHLD, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGCHLD, inner)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for batches inside.

        Raises:
            RunError: If a worker died. Without a dead worker, what was raised inside goes on.
        """
        if self._has_lost_one:
            self._raise_death(0.0)
        self._is_waiting = True
        try:
            yield
        except (RuntimeError, OSError, EOFError):
            self._is_waiting = False
            self._raise_death(DEATH_SECONDS)
            raise
        finally:
            self._is_waiting = False

    def _raise_death(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            for worker in self.workers:
                if not worker.is_alive():
                    raise RunError(describe_death(worker))
            if time.monotonic() >= deadline:
                return
            time.sleep(0.02)


def loader_workers(make_iterator: Callable[[], Iterator[Any]]) -> tuple[Iterator[Any], list[BaseProcess]]:
    """Start a loader's iterator; returns it and the processes that this started."""
    before = set(multiprocessing.active_children())
    iterator = make_iterator()
    return iterator, [child for child in multiprocessing.active_children() if child not in before]


def describe_death(worker: BaseProcess) -> str:
    """One clause on how a worker ended, and what to do about it."""
    code = worker.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended by itself with exit code {code}"
    advice = {
        -signal.SIGKILL: "where nobody killed it, memory ran out: use fewer trainer.num_workers or smaller batches",
        -signal.SIGBUS: "shared memory ran out (/dev/shm): enlarge it, or use fewer trainer.num_workers",
    }.get(code, "trainer.num_workers 0 loads in the main process and shows what goes wrong")
    return f"a loader worker (process {worker.pid}) {how}; {advice}"
