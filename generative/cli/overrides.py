"""Overrides of a configuration on a command line, told from the command's own arguments."""

from __future__ import annotations

from collections.abc import Sequence


def split_overrides(arguments: Sequence[str], sections: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate ``--SECTION VALUE`` and ``--SECTION.KEY VALUE`` from a command's own arguments, in whatever order they come.

    Args:
        arguments: The command line.
        sections: Parts of the configuration, for example ``("data",)``.

    Returns:
        The command's own arguments, and the overrides.
    """
    own: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name = argument.partition("=")[0]
        if not name.startswith("--") or name[2:].split(".")[0] not in sections:
            own.append(argument)
            continue
        overrides.append(argument)
        if "=" not in argument:
            overrides += [value for value in [next(rest, None)] if value is not None]
    return own, overrides
