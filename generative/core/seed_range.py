"""Which seeds there are; apart from what is drawn from them, as the command line checks them before torch is imported."""

from __future__ import annotations

from generative.core.errors import UserError

MAX_SEED = 2**64 - 1
"""The largest that torch takes."""


def check_seed(name: str, seed: int | None) -> None:
    """Refuse a seed that torch cannot take.

    Raises:
        UserError: If it is no integer in [0, 2**64).
    """
    if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise UserError(f"{name} must be an integer from 0 to 2^64 - 1, got {seed}")
