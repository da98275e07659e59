"""Work on a stream of items in threads, ahead of the consumer, in order, and within a budget of memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

#: What images that are decoded or being decoded ahead may take. Twelve megapixels take 36 MB, and 108 MB while Pillow's
#: own copy is there: one is decoded beside the next in line. Below a megapixel each, a batch never comes near it.
AHEAD_BYTES = 112 << 20
#: What items may hold before they are worked on (encoded images read from a stream).
_HELD_BYTES = 64 << 20

#: Called in a worker with the bytes that it is about to take; returns when there is room for them.
Admit = Callable[[int], None]

Item = TypeVar("Item")
Result = TypeVar("Result")


class MemoryBudget:
    """Room for the results of jobs that are consumed in order; the next in line never waits, so nothing stands still.

    Args:
        limit: Bytes that running and finished jobs may take together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: dict[int, int] = {}  # Number of a job -> its bytes.
        self._total = 0
        self._next = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def admit(self, job: int, num_bytes: int) -> None:
        """Wait until a job may take so many bytes."""
        with self._changed:
            self._changed.wait_for(lambda: self._may_run(job, num_bytes))
            self._set(job, num_bytes)

    def settle(self, job: int, num_bytes: int) -> None:
        """Note what a job's result takes."""
        with self._changed:
            self._set(job, num_bytes)

    def release(self, job: int) -> None:
        """Note that a job's result was consumed, and that the one behind it is the next."""
        with self._changed:
            self._total -= self._taken.pop(job, 0)
            self._next = job + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let all that wait go on: nobody consumes any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _may_run(self, job: int, num_bytes: int) -> bool:
        return self._is_closed or job == self._next or self._total + num_bytes <= self._limit

    def _set(self, job: int, num_bytes: int) -> None:
        self._total += num_bytes - self._taken.get(job, 0)
        self._taken[job] = num_bytes
        self._changed.notify_all()


def work_ahead(
    items: Iterable[Item],
    work: Callable[[Item, Admit], Result],
    size: Callable[[Result], int],
    held: Callable[[Item], int],
    num_workers: int,
    window: int,
    limit: int = AHEAD_BYTES,
) -> Generator[tuple[Item, Result], None, None]:
    """Yield each item with its result, in order; close it to end the threads.

    Args:
        items: Read only as far ahead as ``window`` and memory allow.
        work: Called once per item, in any thread; it asks for the bytes it needs where they are many.
        size: Bytes of a result.
        held: Bytes of an item before it is worked on.
        num_workers: Threads; 0 works in this one.
        window: Items ahead of the consumer.
        limit: Bytes that running and finished work may take.
    """
    if num_workers == 0:
        for item in items:
            yield item, work(item, lambda num_bytes: None)
        return
    budget = MemoryBudget(limit)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    num_submitted = num_held = 0
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")

    def run(item: Item, job: int) -> Result:
        result = work(item, lambda num_bytes: budget.admit(job, num_bytes))
        budget.settle(job, size(result))
        return result

    def oldest() -> tuple[Item, Result]:
        first, outcome = waiting.popleft()
        result = outcome.result()
        budget.release(num_submitted - len(waiting) - 1)
        return first, result

    try:
        for item in items:
            waiting.append((item, pool.submit(run, item, num_submitted)))
            num_submitted += 1
            num_held += held(item)
            while waiting and (len(waiting) > window or num_held > _HELD_BYTES):
                first, result = oldest()
                num_held -= held(first)
                yield first, result
        while waiting:
            yield oldest()
    finally:
        budget.close()
        pool.shutdown(wait=True, cancel_futures=True)
