"""Find a class of this project by its name, wherever its file lies now: what was saved must survive a move of files."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from generative.core.errors import UserError

PACKAGES = ("generative", "pipelines", "metrics")
_CLASS = re.compile(r"^class (\w+)\b", re.MULTILINE)
_FUNCTION = re.compile(r"^def ([a-z]\w+)\b", re.MULTILINE)


def class_modules() -> dict[str, tuple[str, ...]]:
    """Modules by the names of the classes that they define, read from the files' text: nothing is imported."""
    return definitions(_CLASS)


@cache
def definitions(pattern: re.Pattern[str]) -> dict[str, tuple[str, ...]]:
    """Modules by the names that they define.

    Args:
        pattern: Finds the definitions in a file's text; its group is the name.
    """
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            parts = [package, *path.relative_to(root).with_suffix("").parts]
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            for name in pattern.findall(path.read_text(encoding="utf-8")):
                found.setdefault(name, []).append(module)
    return {name: tuple(modules) for name, modules in found.items()}


def module_of(name: str, hint: str = "") -> str:
    """Module that defines a class of ours.

    Args:
        name: The class.
        hint: Module that a file names; taken if it defines the class still, and used to choose among several of one name.

    Raises:
        UserError: If no class of ours has that name, or several have and the hint names none of them.
    """
    modules = class_modules().get(name, ())
    if hint in modules:
        return hint
    if len(modules) == 1:
        return modules[0]
    if not modules:
        raise UserError(f"there is no class '{name}' in {', '.join(PACKAGES)} ('{hint}' was named); it may be of a newer version")
    raise UserError(f"class '{name}' stands in {', '.join(modules)}, and '{hint}' is none of them; name the module")


def find_class(name: str, hint: str = "") -> type:
    """Import a class of ours by its name; see ``module_of``."""
    found: type = getattr(import_module(module_of(name, hint)), name)
    return found


def current_path(dotted: str) -> str:
    """Dotted path of a class today, for one that may be from before a move; another package's path is left as it is."""
    module, _, name = dotted.rpartition(".")
    if module.split(".")[0] not in PACKAGES or name not in class_modules():
        return dotted
    return f"{module_of(name, module)}.{name}"


def named_class(text: str, known: bool = True) -> str:
    """Dotted path today of the class, or the function that builds one, that a configuration names.

    Args:
        text: Dotted path, perhaps of before a move, or a class's name alone.
        known: It must be the name of something; if False it may be any text, and is left as it is where nothing has that name.

    Returns:
        The path; what is not of ours is left as it is.

    Raises:
        UserError: If it is a dotted path of ours and there is no such class; says which are near.
    """
    module, _, name = text.rpartition(".")
    ours = module.split(".")[0] in PACKAGES
    if module and not ours:
        return text
    if name in class_modules():
        return f"{module_of(name, module)}.{name}"
    functions = definitions(_FUNCTION).get(name, ())
    if ours and len(functions) == 1:
        return f"{functions[0]}.{name}"
    if known and ours and not functions:
        raise UserError(f"there is no class '{name}' in {', '.join(PACKAGES)} ('{text}' was named){near_classes(name)}")
    return text


def near_classes(name: str) -> str:
    """A question, after a semicolon, whether one of ours is meant; empty where none has a name like it."""
    near = get_close_matches(name, class_modules(), n=3, cutoff=0.7)
    return f"; is {' or '.join(near)} meant?" if near else ""
