"""Time and extra memory of one call, for the scripts beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MIB = 2**20
_SAMPLING_SECONDS = 0.005


@dataclass(frozen=True)
class Cost:
    """What a call cost.

    Args:
        value: What it returned.
        seconds: Wall-clock time, the best of the repeats.
        extra_mib: Highest resident memory during the calls above that before the first, in MiB.
    """

    value: Any
    seconds: float
    extra_mib: float

    def row(self, name: str) -> str:
        """Return one line of a table."""
        return f"{name:<34} {self.seconds:9.3f} s {self.extra_mib:8.0f} MiB extra   {self.value}"


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / _MIB


def measure(call: Callable[[], Any], repeats: int = 1) -> Cost:
    """Run ``call`` and return its cost; resident memory is read every few milliseconds by a thread (Linux)."""
    before = peak = _resident_mib()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLING_SECONDS):
            peak = max(peak, _resident_mib())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    seconds, value = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        value = call()
        seconds = min(seconds, time.perf_counter() - start)
    done.set()
    watcher.join()
    return Cost(value, seconds, max(peak, _resident_mib()) - before)
