"""Flags of the command line from the options of sampling: names, types, choices and help are those of the dataclasses' fields."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from generative.core.errors import UserError
from generative.core.options import SamplingOptions, alternatives, conform, describe, type_hints

NONE = "none"
"""What stands for None on the command line."""


def flag(name: str) -> str:
    """Flag of an option."""
    return f"--{name.replace('_', '-')}"


def add_option_flags(parser: argparse.ArgumentParser, classes: Iterable[type[SamplingOptions]]) -> None:
    """Add a flag for every option of some families; those of one name share it.

    Args:
        parser: Gets a group "sampling options". What is not given is not in the parsed namespace.
        classes: Options of the families.
    """
    group = parser.add_argument_group("sampling options")
    owners: dict[str, list[type[SamplingOptions]]] = {}
    for each in classes:
        for name in each.names():
            owners.setdefault(name, []).append(each)
    for name, families in owners.items():
        group.add_argument(flag(name), dest=name, default=argparse.SUPPRESS, **flag_settings(name, families))


def chosen_options(given: dict[str, Any], classes: Iterable[type[SamplingOptions]]) -> dict[str, Any]:
    """Take the options that were given out of parsed arguments.

    Args:
        given: ``vars`` of the namespace, changed in place.
        classes: As in ``add_option_flags``.
    """
    names = dict.fromkeys(name for each in classes for name in each.names())
    return {name: given.pop(name) for name in names if name in given}


def check_flags(owner: str, options: Iterable[str], accepted: type[SamplingOptions]) -> None:
    """Refuse a flag that the pipeline's family has no use for.

    Raises:
        UserError: Naming the flag and the ones it takes.
    """
    for name in options:
        if name not in accepted.names():
            known = ", ".join(map(flag, accepted.names())) or "no sampling options"
            raise UserError(f"{owner} has no use for {flag(name)}; it takes {known}")


def flag_settings(name: str, owners: Sequence[type[SamplingOptions]]) -> dict[str, Any]:
    """Arguments of ``add_argument`` for an option that some families have."""
    hints = dict.fromkeys(hint for each in owners for hint in alternatives(type_hints(each)[name]))
    kinds = [hint for hint in hints if hint is not type(None)]
    settings: dict[str, Any] = {"help": option_help(name, owners)}
    if kinds == [bool]:
        return settings | {"action": argparse.BooleanOptionalAction}
    if all(get_origin(kind) is Literal for kind in kinds):
        return settings | {"choices": list(dict.fromkeys(choice for kind in kinds for choice in get_args(kind)))}
    lengths = [len(get_args(kind)) for kind in kinds if get_origin(kind) is tuple]
    if lengths:
        settings["metavar"] = "LOW,HIGH" if lengths == [2] else ",".join("N" * lengths[0])
    return settings | {"type": text_converter(tuple(hints))}


def text_converter(hints: tuple[Any, ...]) -> Callable[[str], Any]:
    """What turns the text of a flag into a value of one of some types; numbers with commas between them are a sequence."""

    def convert(text: str) -> Any:
        for hint in sorted(hints, key=lambda hint: hint is not type(None)):  # none is no text
            value: Any = text
            if hint is type(None):
                value = None if text == NONE else text
            elif hint is not str:
                value = numbers(text)
            try:
                return conform("value", value, hint)
            except UserError:
                continue
        known = " or ".join(describe(hint) for hint in hints)
        raise argparse.ArgumentTypeError(f"must be {known}, got '{text}'")

    return convert


def numbers(text: str) -> Any:
    """A number, or a list of them; the text itself if it is neither."""

    def number(part: str) -> Any:
        for kind in (int, float):
            try:
                return kind(part)
            except ValueError:
                continue
        return None if part.strip() == NONE else part

    parts = text.split(",")
    return number(text) if len(parts) == 1 else [number(part) for part in parts]


def option_help(name: str, owners: Sequence[type[SamplingOptions]]) -> str:
    """Docstring of an option; where families have several, each with the names of its families."""
    texts: dict[str, list[str]] = {}
    for each in owners:
        texts.setdefault(option_doc(each, name), []).append(each.__name__.removesuffix("Options"))
    parts = [text if len(texts) == 1 else f"{', '.join(families)}: {text}" for text, families in texts.items()]
    return " ".join(parts).replace("%", "%%")


def option_doc(options_class: type[SamplingOptions], name: str) -> str:
    """What the docstring of a class, or of the nearest one above it, says of a field."""
    return next((docs[name] for docs in map(attribute_docs, options_class.__mro__) if name in docs), "")


@functools.cache
def attribute_docs(documented: Any) -> dict[str, str]:
    """What a class's own docstring says of each attribute."""
    from docstring_parser import parse

    parameters = parse(documented.__doc__ or "").params
    return {each.arg_name: " ".join(each.description.replace("``", "").split()) for each in parameters if each.description}
