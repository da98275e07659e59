"""Configurations: YAML = constructor arguments, checked before anything is built."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

import generative
from generative.core.errors import UserError
from generative.core.safe_yaml import UnsafeYAMLError, load_yaml
from generative.core.seed_range import check_seed

# Modules whose classes a configuration may name: importing a module runs its code.
TRUSTED_MODULES = ("generative", "metrics", "pipelines", "torch", "torchvision", "diffusers")
SECTIONS = ("seed", "objective", "data", "evaluation", "trainer")
DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
FROM_DATA = "data"  # of a number of classes: that of the training data; what is meant where it is left out
CLASS_KEYS = ("class_path", "init_args")
MAX_CONFIG_BYTES = 2**20  # a configuration is some kilobytes; data files named in one are not searched for class names


class OneSentenceParser(ArgumentParser):
    """A parser whose errors are one sentence, without usage lines.

    A number of classes may be left out of what it parses, see ``fill_num_classes``.
    """

    follows_data = True

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> Any:
        """Add the constructor arguments of a class, as jsonargparse does for every class that a configuration names."""
        from generative.data.base import ImageDataset

        self.follows_data = not issubclass(theclass, ImageDataset)
        return super().add_class_arguments(theclass, *args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add one argument; a number of classes may be left out, unless it is that of the data themselves."""
        # jsonargparse copies the source of this method into its groups of arguments, which know their parser.
        parser = getattr(self, "parser", self)
        if args and args[0] == "--num_classes" and kwargs.get("type") is int and parser.follows_data:
            kwargs.update(type=int | Literal["data"], default=FROM_DATA, required=False)
        return super().add_argument(*args, **kwargs)

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
    if wrong := re.search(r"Expected an? <class '(?:\w+\.)*(\w+)'>.* Given value: (.*)", text):
        return f"{'.'.join(path)} must be {wrong[1]}, got {wrong[2]}"
    # What follows explains the ways to name a class, not what is wrong.
    text = text.split("Errors: ")[-1].split(" Subclass types expect one of")[0].lstrip("- ")
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
    """Find a configuration by path, by the folder of a run, or by the name ``generative list`` shows.

    Raises:
        UserError: If there is none.
    """
    for path in (Path(name), Path(name) / "config.yaml"):
        if path.is_file():
            return path
    known = list_configs()
    key = name.removeprefix("configs/").removesuffix(".yaml")
    if key in known:
        return known[key]
    raise UserError(f"configuration '{name}' does not exist; `generative list` shows {', '.join(known) or 'none'}")


def read_config(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: If it cannot be read, or is far too large for a configuration.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(
                f"configuration '{path}' has {path.stat().st_size:,} bytes, more than {MAX_CONFIG_BYTES:,}; is it one?"
            )
        return load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"configuration '{path}' cannot be read: {' '.join(str(error).split())}") from error


def build_train_parser() -> OneSentenceParser:
    """The parser of a training configuration: the schema is the constructors' type hints."""
    from generative.core.evaluation import Evaluator
    from generative.core.objective import Objective
    from generative.core.trainer_config import TrainerConfig
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
    content = read_config(path)
    if not isinstance(content, dict):
        raise UserError(f"configuration '{path}' must be a mapping of objective, data and trainer")
    if not trust_code:
        for name in foreign_code([content, *map(parse_override, overrides)], (path.parent, Path())):
            raise UserError(
                f"configuration '{path}' names '{name}', which is not of {', '.join(TRUSTED_MODULES)}; "
                "pass --trust-code if you know what its code does"
            )
    for override in overrides:
        parse_override(override)
    # The parser passes over an unknown key that holds an empty mapping.
    for name in [str(key) for key in content if key not in SECTIONS]:
        raise UserError(f"configuration '{path}': {name} is not a known key; there are {', '.join(SECTIONS)}")
    for name in stray_keys(content):
        raise UserError(f"configuration '{path}': {name} is not a known key; a class has class_path and init_args")
    parser = build_train_parser()
    try:
        config = parser.parse_args(["--config", str(path), *overrides])
    except UserError as error:
        raise UserError(f"configuration '{path}': {condense(str(error))}") from error
    check_seed("seed", config.seed)
    return parser, config


