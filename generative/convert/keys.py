"""Names of official tensors: a table of patterns a source, or a function where a table cannot tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from generative.convert.base import UnknownKeysError

KeyPatterns = Sequence[tuple[str, str]]
"""Pairs of a regular expression for the beginning of an official key and what to put in its place."""


def rename_by(patterns: KeyPatterns, key: str) -> str | None:
    """Our name of an official key by the first pattern that fits, None if none does."""
    for pattern, replacement in patterns:
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key)
    return None


def names_of(owner: str, keys: Iterable[str], rename: Callable[[str], str | None]) -> dict[str, str]:
    """Our names of official keys, in their order.

    Args:
        owner: Whose layout it is, for messages.
        keys: Official ones, without those that are left out on purpose.
        rename: Gives our name of one, None if it has none.

    Raises:
        UnknownKeysError: If any has none; it lists all of them.
    """
    names: dict[str, str] = {}
    unknown: list[str] = []
    for key in keys:
        name = rename(key)
        if name is None:
            unknown.append(key)
        else:
            names[key] = name
    if unknown:
        raise UnknownKeysError(owner, unknown)
    return names
