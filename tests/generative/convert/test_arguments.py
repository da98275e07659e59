"""A table of official constructor arguments: each is checked, translated or refused, and none is left."""

from __future__ import annotations

from typing import Any

import pytest

from generative.convert import arguments
from generative.convert.arguments import REQUIRED, UNUSED, Argument, Constructor, one_of, optional
from generative.core.errors import UserError

CONSTRUCTOR = Constructor(
    "generator",
    "Example",
    {
        "width": Argument("width", REQUIRED, arguments.WHOLE),
        "ch_mult": Argument("multipliers", (1, 2), arguments.SIZES),
        "rate": Argument("dropout", 0.5, arguments.NUMBER),
        "eps": Argument("eps", None, optional(arguments.NUMBER)),
        "places": Argument("places", None, optional(arguments.SIZES)),
        "kind": Argument("activation", "b", one_of({"a": "relu", "b": "silu"})),
        "groups": Argument(None, 1, one_of((1,), " (one is enough)")),
        "heads": Argument("heads", 4, arguments.POSITIVE, untold='{"heads": N}'),
        "lr": UNUSED,
    },
)


def test_arguments_are_read_by_our_names() -> None:
    given = {"width": 3, "rate": 1, "kind": "a", "lr": object(), "places": [3, 4]}
    assert CONSTRUCTOR.read(given) == {
        "width": 3,
        "multipliers": (1, 2),
        "dropout": 1,
        "eps": None,
        "places": (3, 4),
        "activation": "relu",
        "heads": 4,
    }
    values = CONSTRUCTOR.values({"width": 3, "groups": 1})
    assert list(values) == list(CONSTRUCTOR.arguments) and values["groups"] == 1 and values["kind"] == "silu"
    assert CONSTRUCTOR.value("heads", {}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "3"}, "^generator option width of Example must be a whole number, got '3'$"),
        ({"width": True}, "generator option width of Example must be a whole number, got True"),
        ({"rate": True}, "option rate of Example must be a number, got True"),
        ({"eps": "small"}, "option eps of Example must be a number or None, got 'small'"),
        ({"ch_mult": []}, r"option ch_mult of Example must be a list of positive whole numbers, got \[\]"),
        ({"ch_mult": [1, 0]}, r"option ch_mult of Example must be a list of positive whole numbers, got \[1, 0\]"),
        ({"kind": "c"}, "^generator option kind='c' of Example is not supported here; supported: 'a', 'b'$"),
        ({"kind": ["a"]}, r"option kind=\['a'\] of Example is not supported here; supported: 'a', 'b'"),
        ({"groups": True}, r"option groups=True of Example is not supported here \(one is enough\); supported: 1"),
        ({"heads": 0}, "option heads of Example must be a positive whole number, got 0"),
        ({"heads": None}, '^the checkpoint does not tell heads of generator of Example; give {"heads": N} in --config$'),
        ({"colour": 1, "size": 2}, "^generator option 'colour', 'size' of Example is unknown here; known: width, .*, lr$"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CONSTRUCTOR.read({"width": 3} | change)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="^generator of Example needs the option width$"):
        CONSTRUCTOR.read({})
    with pytest.raises(UserError, match="^options of generator of Example must be a mapping by name, got 3$"):
        CONSTRUCTOR.read(3)  # type: ignore[arg-type]
