"""Arguments of official constructors: a table of them a constructor, every one checked, none passed over in silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from generative.convert.base import show_names
from generative.core.errors import UserError

REQUIRED = object()
"""Default of an argument that has none."""


@dataclass(frozen=True)
class Kind:
    """Values that an argument takes.

    Attributes:
        wanted: What they are, after "must be" in a message.
        fits: Whether a value is one of them.
        convert: What stands for a value here.
    """

    wanted: str
    fits: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Choices(Kind):
    """Some values out of those that the official code takes.

    Attributes:
        reason: Why there are no others, for the message.
    """

    reason: str = ""


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, which a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_sizes(value: Any) -> bool:
    """Whether a value is a list of positive whole numbers, of one at least."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(is_whole(size) and size > 0 for size in value)


ANY = Kind("anything", lambda value: True)
FLAG = Kind("True or False", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number", is_whole)
POSITIVE = Kind("a positive whole number", lambda value: is_whole(value) and value > 0)
NUMBER = Kind("a number", lambda value: is_whole(value) or isinstance(value, float))
TEXT = Kind("text", lambda value: isinstance(value, str))
SHARE = Kind("in [0, 1]", lambda value: NUMBER.fits(value) and 0 <= value <= 1)
DROPOUT = Kind("a number of 0 or more and less than 1", lambda value: NUMBER.fits(value) and 0 <= value < 1)
LIST = Kind("a list", lambda value: isinstance(value, (list, tuple)))
NUMBERS = Kind("a list of numbers", lambda value: LIST.fits(value) and all(map(NUMBER.fits, value)), tuple)
SIZES = Kind("a list of positive whole numbers", is_sizes, tuple)


def optional(kind: Kind) -> Kind:
    """The kind, or None."""
    return Kind(
        f"{kind.wanted} or None",
        lambda value: value is None or kind.fits(value),
        lambda value: None if value is None else kind.convert(value),
    )


def one_of(choices: Mapping[Any, Any] | tuple[Any, ...], reason: str = "") -> Choices:
    """Some values, each kept or translated.

    Args:
        choices: Values, or what to translate each to. True is not taken for 1.
        reason: Why there are no others, for the message: it follows "is not supported here".
    """
    translations = choices if isinstance(choices, Mapping) else dict(zip(choices, choices, strict=True))

    def find(value: Any) -> list[Any]:
        same = (choice for choice in translations if choice == value and isinstance(choice, bool) == isinstance(value, bool))
        return [translations[choice] for choice in same]

    wanted = ", ".join(map(repr, translations))
    return Choices(wanted, lambda value: len(find(value)) > 0, lambda value: find(value)[0], reason)


def at_least(least: int) -> Kind:
    """Whole numbers from one on."""
    return Kind(f"a whole number of at least {least}", lambda value: is_whole(value) and value >= least)


OFF = one_of((False,))


@dataclass(frozen=True)
class Argument:
    """One argument of an official constructor.

    Attributes:
        ours: Name of our argument; None if it builds no layer of ours.
        default: Of the official constructor, or ``REQUIRED``; as it stands there, before the kind converts it.
        kind: Values it takes.
        untold: If a checkpoint does not tell the argument, so that recognition gives None: how to give it in ``--config``.
    """

    ours: str | None
    default: Any = None
    kind: Kind = ANY
    untold: str = ""


UNUSED = Argument(None)
"""Any value of an argument that the official code takes and ignores, or that changes no result."""


class Constructor:
    """An official constructor as a table of its arguments.

    Args:
        owner: Official class, for messages.
        repository: Whose it is, for messages.
        arguments: By official name.
    """

    def __init__(self, owner: str, repository: str, arguments: Mapping[str, Argument]) -> None:
        self.owner, self.repository = owner, repository
        self.arguments = MappingProxyType(dict(arguments))

    def named(self, owner: str) -> Constructor:
        """The same for another name in messages, as that of one of several networks."""
        return Constructor(owner, self.repository, self.arguments)

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Values of all arguments by official name, checked and converted, official defaults where none is given.

        Args:
            config: Official arguments by name.

        Raises:
            UserError: If it is no mapping, or an argument is unknown, missing or not of its kind.
        """
        if not isinstance(config, Mapping):
            raise UserError(f"options of {self.owner} of {self.repository} must be a mapping by name, got {config!r}")
        unknown = [name for name in config if name not in self.arguments]
        if unknown:
            known = ", ".join(self.arguments)
            named = show_names([repr(name) for name in unknown])
            raise UserError(f"{self.owner} option {named} of {self.repository} is unknown here; known: {known}")
        return {name: self.value(name, config) for name in self.arguments}

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our arguments by our name.

        Args:
            config: Official arguments by name.

        Raises:
            UserError: As ``values`` does.
        """
        values = self.values(config)
        return {argument.ours: values[name] for name, argument in self.arguments.items() if argument.ours is not None}

    def value(self, name: str, config: Mapping[str, Any]) -> Any:
        """One argument's value, checked and converted.

        Args:
            name: Official.
            config: Official arguments by name.

        Raises:
            UserError: If it is missing or not of its kind.
        """
        argument = self.arguments[name]
        value, kind = config.get(name, argument.default), argument.kind
        if value is REQUIRED:
            raise UserError(f"{self.owner} of {self.repository} needs the option {name}")
        if value is None and argument.untold:
            raise UserError(
                f"the checkpoint does not tell {name} of {self.owner} of {self.repository}; give {argument.untold} in --config"
            )
        if not kind.fits(value):
            if isinstance(kind, Choices):
                raise self.refuse(name, value, kind.wanted, kind.reason)
            raise UserError(f"{self.owner} option {name} of {self.repository} must be {kind.wanted}, got {value!r}")
        return kind.convert(value)

    def refuse(self, name: str, value: Any, wanted: str, reason: str = "") -> UserError:
        """Error for a value that has no equal here."""
        sentence = f"{self.owner} option {name}={value!r} of {self.repository} is not supported here{reason}"
        return UserError(f"{sentence}; supported: {wanted}")
