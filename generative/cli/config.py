"""Configurations: YAML = constructor arguments, checked before anything is built."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from generative.cli.config_files import is_small_file
from generative.cli.layers import CLASS_KEYS, SECTIONS, Layer, current_classes, merge_layers, place_of, read_layers
from generative.core.classes import near_classes
from generative.core.errors import UserError
from generative.core.safe_yaml import UnsafeYAMLError, load_yaml
from generative.core.seed_range import check_seed

if TYPE_CHECKING:
    from generative.core.evaluation import Evaluator
    from generative.data.base import ImageDataset

# Modules whose classes a configuration may name: importing a module runs its code.
TRUSTED_MODULES = ("generative", "metrics", "pipelines", "torch", "torchvision", "diffusers")
DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
FROM_DATA = "data"  # of a number of classes: that of the training data; what is meant where it is left out


# Arguments of objectives that have moved -> where they are now.
MOVED_KEYS = dict.fromkeys(
    (
        "choice_temperature",
        "guidance_exponent",
        "guidance_interval",
        "guidance_scale",
        "guidance_schedule",
        "num_diffusion_steps",
        "num_inference_steps",
        "output_size",
        "solver",
        "temperature",
        "top_k",
        "top_p",
        "truncation",
    ),
    "sampling",
) | {
    "inference_scheduler": "sampler",
    "min_snr_gamma": "formulation",
    "scheduler": "formulation (and sampler)",
    "timestep_density": "formulation (density)",
}


# How entries of jsonargparse's reports begin that are not a constructor's own sentence.
PARSER_ENTRIES = ("Does not validate", "Not a valid subclass", "Expected a", "a class path", "a dict with")


# Its report on a plain value that may also be null.
OPTIONAL = re.compile(
    r"Subtypes: \[<class '(\w+)'>, <class 'NoneType'>\] Errors: - Expected a <class '\w+'> - Expected a <class 'NoneType'> "
    r"Given value type: <class '\w+'> Given value: (.*?)(?: - Expected a .*)?$"
)


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


def unknown_key(key: str) -> str:
    """Say that there is no such key, and where it is now if there was."""
    section, _, name = key.rpartition(".")
    if section == "objective" and name in MOVED_KEYS:
        return (
            f"{key} is not a known key: it is in objective.{MOVED_KEYS[name]} now; a run of before is sampled and scored as ever "
            "and goes on from its weights with --init-from RUN"
        )
    return f"{key} is not a known key"


def condense(message: str) -> str:
    """Turn jsonargparse's nested report on a value into one sentence that starts with the value's path."""
    # What follows says only that the value is not null either, and repeats it whole.
    text = " ".join(message.split()).split(" - Expected a <class 'NoneType'>")[0].split(" Expected a <class 'NoneType'>")[0]
    path = [key.replace(".init_args", "") for key in re.findall(r'[Kk]ey "([^"]+)"', text) if key != "config"]
    if unknown := re.search(r"Option '([^']+)' is not accepted", text):
        return unknown_key(".".join([*path, unknown[1].replace("init_args.", "")]))
    if unknown := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        return unknown_key(f"{unknown[1]}.{unknown[2]}")
    if wrong := OPTIONAL.search(" ".join(message.split())):
        return f"{'.'.join(path)} must be {wrong[1]} or null, got {wrong[2]}"
    if wrong := re.search(r"Expected an? (.+?)\. Got value: (.*)", text):
        expected = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", wrong[1]).replace("typing.", "")
        expected = re.sub(r"Literal\[([^]]*)\]", lambda choices: f"one of {choices[1].replace(chr(39), '')}", expected)
        return f"{'.'.join(path)} must be {expected}, got {wrong[2]}"
    if wrong := re.search(r"Expected an? <class '(?:\w+\.)*(\w+)'>.* Given value: (.*)", text):
        return f"{'.'.join(path)} must be {wrong[1]}, got {wrong[2]}"
    if named := re.search(r"Expected a dot import path string: (\w+)", text):
        return f"{'.'.join(path)}: there is no class '{named[1]}'{near_classes(named[1])}"
    # What follows explains the ways to name a class, not what is wrong.
    text = text.split("Errors: ")[-1].split(" Subclass types expect one of")[0].lstrip("- ")
    return f"{'.'.join(path)}: {text}" if path else text


def refusal(message: str) -> str:
    """What a constructor said, out of jsonargparse's report on a value that may be one thing or a list of them.

    The report keeps the exception of the first kind only, that a list is no class; the others stand in its text, an entry each.
    """
    entries = [line.strip()[2:] for line in message.splitlines() if line.strip().startswith("- ")]
    said = [entry for entry in entries if not entry.startswith(PARSER_ENTRIES)]
    return said[0] if said else condense(message)


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
    paths: Path | Sequence[Path], overrides: Sequence[str] = (), trust_code: bool = False
) -> tuple[OneSentenceParser, Namespace]:
    """Read a configuration and its overrides; nothing is built yet.

    Args:
        paths: The YAML file, or several: a whole configuration and what is laid over it, later ones win.
        overrides: Command-line overrides, for example ``["--trainer.batch_size", "64"]``.
        trust_code: Allow classes of any module.

    Raises:
        UserError: If a key is unknown, a value has the wrong type (both named with their path), or a class is not trusted.
    """
    layers = read_layers([paths] if isinstance(paths, Path) else paths)
    for layer in layers:
        check_layer(layer, trust_code)
    if not trust_code:
        places = (*(layer.path.parent for layer in layers), Path())
        for name in foreign_code(list(map(parse_override, overrides)), places):
            raise UserError(f"the command line {foreign(name)}")
    overrides = current_overrides(overrides)
    content = merge_layers(layers)
    objective = content.get("objective")
    if len(layers) == 1 and isinstance(objective, dict) and "class_path" not in objective and "init_args" in objective:
        raise UserError(
            f"configuration '{layers[0].path}' names no objective: an overlay comes after a whole configuration, "
            f"`generative train CONFIG {layers[0].path}`"
        )
    parser = build_train_parser()
    try:
        config = parser.parse_args(["--config", yaml.safe_dump(content, sort_keys=False, allow_unicode=True), *overrides])
    except UserError as error:
        message = condense(str(error))
        raise UserError(f"{place_of(message, layers, overrides)}: {message}") from error
    check_seed("seed", config.seed)
    return parser, config


def check_layer(layer: Layer, trust_code: bool) -> None:
    """Refuse keys that the parser would pass over, and code of strangers.

    Raises:
        UserError: Names the file and the key.
    """
    place = f"configuration '{layer.path}'"
    if not trust_code:
        for name in foreign_code(layer.content, (layer.path.parent, Path())):
            raise UserError(f"{place} {foreign(name)}")
    # The parser passes over an unknown key that holds an empty mapping.
    for name in [str(key) for key in layer.content if key not in SECTIONS]:
        raise UserError(f"{place}: {name} is not a known key; there are {', '.join(SECTIONS)}")
    for name in stray_keys(layer.content):
        raise UserError(f"{place}: {name} is not a known key; a class has class_path and init_args")


def foreign(name: str) -> str:
    """The sentence on code that is not trusted, without its subject."""
    return f"names '{name}', which is not of {', '.join(TRUSTED_MODULES)}; pass --trust-code if you know what its code does"


def current_overrides(overrides: Sequence[str]) -> list[str]:
    """Name the classes in command-line overrides by where they are defined today."""
    found: list[str] = []
    keys: tuple[str, ...] = ()
    for override in overrides:
        option, equals, text = override.partition("=") if override.startswith("--") else ("", "", override)
        keys = tuple(option.removeprefix("--").split(".")) if option else keys
        if option and not equals:
            found.append(override)
            continue
        value = parse_override(override)
        current = current_classes(value, keys)
        # By what they say: not-a-number equals nothing, itself included.
        found.append(override if repr(current) == repr(value) else f"{option}{equals}{as_argument(current)}")
        keys = ()
    return found


def as_argument(value: Any) -> str:
    """A YAML value as a command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


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
        raise UserError(refusal(str(error)) if cause is None else str(cause)) from error


def build_evaluator(path: Path, trust_code: bool = False) -> tuple[Evaluator, ImageDataset]:
    """Construct the evaluation of a run's configuration and its training data, and nothing else.

    Args:
        path: The configuration.
        trust_code: Allow classes of any module.

    Returns:
        The evaluation, its classes matched with the training data's, and the training data.

    Raises:
        UserError: If it has no evaluation that scores samples, or a constructor refuses its arguments.
    """
    from generative.core.evaluation import Evaluator

    parser, config = parse_train_config(path, trust_code=trust_code)
    if config.get("evaluation") is None:
        raise UserError(f"configuration '{path}' has no `evaluation` to score with; give --reference")
    del config["objective"]
    built = build_config(parser, config)
    if not isinstance(built.evaluation, Evaluator):
        raise UserError(f"the evaluation of '{path}' scores no samples; give --reference")
    built.evaluation.match_classes(built.data)
    return built.evaluation, built.data


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


def dump_config(parser: OneSentenceParser, config: Namespace) -> str:
    """The resolved configuration as YAML that can be trained again."""
    return parser.dump(config, skip_unset=False)
