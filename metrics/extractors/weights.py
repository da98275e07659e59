"""Taking a state dict apart: every entry a network needs, none left over, errors that name the entry."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Size, Tensor


class WeightReader:
    """Hands out the entries of a state dict and remembers which were asked for.

    Args:
        state: Name -> tensor, as a file holds them.
        network: Name of the network that is filled, for messages.
    """

    def __init__(self, state: Mapping[str, Tensor], network: str) -> None:
        self._state = state
        self._network = network
        self._unused = set(state)

    def take(self, key: str) -> Tensor:
        """Return an entry in float32.

        Raises:
            ValueError: If there is none of that name.
        """
        if key not in self._state:
            raise ValueError(f"weights have no entry {key}: they are not those of {self._network}.")
        self._unused.discard(key)
        return self._state[key].float()

    def check_shape(self, key: str, tensor: Tensor, expected: Size) -> Tensor:
        """Return what was made of an entry.

        Raises:
            ValueError: If its shape is not ``expected``.
        """
        if tensor.shape != expected:
            raise ValueError(
                f"weights have a misshapen entry {key}: it gives {tuple(tensor.shape)} where {self._network} needs "
                f"{tuple(expected)}, so they are another network's."
            )
        return tensor

    def finish(self, *ignored: str) -> None:
        """Check that nothing is left.

        Args:
            ignored: Prefixes of entries that belong to parts this network does without.

        Raises:
            ValueError: If an entry was not asked for.
        """
        left = sorted(key for key in self._unused if not key.startswith(ignored))
        if left:
            raise ValueError(f"weights have an unexpected entry {left[0]}: they are not those of {self._network}.")
