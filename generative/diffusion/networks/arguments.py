"""Checks of what constructors of denoisers have in common."""

from __future__ import annotations

from collections.abc import Mapping

from generative.core.errors import UserError


def check_arguments(network: str, sizes: Mapping[str, int], shares: Mapping[str, float], class_conditional: bool = True) -> None:
    """Refuse arguments that no network can have.

    Args:
        network: Its class, for messages.
        sizes: Arguments by name that must be at least 1.
        shares: Arguments by name that must be in [0, 1).
        class_conditional: Whether the class has an effect; else a ``class_dropout_prob`` among the shares must be 0.

    Raises:
        UserError: Naming the first of them.
    """
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{network}: {name} must be at least 1, got {value}")
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UserError(f"{network}: {name} must be in [0, 1), got {share}")
    if shares.get("class_dropout_prob") and not class_conditional:
        raise UserError(
            f"{network}: class_dropout_prob {shares['class_dropout_prob']} has no meaning without classes; set it to 0, or "
            "class_conditional to true"
        )
