"""Ends a training process, or all of its job, where a test says."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

from generative.core.checkpoint_writer import CheckpointWriter
from generative.core.logging import METRICS_FILE

CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link")
"""Audit events of changes of the file system, beside files that are opened to be written."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """When and how a process dies.

    Attributes:
        how: ``moment``: so many seconds after a step, or the process, has begun; ``operation``: before a change of the file
            system; ``write``: in the middle of a write, at the byte where a file becomes too long.
        phase: What is counted from: the ``start`` of the process, ``training`` or, of operations and writes, the ``save``s.
        number: Steps, operations or bytes until then.
        seconds: Of ``moment``.
        rank: Of the process.
        alone: Others are left alone; else all processes of the job are killed.
    """

    how: str
    phase: str
    number: int
    seconds: float = 0.0
    rank: int = 0
    alone: bool = False


class Killer:
    """Kills where a plan says, from within, so that the moment does not hang on who is scheduled when."""

    def __init__(self, kill: Kill, run: Path) -> None:
        self.kill, self.run = kill, run
        self._left = kill.number
        self._saving: int | None = None
        self._is_counting = kill.how == "operation" and kill.phase == "start"
        if kill.how == "moment" and kill.phase == "start":
            self._strike_later()
        if kill.how == "write":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python's own way is an error
            if kill.phase == "start":
                self._limit_files(kill.number)
        if kill.how == "operation":
            sys.addaudithook(self._see)
            safetensors.torch.serialize_file = self._counted(safetensors.torch.serialize_file)
        if kill.phase == "save":
            CheckpointWriter._run = self._in_save(CheckpointWriter._run)  # type: ignore[method-assign]

    def at_step(self, number: int) -> None:
        """Called as each step begins."""
        if self.kill.phase != "training":
            return
        if self.kill.how == "moment" and number == self.kill.number:
            self._strike_later()
        if self.kill.how == "operation":
            self._is_counting = True
        if self.kill.how == "write" and number == 0:
            self._limit_files((self.run / METRICS_FILE).stat().st_size + self.kill.number)

    def _strike(self, process: int) -> None:
        if self.kill.alone:
            os.kill(process, signal.SIGKILL)
        else:
            os.killpg(0, signal.SIGKILL)

    def _strike_later(self) -> None:
        """From a process of its own: no lock of this one delays it."""
        process = os.getpid()
        if os.fork() == 0:
            time.sleep(self.kill.seconds)
            if os.getppid() == process:
                self._strike(process)
            os._exit(0)

    def _limit_files(self, num_bytes: int) -> None:
        """The system kills this process in the write that makes a file longer, of which the first part is then there."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_change = event in CHANGES or (event == "open" and is_written(arguments[2]))
        # Within ``rmtree`` names are relative.
        if is_change and not (os.path.isabs(name := str(arguments[0])) and not name.startswith(str(self.run))):
            self._count()

    def _count(self) -> None:
        if not (self._is_counting or self._saving == threading.get_ident()):
            return
        if self._left == 0:
            self._strike(os.getpid())
        self._left -= 1

    def _counted(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def serialize_file(*arguments: Any, **options: Any) -> Any:
            self._count()
            return inner(*arguments, **options)

        return serialize_file

    def _in_save(self, inner: Callable[..., None]) -> Callable[..., None]:
        def run(writer: CheckpointWriter, *arguments: Any) -> None:
            if self.kill.how == "write":
                self._limit_files(self.kill.number)
            else:
                self._saving = threading.get_ident()
            try:
                inner(writer, *arguments)
            finally:
                self._saving = None

        return run


def is_written(flags: Any) -> bool:
    """Whether a file opened with these flags can be written to."""
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
