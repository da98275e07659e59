"""SIGTERM and SIGINT: save and stop, instead of dying in the middle of a step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def survive_first_signal(worker: int) -> None:
    """Make a loader worker outlive the first SIGTERM or SIGINT, as the trainer does.

    Ctrl-C and cluster schedulers signal every process of a job; the run needs its workers until it is saved.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))


@contextmanager
def catch_signals(request_stop: Callable[[int], None]) -> Iterator[None]:
    """While inside, SIGTERM and SIGINT ask the trainer to stop instead of killing the process; a second one kills."""

    def handle(number: int, frame: Any) -> None:
        request_stop(number)
        signal.signal(number, previous[number])

    try:
        previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in previous:
            signal.signal(number, handle)
    except ValueError:
        # Not in the main thread (a notebook's worker, a test): signals are the caller's.
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
