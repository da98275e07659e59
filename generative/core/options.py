"""Options of sampling: one frozen dataclass a family, from which configurations, pipelines and the command line take them.

An objective has the dataclass as its argument ``sampling``; its pipeline keeps the values as defaults; ``ImageGenerationPipeline.
__call__`` merges a caller's keywords over them; ``generative sample`` makes a flag of each field, with the field's docstring as
its help. This file imports no torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from generative.core.errors import UserError

GuidanceInterval = tuple[float, float]
"""``(low, high)`` noise levels with 0 <= low < high <= 1; see ``generative.core.guidance.is_inside``."""
GuidanceSchedule = Literal["constant", "linear", "power", "cubic", "exp", "cosine", "power_cosine", "falling_power_cosine"]
"""How the scale grows from 1 to s with the progress p, or falls from s to 1; see ``generative.core.guidance.GROWTHS``."""
COUNTS = {2: "two", 3: "three", 4: "four"}
"""Lengths of tuples in words."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Base of the options of every family: a subclass is fields with defaults, and an ``Attributes`` section that explains them.

    Fields are numbers, texts, choices (``Literal``), tuples and sequences of them, or None. Whether a number is in range, and
    fits the networks, is for the pipeline's ``plan`` to say.

    Raises:
        UserError: If a value is of another type than its field.
    """

    def __post_init__(self) -> None:
        for name, hint in type_hints(type(self)).items():
            object.__setattr__(self, name, conform(name, getattr(self, name), hint))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the options."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], owner: str | None = None) -> Self:
        """Options of some values by name, the others at their defaults.

        Args:
            values: For example read from JSON: lists stand for tuples.
            owner: Who takes the options, for the message.

        Raises:
            UserError: If there is no option of a name, or its value is of a wrong type.
        """
        return cls().merge(values, owner)

    def merge(self, values: Mapping[str, Any], owner: str | None = None) -> Self:
        """These options with some others in their place; see ``from_dict``."""
        for name in values:
            if name not in self.names():
                known = ", ".join(self.names()) or "none"
                raise UserError(f"{owner or type(self).__name__} has no option {name}; it takes {known}")
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """All options by name, as JSON holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def type_hints(options_class: type[SamplingOptions]) -> dict[str, Any]:
    """Type of each option."""
    return get_type_hints(options_class)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Parts of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def conform(name: str, value: Any, hint: Any) -> Any:
    """A value as its type says: numbers as Python's own, sequences as tuples.

    Args:
        name: Of the option, for the message.
        value: What was given.
        hint: Type of the option.

    Raises:
        UserError: If it is of another type.
    """
    for kind in alternatives(hint):
        try:
            return _fit(value, kind)
        except TypeError:
            continue
    raise UserError(f"{name} must be {describe(hint)}, got {value!r}")


def _fit(value: Any, kind: Any) -> Any:
    """The value if it is of a type that is no union.

    Raises:
        TypeError: If it is not.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if kind is type(None) and value is None:
        return None
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if kind is int and is_number and isinstance(value, Integral):
        return int(value)
    if kind is float and is_number:
        return float(value)
    if get_origin(kind) is Literal and isinstance(value, str) and value in get_args(kind):
        return value
    if get_origin(kind) in (tuple, Sequence) and isinstance(value, (list, tuple, range)):
        parts = get_args(kind)
        if get_origin(kind) is Sequence:
            parts = parts * len(value)
        if len(parts) == len(value) > 0:
            return tuple(_fit_any(each, part) for each, part in zip(value, parts, strict=True))
    raise TypeError


def _fit_any(value: Any, hint: Any) -> Any:
    for kind in alternatives(hint):
        try:
            return _fit(value, kind)
        except TypeError:
            continue
    raise TypeError


def describe(hint: Any) -> str:
    """What a value of a type is, in words."""
    names = {float: "a number", int: "an integer", str: "a text", bool: "true or false", type(None): "none"}
    parts = []
    for kind in alternatives(hint):
        if get_origin(kind) is Literal:
            parts.append(f"one of {', '.join(map(str, get_args(kind)))}")
        elif get_origin(kind) is tuple:
            parts.append(f"{COUNTS[len(get_args(kind))]} numbers")
        elif get_origin(kind) is Sequence:
            parts.append("a list of integers" if int in alternatives(get_args(kind)[0]) else "a list of numbers")
        else:
            parts.append(names[kind])
    return " or ".join(parts)
