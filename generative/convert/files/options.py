"""Arguments of official constructors, every one of which must be consumed: none may be passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from generative.core.errors import UserError

REQUIRED = object()
"""Default of an option that has none."""
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text"}


class ConstructorOptions:
    """Arguments of one official constructor: take each, then ``finish``.

    Args:
        owner: Module they are of, for messages.
        options: Arguments by name.

    Attributes:
        repository: Whose constructor it is, for messages.

    Raises:
        UserError: If the options are no mapping.
    """

    repository: ClassVar[str]

    def __init__(self, owner: str, options: Any) -> None:
        if not isinstance(options, Mapping):
            raise UserError(f"options of {owner} of {self.repository} must be a mapping by name, got {options!r}")
        self.owner = owner
        self.options = dict(options)

    def refuse(self, name: str, value: Any, wanted: str, reason: str = "") -> UserError:
        """Error for an option's value."""
        sentence = f"{self.owner} option {name}={value!r} of {self.repository} is not supported here{reason}"
        return UserError(f"{sentence}; supported: {wanted}")

    def take(self, name: str, default: Any, *types: type) -> Any:
        """Remove and return an option, or the official default.

        Args:
            name: Of the option.
            default: Of the official constructor, or ``REQUIRED``.
            types: If any, what the value must be an instance of, the one to name first; a bool is no whole number.

        Raises:
            UserError: If it is of another type, or absent and required.
        """
        value = self.options.pop(name, default)
        if value is REQUIRED:
            raise UserError(f"{self.owner} of {self.repository} needs the option {name}")
        is_wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        if types and is_wrong:
            wanted = TYPE_NAMES.get(types[0], f"a {types[0].__name__}")
            raise UserError(f"{self.owner} option {name} of {self.repository} must be {wanted}, got {value!r}")
        return value

    def choose(self, name: str, default: Any, choices: Mapping[Any, Any] | tuple[Any, ...], reason: str = "") -> Any:
        """Take an option that must have one of some values.

        Args:
            name: Of the option.
            default: Of the official constructor.
            choices: Values, or what to translate each to.
            reason: Why there are no others, for the message.

        Raises:
            UserError: If its value is not among the choices.
        """
        value = self.take(name, default)
        translations = choices if isinstance(choices, Mapping) else dict(zip(choices, choices, strict=True))
        if not isinstance(value, (str, bool, int, float, type(None))) or value not in translations:
            raise self.refuse(name, value, ", ".join(map(repr, translations)), reason)
        return translations[value]

    def drop(self, *names: str) -> None:
        """Consume options that the official code takes and ignores, or that build no layer."""
        for name in names:
            self.options.pop(name, None)

    def finish(self) -> None:
        """Raise ``UserError`` if an option is left over."""
        if self.options:
            raise UserError(f"{self.owner} option {next(iter(self.options))!r} of {self.repository} is unknown here")
