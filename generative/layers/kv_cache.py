"""Static key-value caches of attention: allocated once, written in place, so that shapes never change while sampling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class KVCache:
    """Keys and values of every layer and slot, allocated once for a whole sampling run and written in place.

    Attributes:
        keys: (depth, B, kv heads, L, d).
        values: (depth, B, kv heads, L, d).
    """

    keys: Tensor
    values: Tensor

    @property
    def batch_size(self) -> int:
        """Number of sequences B."""
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        """Number of slots L."""
        return self.keys.shape[3]

    def rows(self, start: int, stop: int) -> KVCache:
        """View of some of the sequences; writing to it writes to this cache."""
        return KVCache(self.keys[:, start:stop], self.values[:, start:stop])

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each (B, kv heads, L, d)."""
        return self.keys[index], self.values[index]


@dataclass
class CachedSlots:
    """Where an attention layer writes to and reads from when it extends cached sequences.

    Attributes:
        keys: (B, kv heads, L, d), written at ``slots``.
        values: (B, kv heads, L, d), likewise.
        slots: (S,) int64, slots of the new inputs.
        mask: (S, L) bool, True where a new input attends; (S, stop) with ``stop``; None where all attend to all of those.
        stop: The new inputs are the slots before this one, and slots from it on are not read. None where that is not known
            before the code runs (compiled code, which must not change with it): then all L slots are read and masked.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor
    mask: Tensor | None
    stop: int | None = None

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, kv heads, S, d) of the new inputs; returns those that they attend to, views of the cache."""
        if self.stop is None:
            return self.keys.index_copy_(2, self.slots, keys), self.values.index_copy_(2, self.slots, values)
        start = self.stop - keys.shape[2]
        self.keys[:, :, start : self.stop] = keys
        self.values[:, :, start : self.stop] = values
        return self.keys[:, :, : self.stop], self.values[:, :, : self.stop]
