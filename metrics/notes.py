"""What a number's reader must know: metrics warn of it, and programs say it in one sentence, each sentence once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class ScoreNote(UserWarning):
    """What a reader must know of a number before comparing it."""


@contextmanager
def notes_of_warnings(notes: list[str]) -> Iterator[None]:
    """Add what metrics warn of to ``notes``, each sentence once, also where the block raises; other warnings pass through."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ScoreNote)
            yield
    finally:
        for warning in caught:
            if not issubclass(warning.category, ScoreNote):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
            elif str(warning.message) not in notes:
                notes.append(str(warning.message))


def say_warnings_plainly() -> None:
    """Let the process's warnings be one line each, without a line of source, as its errors are; for a program's start."""

    def plain(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        return f"warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = plain
