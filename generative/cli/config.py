"""Configurations: YAML = constructor arguments, checked before anything is built."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

import generative
from generative.core.errors import UserError

# Modules whose classes a configuration may name: importing a module runs its code.
TRUSTED_MODULES = ("generative", "metrics", "pipelines", "torch", "torchvision", "diffusers")


class OneSentenceParser(ArgumentParser):
    """A parser whose errors are one sentence, without usage lines."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a ``UserError``."""
        # Not condensed here: parsers nest, and the outermost report holds the whole path.
        raise UserError(str(message)) from ex


def condense(message: str) -> str:
    """Turn jsonargparse's nested report on a value into one sentence that starts with the value's path."""
    # What follows says only that the value is not null either, and repeats it whole.
    text = " ".join(message.split()).split(" - Expected a <class 'NoneType'>")[0].split(" Expected a <class 'NoneType'>")[0]
    path = re.findall(r'[Kk]ey "([^"]+)"', text)
    if unknown := re.search(r"Option '([^']+)' is not accepted", text):
        return f"{'.'.join([*path, unknown[1]])} is not a known key"
    if unknown := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        return f"{unknown[1]}.{unknown[2]} is not a known key"
    if wrong := re.search(r"Expected an? (.+?)\. Got value: (.*)", text):
        expected = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", wrong[1]).replace("typing.", "")
        return f"{'.'.join(path)} must be {expected}, got {wrong[2]}"
    text = text.split("Errors: ")[-1].lstrip("- ")
    return f"{'.'.join(path)}: {text}" if path else text


def config_folders() -> list[Path]:
    """Where named configurations are looked for: beside the packages (a checkout), then where a wheel puts them."""
    folders = [Path(generative.__file__).parents[1] / "configs", Path(sys.prefix) / "share" / "triptych" / "configs"]
    return [folder for folder in folders if folder.is_dir()]


def list_configs() -> dict[str, Path]:
    """Every shipped configuration by name, for example ``digits/dit``."""
    found: dict[str, Path] = {}
    for folder in config_folders():
        for path in sorted(folder.rglob("*.yaml")):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def find_config(name: str) -> Path:
    """Find a configuration by path or by the name ``generative list`` shows.

    Raises:
        UserError: If there is none.
    """
    if Path(name).is_file():
        return Path(name)
    known = list_configs()
    key = name.removeprefix("configs/").removesuffix(".yaml")
    if key in known:
        return known[key]
    raise UserError(f"configuration '{name}' does not exist; `generative list` shows {', '.join(known) or 'none'}")


def build_train_parser() -> OneSentenceParser:
    """The parser of a training configuration: the schema is the constructors' type hints."""
    from generative.core.evaluation import Evaluator
    from generative.core.objective import Objective
    from generative.core.trainer import TrainerConfig
    from generative.data.base import ImageDataset

    parser = OneSentenceParser(prog="generative train CONFIG", description="Train a generator.", exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file; later ones override")
    parser.add_argument("--seed", type=int, default=0, help="seed of initial weights, data order, noise and dropout")
    parser.add_subclass_arguments(Objective, "objective", required=True, help="what to train, and how")
    parser.add_subclass_arguments(ImageDataset, "data", required=True, help="training images")
    parser.add_argument("--evaluation", type=Evaluator | None, default=None, help="scores during training and at the end")
    parser.add_class_arguments(TrainerConfig, "trainer")
    return parser


def parse_train_config(
    path: Path, overrides: Sequence[str] = (), trust_code: bool = False
) -> tuple[OneSentenceParser, Namespace]:
    """Read a configuration and its overrides; nothing is built yet.

    Args:
        path: The YAML file.
        overrides: Command-line overrides, for example ``["--trainer.batch_size", "64"]``.
        trust_code: Allow classes of any module.

    Raises:
        UserError: If a key is unknown, a value has the wrong type (both named with their path), or a class is not trusted.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"configuration '{path}' cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"configuration '{path}' must be a mapping of objective, data and trainer")
    if not trust_code:
        for name in class_paths(content):
            # A bare class name is looked up among the imported subclasses only.
            if "." in name and name.split(".")[0] not in TRUSTED_MODULES:
                raise UserError(
                    f"configuration '{path}' names the class '{name}', which is not of {', '.join(TRUSTED_MODULES)}; "
                    "pass --trust-code if you know what it does"
                )
    parser = build_train_parser()
    try:
        return parser, parser.parse_args(["--config", str(path), *overrides])
    except UserError as error:
        raise UserError(f"configuration '{path}': {condense(str(error))}") from error


def class_paths(content: Any) -> Iterator[str]:
    """Every ``class_path`` in a nested configuration."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "class_path" and isinstance(value, str):
                yield value
            else:
                yield from class_paths(value)
    elif isinstance(content, list):
        for value in content:
            yield from class_paths(value)


def dump_config(parser: OneSentenceParser, config: Namespace) -> str:
    """The resolved configuration as YAML that can be trained again."""
    return parser.dump(config, skip_none=False)
