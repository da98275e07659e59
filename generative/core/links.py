"""Equal files are kept once: hard links between a run's checkpoints and its pipeline, each of which stays a whole folder.

Nothing here writes into a file that exists (new content comes under a new name and is renamed), so that a link is as good as a
copy: deleting one name leaves the others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

COMPARED_BYTES = 2**20


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link_folder(source: Path, target: Path, leave_out: Sequence[str] = ()) -> None:
    """Repeat a folder under another name, its files linked.

    Args:
        source: The folder.
        target: The new one; it may exist.
        leave_out: Names of files directly in it that are not repeated.
    """

    def ignore(folder: str, names: list[str]) -> list[str]:
        return list(leave_out) if Path(folder) == source else []

    shutil.copytree(source, target, ignore=ignore, copy_function=link_or_copy, dirs_exist_ok=True)


def link_duplicates(files: Iterable[Path], others: Iterable[Path]) -> None:
    """Replace files by links to others of the same content.

    Args:
        files: Files that nobody reads yet.
        others: What they may repeat; those that do not exist are passed over.
    """
    known = [path for path in others if path.is_file()]
    for path in files:
        for other in known:
            if have_equal_bytes(path, other):
                path.unlink()
                link_or_copy(other, path)
                break


def have_equal_bytes(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes; only those of one size are read."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as ours, other.open("rb") as theirs:
        while part := ours.read(COMPARED_BYTES):
            if part != theirs.read(COMPARED_BYTES):
                return False
    return True
