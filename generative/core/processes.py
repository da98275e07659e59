"""What the processes of one job tell each other: sums, and when one of them fails, who it was and why."""

from __future__ import annotations

import itertools
import os
import platform
import time
from typing import Any

import torch
from torch import Tensor

from generative.core.errors import RunError

KEY = "triptych/{what}/{rank}"

FAILURE_SECONDS = 2.0
"""How long the main process has to come to the same end as another."""

SEARCH_SECONDS = 3.0
"""Connections close before a process is gone from the system and before its launcher has noticed."""


def is_several() -> bool:
    """True in a job of several processes whose group is up."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def total(value: Tensor) -> Tensor:
    """Sum of a tensor over processes."""
    if is_several():
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def _store() -> Any:
    """The launcher's key-value store, which outlives any process of the job."""
    store = torch.distributed.distributed_c10d._get_default_store()
    return store


def register_process() -> None:
    """Tell the others where this process runs, so that they can look whether it still does."""
    if is_several():
        _store().set(KEY.format(what="place", rank=torch.distributed.get_rank()), f"{platform.node()} {os.getpid()}")


def announce_failure(message: str) -> None:
    """Tell the others why this process is about to end."""
    if not is_several():
        return
    try:
        _store().set(KEY.format(what="failure", rank=torch.distributed.get_rank()), message)
    except RuntimeError:
        pass  # the store is gone with its host: nobody is left to read it


def failure_of(rank: int) -> str | None:
    """What another process announces as the reason of its end, if it does so soon; "" if it has ended, and the store with it."""
    key = KEY.format(what="failure", rank=rank)
    deadline = time.monotonic() + FAILURE_SECONDS
    try:
        while not _store().check([key]):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        return str(_store().get(key).decode(errors="replace"))
    except RuntimeError:
        return ""


def tell(what: str, value: str) -> None:
    """Leave a word of this process for the others, in the store: no collective, so that a thread may."""
    _store().set(KEY.format(what=what, rank=torch.distributed.get_rank()), value)


def hear(what: str, rank: int) -> str:
    """What another process told, once it has.

    Raises:
        RunError: If the process is gone.
    """
    key, place = (KEY.format(what=each, rank=rank) for each in (what, "place"))
    for attempt in itertools.count():
        if _store().check([key]):
            return str(_store().get(key).decode(errors="replace"))
        if attempt % 25 == 24 and _store().check([place]) and not _is_running(_store().get(place).decode()):
            raise RunError(f"process {rank} of the job died without a word: it was killed, or memory ran out; this one stops too")
        time.sleep(0.02)
    raise AssertionError


def explain_lost_process(error: BaseException) -> RunError | None:
    """The sentence for a communication that failed as another process is gone; None for any other error.

    Args:
        error: What a collective operation raised: gloo raises plain ``RuntimeError``.
    """
    if not is_several() or not isinstance(error, RuntimeError):
        return None
    is_network = isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "Connection " in str(error)
    if not is_network:
        return None
    return RunError(f"{_find_lost_process() or 'another process of the job is gone, or cannot be reached'}; this one stops too")


def _find_lost_process() -> str | None:
    """Which process is gone and what it said, looked for until the deadline; None if no trace is found."""
    deadline = time.monotonic() + SEARCH_SECONDS
    ranks = [rank for rank in range(torch.distributed.get_world_size()) if rank != torch.distributed.get_rank()]
    try:
        while True:
            for rank in ranks:
                key = KEY.format(what="failure", rank=rank)
                if _store().check([key]):
                    return f"process {rank} of the job failed ({_store().get(key).decode(errors='replace')})"
            for rank in ranks:
                key = KEY.format(what="place", rank=rank)
                if _store().check([key]) and not _is_running(_store().get(key).decode()):
                    return f"process {rank} of the job died without a word: it was killed, or memory ran out"
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.1)
    except RuntimeError:
        return None  # the store itself is gone


def _is_running(place: str) -> bool:
    """False if the process is one of this machine's and is gone, or waits to be reaped."""
    node, _, number = place.rpartition(" ")
    if node != platform.node():
        return True
    try:
        os.kill(int(number), 0)
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's, or no /proc here
