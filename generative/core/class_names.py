"""Classes by name: which label a text stands for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from generative.core.errors import UserError

MAX_LISTED_NAMES = 10
NAME_PREFIX, LABEL_PREFIX = "name=", "label="


def list_names(names: Sequence[str], limit: int = MAX_LISTED_NAMES) -> str:
    """Names with commas between them, the first ones where there are many."""
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def find_label(text: str, class_names: Sequence[str] | None, num_classes: int) -> int:
    """The label that a text stands for: that of the class of exactly this name, else the number it is.

    ``name=TEXT`` and ``label=NUMBER`` say which of the two is meant.

    Args:
        text: A name or a number.
        class_names: Names in the order of their labels; None if they are not known.
        num_classes: Labels are in [0, num_classes).

    Returns:
        The label; a number may be out of range.

    Raises:
        UserError: If there is no such class, several bear the name, or the text is one class's name and another's number.
    """
    if text.startswith(LABEL_PREFIX):
        number = _number(text.removeprefix(LABEL_PREFIX))
        if number is None:
            raise UserError(f"class label '{text}' must be {LABEL_PREFIX}NUMBER")
        return number
    by_name, name = text.startswith(NAME_PREFIX), text.removeprefix(NAME_PREFIX)
    labels = [label for label, known in enumerate(class_names or ()) if known == name]
    if len(labels) > 1:
        raise UserError(
            f"'{name}' is the name of classes {', '.join(map(str, labels))}; give the number of the one that is meant"
        )
    number = None if by_name else _number(text)
    if labels:
        if number is not None and 0 <= number < num_classes and number != labels[0]:
            raise UserError(
                f"'{text}' is the name of class {labels[0]} and the number of class {number}; write {NAME_PREFIX}{text} or "
                f"{LABEL_PREFIX}{text}"
            )
        return labels[0]
    if number is not None:
        return number
    if not class_names:
        raise UserError(
            f"class label '{text}' is a name, and the pipeline keeps no class names; give numbers in 0..{num_classes - 1}"
        )
    folded = {known.casefold(): known for known in class_names}
    near = [folded[key] for key in difflib.get_close_matches(name.casefold(), folded)]
    near = near or [known for known in class_names if name and name.casefold() in known.casefold()][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {list_names(class_names)}"
    raise UserError(f"there is no class '{name}'; {hint}")


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
