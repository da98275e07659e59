"""Reads of byte ranges of many files, from any place in any order, without maps: the process's memory stays flat."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

#: Files kept open at once, well below the 1024 that a process may have on most systems.
_MAX_OPEN = 256


class RandomReader:
    """Bytes at offsets of files. May be used by several threads, forked and pickled: no position in a file is shared."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # a process that is started afresh opens the files itself

    def read_into(self, path: Path, start: int, view: memoryview) -> int:
        """Fill writable memory with the bytes of a file from ``start`` on.

        Returns:
            How many bytes were read: fewer than the memory has if the file ends before.

        Raises:
            OSError: If the file can't be read.
        """
        file, done = self._file(path), 0
        while done < len(view) and (count := os.preadv(file.descriptor, [view[done:]], start + done)):
            done += count
        return done

    def _file(self, path: Path) -> _OpenFile:
        file = self._open.get(path)
        if file is None:
            file = self._open[path] = _OpenFile(path)
            while len(self._open) > _MAX_OPEN:
                try:
                    self._open.popitem(last=False)  # closed once no thread reads from it
                except KeyError:  # another thread has taken it
                    break
        return file


class _OpenFile:
    """A descriptor that is closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
