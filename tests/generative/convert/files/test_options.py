"""Official constructor arguments: each is taken once, translated or refused, and none is left."""

from __future__ import annotations

from typing import Any

import pytest

from generative.convert.files.options import REQUIRED, ConstructorOptions
from generative.core.errors import UserError


class Options(ConstructorOptions):
    """Of a repository that there is not."""

    repository = "Example"


def test_options_are_taken_once_and_all_are_consumed() -> None:
    given = {"width": 3, "rate": 1, "kind": "a", "flag": True, "lr": 0.1}
    options = Options("generator", given)
    assert options.take("width", 4, int) == 3 and options.take("width", 4, int) == 4
    assert options.take("rate", 0.5, float, int) == 1
    assert options.choose("kind", "b", {"a": 1, "b": 2}) == 1 and options.choose("kind", "b", {"a": 1, "b": 2}) == 2
    assert options.choose("flag", False, (False, True)) is True
    options.drop("lr", "absent")
    options.finish()
    assert len(given) == 5  # the caller's own are left as they are


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda options: options.take("depth", REQUIRED), "^generator of Example needs the option depth$"),
        (lambda options: options.take("width", 4, int), "^generator option width of Example must be a whole number, got '3'$"),
        (lambda options: options.take("flag", 4, int), "option flag of Example must be a whole number, got True"),
        (lambda options: options.take("flag", 4.0, float, int), "option flag of Example must be a number, got True"),
        (lambda options: options.take("flag", (), list, tuple), "option flag of Example must be a list, got True"),
        (
            lambda options: options.choose("width", 4, (4, 8), " (too wide)"),
            r"^generator option width='3' of Example is not supported here \(too wide\); supported: 4, 8$",
        ),
        (
            lambda options: options.choose("sizes", 4, {4: 1}),
            r"option sizes=\[4\] of Example is not supported here; supported: 4",
        ),
        (lambda options: options.finish(), "^generator option 'width' of Example is unknown here$"),
        (lambda options: Options("generator", 3), "^options of generator of Example must be a mapping by name, got 3$"),
    ],
)
def test_what_is_wrong_is_named(use: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        use(Options("generator", {"width": "3", "flag": True, "sizes": [4]}))
