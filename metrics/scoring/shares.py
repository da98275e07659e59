"""Who of several processes runs which tiles of an image set, and what each of them met there."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metrics.distributed import Processes

_MAX_CLASS_DIGITS = 18  # 10^18 < 2^62, where the numbers of names start.


@dataclass
class Share:
    """What one process met in its part of an image set."""

    num_expected: int = 0
    num_read: int = 0
    digests: dict[int, bytes] = field(default_factory=dict)  # By tile, 32 bytes an image: of millions it must stay small.
    sizes: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    class_names: dict[int, str] = field(default_factory=dict)

    def class_numbers(self, names: list[str] | None) -> Tensor | None:
        """Return the classes' numbers (B,) int64, and remember which name each stands for."""
        if names is None:
            return None
        numbers = [class_number(name) for name in names]
        self.class_names.update(zip(numbers, names, strict=True))
        return torch.tensor(numbers, dtype=torch.int64)


def class_number(name: str) -> int:
    """Return a number for a class that is the same on every side and in every process, whichever classes it meets.

    A number stands for itself; of a name it is 62 bits of its sha256 above all such numbers.
    """
    if name.isascii() and name.isdigit() and len(name) <= _MAX_CLASS_DIGITS:
        return int(name)
    return 1 << 62 | int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 2


def tiles_of_process(processes: Processes, num_tiles: int, done: Collection[int]) -> list[int]:
    """Return the tiles that this process runs: its part of those that are done, and its part of the others.

    Else the processes of a run that goes on where another number of them stopped would have nothing to do, or everything.
    """
    parts = [[tile for tile in range(num_tiles) if (tile in done) is is_done] for is_done in (True, False)]
    return sorted(part[place] for part in parts for place in processes.share(len(part)))


def neighbours(numbers: Sequence[int]) -> Iterator[range]:
    """Yield ascending numbers as runs of neighbours."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield range(numbers[start], numbers[end - 1] + 1)
            start = end


def joined_sha256(shares: Sequence[Share]) -> str:
    """Return the sha256 (hex) of all images' digests, in the order of the images."""
    tiles = sorted(pair for share in shares for pair in share.digests.items())
    return hashlib.sha256(b"".join(digests for _, digests in tiles)).hexdigest()
