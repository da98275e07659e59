"""Processes of a job find each other, and find out whether they were started alike."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from generative.core.errors import RunError, UserError
from generative.core.processes import is_several

PATIENCE_SECONDS = 30.0
"""Before a process says that it waits for others."""

MAX_SHOWN = 80
"""Characters shown of a value in which processes differ."""

MISSING = "nothing of the kind"


@contextmanager
def meeting(num_processes: int) -> Iterator[None]:
    """Inside, the processes of a job meet for the first time.

    Args:
        num_processes: How many the launcher was asked for.

    Raises:
        RunError: If they do not: the port is taken, the place cannot be reached, or some never come.
    """
    if num_processes == 1:
        yield
        return
    place = f"{os.environ.get('MASTER_ADDR', 'MASTER_ADDR')}:{os.environ.get('MASTER_PORT', 'MASTER_PORT')}"
    note = f"note: process {os.environ.get('RANK', '?')} waits for all {num_processes} processes of the job to meet at {place}"
    timer = threading.Timer(PATIENCE_SECONDS, lambda: print(note, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError | RunError):
            raise
        text = " ".join(str(error).split())
        if "EADDRINUSE" in text or "address already in use" in text:
            reason = (
                f"the port of {place} is taken by another program or job: give a free one, with `torchrun --standalone` or "
                "--master-port, or `accelerate launch --main_process_port`"
            )
        elif isinstance(error, torch.distributed.DistError) or "rendezvous" in text or "environment variable" in text:
            reason = (
                f"the {num_processes} processes of the job did not meet at {place} ({text.split('. ')[0][:200]}): start as many "
                "as the launcher is asked for, on machines that reach that one"
            )
        else:
            raise
        raise RunError(reason) from error
    finally:
        timer.cancel()


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Refuse processes that were started otherwise than the main one: they would train different things, or wait for ever.

    Args:
        facts: What must be the same on all, by a name that the message uses; values that JSON could hold. Every process calls it.

    Raises:
        UserError: On every process, with the first difference.
    """
    if not is_several():
        return
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, dict(facts))
    main = everyone[0]
    for rank, others in enumerate(everyone):
        for name in dict.fromkeys([*main, *others]):
            ours, theirs = main.get(name, MISSING), others.get(name, MISSING)
            if ours != theirs:
                raise UserError(
                    f"process {rank} of the job has {name} {shown(theirs)}, process 0 {shown(ours)}: give all of them the "
                    "same command, configuration, data and software"
                )


def shown(value: Any) -> str:
    """A value, cut where it is long."""
    text = str(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
