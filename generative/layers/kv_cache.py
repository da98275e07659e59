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
        mask: (S, L) bool, True where a new input attends.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor
    mask: Tensor
