"""What a program needs of its surroundings: streams that take any text, a reader that may leave, a home, patient threads."""

from __future__ import annotations

import getpass
import io
import os
import select
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

#: What shells report for a program that ended because nobody read its output any more: 128 + SIGPIPE.
EXIT_NO_READER = 141


def prepare() -> None:
    """Set the process up as a program; call it first, before torch is imported."""
    _escape_what_cannot_be_printed()
    _have_a_home()
    _spin_for_a_moment_only()


def until_nobody_reads(run: Callable[[], int]) -> int:
    """Run a program's main function, and end it quietly when whoever read its output has left, as ``head`` does.

    Returns:
        Its exit code, or ``EXIT_NO_READER``.

    Raises:
        BrokenPipeError: If it was another pipe that broke.
    """
    try:
        code = run()
        sys.stdout.flush()
        sys.stderr.flush()
        return code
    except BrokenPipeError:
        broken = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not broken:
            raise
        for stream in broken:
            # Python flushes what is left when it ends, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return EXIT_NO_READER


def _has_no_reader(stream: TextIO) -> bool:
    """Return whether a stream leads into a pipe that nobody reads."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # a stream within the process
        return False
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, 0)  # a lost reader is told unasked
    return bool(poll.poll(0))


def _escape_what_cannot_be_printed() -> None:
    """Let both streams write a character that their encoding lacks as an escape: a name must not cost a number."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the program
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for the process's life
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drawable(text: str) -> str:
    """Return a text that matplotlib draws as it is: undecodable bytes of a file name escaped, and dollars no formula."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def _have_a_home() -> None:
    """Give a user that the system does not know, as in a container, the home and the name that libraries ask for."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"user-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = temporary_home()


def temporary_home() -> str:
    """Return a folder that stands for the home of a user who has none."""
    return os.path.join(tempfile.gettempdir(), f"home-{os.getuid() if hasattr(os, 'getuid') else 'user'}")


def _spin_for_a_moment_only() -> None:
    """Let OpenMP's threads sleep soon while they wait for each other, unless the user decided otherwise.

    A thread that spins in wait of another takes that one's core where processes are more than cores: GNU's runtime, which
    torch brings, spins for 300,000 turns, others for 200 ms. A short spin stays, for waits between small layers.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "10000"
        os.environ["KMP_BLOCKTIME"] = "1"  # ms; the runtime of LLVM and Intel