def build_config(parser: OneSentenceParser, config: Namespace) -> Namespace:
    """Construct what a configuration names, the data first: what the configuration leaves out of it is filled in from them.

    Args:
        parser: The configuration's parser.
        config: The configuration; numbers of classes that are left out are written into it.

    Raises:
        UserError: What a constructor raised, freed of the parser's report around it.
    """
    try:
        if config.get("data") is None:
            return parser.instantiate(config)
        data = parser.instantiate(Namespace(data=config.data), instantiate_groups=False).data
        fill_num_classes(config.get("objective"), data.num_classes)
        others = config.clone()
        del others["data"]
        built = parser.instantiate(others)
        built.data = data
        return built
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        raise UserError(condense(str(error)) if cause is None else str(cause)) from error


def fill_num_classes(section: Any, num_classes: int) -> None:
    """Let every ``num_classes`` that a part of a configuration leaves out, or gives as ``data``, be the data's.

    Args:
        section: A parsed part, changed in place.
        num_classes: Number of classes of the data.
    """
    if isinstance(section, list):
        for value in section:
            fill_num_classes(value, num_classes)
    elif isinstance(section, (Namespace, dict)):
        for key, value in list(vars(section).items() if isinstance(section, Namespace) else section.items()):
            if key == "num_classes" and value == FROM_DATA:
                section[key] = num_classes
            else:
                fill_num_classes(value, num_classes)


def stray_keys(content: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Keys beside ``class_path`` that no class takes, with their path; the parser reports them without naming them."""
    if isinstance(content, dict):
        for key, value in content.items():
            if "class_path" in content and key not in CLASS_KEYS:
                yield ".".join([*path, str(key)])
            yield from stray_keys(value, path if key == "init_args" else (*path, str(key)))


def parse_override(argument: str) -> Any:
    """The value that a command-line argument carries."""
    text = argument.partition("=")[2] if argument.startswith("--") else argument
    try:
        return load_yaml(text)
    except UnsafeYAMLError as error:
        raise UserError(f"'{text[:40]}...' cannot be read: {error}") from error
    except yaml.YAMLError:
        return text


def foreign_code(content: Any, folders: Sequence[Path]) -> Iterator[str]:
    """Names of code outside ``TRUSTED_MODULES`` that a configuration would have imported.

    A class may be given by ``class_path``, by its dotted name alone, or by a further YAML file, and the schema that tells names
    from other strings cannot be applied without importing: so every string that is the dotted name of something importable
    counts. A bare class name is looked up among classes that are imported already.

    Args:
        content: A parsed YAML value.
        folders: Where further files are looked for.
    """
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "class_path" and isinstance(value, str) and "." in value and not is_trusted(value):
                yield value
            else:
                yield from foreign_code(value, folders)
    elif isinstance(content, list):
        for value in content:
            yield from foreign_code(value, folders)
    elif isinstance(content, str):
        if DOTTED_NAME.fullmatch(content) and not is_trusted(content) and is_importable(content.split(".")[0]):
            yield content
        for file in [folder / content for folder in folders]:
            if is_small_file(file):
                try:
                    inner = load_yaml(file.read_text(encoding="utf-8"))
                except UnsafeYAMLError as error:
                    raise UserError(f"configuration '{file}' cannot be read: {error}") from error
                except (OSError, UnicodeDecodeError, yaml.YAMLError):
                    continue
                if isinstance(inner, dict):
                    yield from foreign_code(inner, (file.parent, *folders))


def is_trusted(name: str) -> bool:
    """True for a dotted name within ``TRUSTED_MODULES``."""
    return name.split(".")[0] in TRUSTED_MODULES


def is_importable(module: str) -> bool:
    """True if a top-level module exists; it is not imported."""
    try:
        return find_spec(module) is not None
    except ValueError:
        # Imported already, without a record of where from.
        return True


def is_small_file(path: Path) -> bool:
    """True for a file that may be a part of a configuration."""
    try:
        return path.is_file() and path.stat().st_size <= MAX_CONFIG_BYTES
    except (OSError, ValueError):
        # Not a path at all: too long, or with a zero byte.
        return False


def dump_config(parser: OneSentenceParser, config: Namespace) -> str:
    """The resolved configuration as YAML that can be trained again."""
    return parser.dump(config, skip_unset=False)
