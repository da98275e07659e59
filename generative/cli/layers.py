"""Several configurations in one: a whole one, then overlays that change it, each merged over what came before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generative.cli.config_files import is_small_file, read_config
from generative.core.classes import named_class
from generative.core.errors import UserError

CLASS_KEYS = ("class_path", "init_args")
SECTIONS = ("seed", "objective", "data", "evaluation", "trainer")
MAX_FILES_DEEP = 8
_KEY = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)(?: must be | is not a known key|: )")


@dataclass(frozen=True)
class Layer:
    """One file of a configuration.

    Attributes:
        path: The file.
        content: What it holds.
    """

    path: Path
    content: dict[str, Any]


def read_layers(paths: Sequence[Path]) -> list[Layer]:
    """Read configurations, and the YAML files that stand in them in place of a part.

    Raises:
        UserError: If one cannot be read, or is not a mapping.
    """
    layers = []
    for path in paths:
        content = read_config(path)
        if not isinstance(content, dict):
            raise UserError(f"configuration '{path}' must be a mapping of objective, data and trainer")
        layers.append(Layer(path, include_files(content, path.parent)))
    return layers


def include_files(content: Any, folder: Path, depth: int = 0) -> Any:
    """Put the content of a YAML file in the place of its name.

    Args:
        content: A parsed YAML value.
        folder: Where the files are looked for.
        depth: Number of files around this value.
    """
    if isinstance(content, dict):
        return {key: include_files(value, folder, depth) for key, value in content.items()}
    if isinstance(content, list):
        return [include_files(value, folder, depth) for value in content]
    if isinstance(content, str) and content.endswith((".yaml", ".yml")) and is_small_file(folder / content):
        file = folder / content
        if depth == MAX_FILES_DEEP:
            raise UserError(f"configuration '{file}' is one of more than {MAX_FILES_DEEP} files within one another")
        inner = read_config(file)
        return include_files(inner, file.parent, depth + 1) if isinstance(inner, dict) else content
    return content


def merge_layers(layers: Sequence[Layer]) -> dict[str, Any]:
    """The configuration that files give together; classes are named by where they are defined today.

    Raises:
        UserError: If a class of ours does not exist.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        try:
            merged = merge(merged, current_classes(layer.content))
        except UserError as error:
            raise UserError(f"configuration '{layer.path}': {error}") from error
    return merged


def merge(earlier: Any, later: Any) -> Any:
    """Lay one value over another: mappings are merged by key, anything else is replaced.

    A part that names another class than before takes none of the earlier arguments; one that gives ``init_args`` alone, or names
    the same class, changes those that it gives.
    """
    if not isinstance(later, dict):
        same = isinstance(earlier, dict) and "class_path" in earlier and earlier["class_path"] == later
        return earlier if same else later
    if isinstance(earlier, str) and "init_args" in later:
        earlier = {"class_path": earlier}  # a class may be given by its name alone
    if not isinstance(earlier, dict):
        return later
    if "class_path" in later and later["class_path"] != earlier.get("class_path"):
        return later
    return earlier | {key: merge(earlier[key], value) if key in earlier else value for key, value in later.items()}


def current_classes(content: Any, path: tuple[str, ...] = ()) -> Any:
    """Name every class of ours by where it is defined today, see ``named_class``.

    Args:
        content: A parsed YAML value.
        path: Keys that lead to it.

    Raises:
        UserError: If there is no such class; says where it is named.
    """
    if isinstance(content, dict):
        return {key: current_classes(value, (*path, str(key))) for key, value in content.items()}
    if isinstance(content, list):
        return [current_classes(value, path) for value in content]
    if not isinstance(content, str) or not path:
        return content
    if path[-1] != "class_path" and "." not in content and not (len(path) == 1 and path[0] in SECTIONS):
        return content
    try:
        return named_class(content, known=path[-1] == "class_path")
    except UserError as error:
        raise UserError(f"{'.'.join(key for key in path if key not in CLASS_KEYS)}: {error}") from error


def place_of(message: str, layers: Sequence[Layer], overrides: Sequence[str] = ()) -> str:
    """Say which file a message about a key is about: the last that gives it, or all of them.

    Args:
        message: Starts with the path of the key, which lacks ``init_args``.
        layers: The files.
        overrides: Command-line overrides, which come after the files.
    """
    found = _KEY.match(message)
    given = {override.partition("=")[0].removeprefix("--").replace(".init_args", "") for override in overrides}
    if found and found[1] in given:
        return "command line"
    if found and len(layers) > 1:
        for layer in reversed(layers):
            if holds(layer.content, found[1].split(".")):
                return f"configuration '{layer.path}'"
    return f"configuration {quoted([layer.path for layer in layers])}"


def quoted(paths: Sequence[Path]) -> str:
    """Files that are one configuration together, for a message."""
    return " + ".join(f"'{path}'" for path in paths)


def holds(content: Any, keys: Sequence[str]) -> bool:
    """True if a path of keys, without ``init_args``, leads to a value."""
    if not keys:
        return True
    if not isinstance(content, dict):
        return False
    inner = content.get("init_args")
    return (keys[0] in content and holds(content[keys[0]], keys[1:])) or holds(inner, keys)
