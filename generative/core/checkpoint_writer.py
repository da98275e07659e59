"""Folders that all processes of a job fill together, whole or not at all; in the background, if asked.

Processes tell each other through the launcher's key-value store how their part went, never by a collective operation: those
belong to the training, which goes on meanwhile.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

from generative.core import checkpoint as ckpt
from generative.core.errors import RunError
from generative.core.processes import hear, is_several, tell

NUMBERS = itertools.count(1)
"""Of the folders that this process took part in: on every process the same one has the same number."""


class CheckpointWriter:
    """Writes one folder at a time.

    Args:
        rank: This process; the first one makes the folder and renames it when all have written.
        num_processes: All processes of the job.
        in_background: Write in a thread: ``write`` returns at once, and ``wait`` says how it went.
    """

    def __init__(self, rank: int, num_processes: int, in_background: bool) -> None:
        self.rank = rank
        self.num_processes = num_processes
        self.in_background = in_background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._number = 0

    @property
    def has_failed(self) -> bool:
        """Whether this process knows that what it wrote last could not be written."""
        return self._error is not None

    def write(self, target: Path, fill: Callable[[Path], None] | None, publish: Callable[[], None]) -> None:
        """Write a folder, after the one before; every process calls it.

        Args:
            target: The folder, which does not exist.
            fill: Writes this process's files into the folder it is given; None where it has none.
            publish: What the first process does once the folder is there.

        Raises:
            UserError: If the place cannot be written to.
            RunError: If the disk is full, or another process could not write.
        """
        self.wait()
        self._number = next(NUMBERS)
        if self.in_background:
            self._thread = threading.Thread(target=self._run, args=(target, fill, publish), name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._run(target, fill, publish)
            self.wait()

    def wait(self) -> None:
        """Wait until the last folder is there; every process calls it.

        Raises:
            UserError: As ``write``.
            RunError: As ``write``.
        """
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def join(self) -> None:
        """Wait until nothing is being written, whatever came of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, target: Path, fill: Callable[[Path], None] | None, publish: Callable[[], None]) -> None:
        partial = ckpt.partial_path(target)
        try:
            if self.rank == 0:
                self._lead(target, partial, fill, publish)
            else:
                self._follow(target, partial, fill)
        except Exception as error:
            self._error = error

    def _lead(self, target: Path, partial: Path, fill: Callable[[Path], None] | None, publish: Callable[[], None]) -> None:
        try:
            with ckpt.removed_on_failure(target, partial):
                ckpt.start_folder(partial)
                self._tell("folder")
                self._fill_together(partial, fill)
                ckpt.finish_folder(target, partial)
            publish()
        except Exception as error:
            self._tell("folder", describe(error))
            self._tell("end", describe(error))
            raise
        self._tell("end")

    def _fill_together(self, partial: Path, fill: Callable[[Path], None] | None) -> None:
        """Write the first process's part and wait for all others': nobody writes any more when a failure is told."""
        failures: list[Exception] = []
        try:
            if fill is not None:
                fill(partial)
        except Exception as error:
            failures.append(error)
        for rank in range(1, self.num_processes):
            try:
                self._hear("part", rank)
            except RunError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _follow(self, target: Path, partial: Path, fill: Callable[[Path], None] | None) -> None:
        try:
            self._hear("folder", 0)
            if fill is not None:
                with ckpt.removed_on_failure(target, None):
                    fill(partial)
        except Exception as error:
            self._tell("part", describe(error))
            raise
        self._tell("part")
        self._hear("end", 0)

    def _tell(self, what: str, failure: str = "") -> None:
        if is_several():
            tell(f"{what} {self._number}", failure)

    def _hear(self, what: str, rank: int) -> None:
        """Wait for another process.

        Raises:
            RunError: If it could not do its part, or is gone.
        """
        if failure := hear(f"{what} {self._number}", rank):
            raise RunError(f"process {rank} of the job could not go on ({failure}); this one stops too")


def describe(error: Exception) -> str:
    """What to tell others of an error: something, in any case."""
    return str(error) or type(error).__name__
