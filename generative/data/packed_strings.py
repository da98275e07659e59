"""Many strings in little memory that processes share."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np


class PackedStrings:
    """Many strings in two arrays: loader workers then share them, where reading a list would copy every page it touches."""

    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])].tobytes())
