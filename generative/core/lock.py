"""One writer to a folder: an operating system lock that ends with its process, and a look whether the folder is still there."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from generative.core.errors import RunError, UserError

_held: dict[Path, int] = {}
"""Descriptors of the folders that this process holds."""


def hold_folder(folder: Path) -> None:
    """Keep other processes from writing a folder until this one ends or lets go; a folder held already stays so.

    Nothing is written: the lock is on the folder itself (flock). Where the file system knows no such locks, nothing is locked.

    Raises:
        UserError: If another process holds it.
    """
    place = folder.resolve()
    if place in _held and _is_same(place, _held[place]):
        return
    release_folder(folder)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise UserError(
                f"another process is writing to '{folder}'; wait for it to end or stop it, or choose another folder"
            ) from error
    _held[place] = descriptor


def release_folder(folder: Path) -> None:
    """Let others write to a folder; nothing if it is not held."""
    descriptor = _held.pop(folder.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def check_folder(folder: Path) -> None:
    """Look whether a folder that is held is still in its place.

    Raises:
        RunError: If it was deleted, moved or replaced. Going on would write a second folder, or fail in the middle of a file.
    """
    descriptor = _held.get(folder.resolve())
    if descriptor is not None and not _is_same(folder, descriptor):
        raise RunError(
            f"the folder '{folder}' was deleted, moved or replaced while it was being written to; put it back and go on with it, "
            "or start anew"
        )


def _is_same(place: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(place), os.fstat(descriptor))
    except OSError:
        return False


def _forget() -> None:
    """In a forked child: its copies would hold the lock beyond the end of the process that took it."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
