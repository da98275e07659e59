"""Files that are whole or absent: written under another name, then renamed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when the block ends without an error.

    Args:
        path: The file to write or replace; its folder is made.

    Raises:
        OSError: If the folder or the disk refuses; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("wb") as stream:
            yield stream
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise ``OSError`` unless ``whole_file`` could write here now; nothing is left behind."""
    partial = _partial(path)
    partial.open("wb").close()
    partial.unlink()


def _partial(path: Path) -> Path:
    # Processes and threads that write the same file at once each have their own; the last to finish wins.
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
