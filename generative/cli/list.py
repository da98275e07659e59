"""``generative list``: what there is to train, sample and score with."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType

from generative.cli import config_files
from generative.cli.arguments import CommandParser
from generative.cli.option_flags import option_doc
from generative.cli.published import headline

SECTIONS = (
    "models",
    "objectives",
    "formulations",
    "samplers",
    "schedulers",
    "guidance",
    "pipelines",
    "configs",
    "overlays",
    "sources",
    "datasets",
    "metrics",
    "extractors",
)
FAMILIES = ("gan", "diffusion", "autoregressive")


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative list", "List what there is.")
    parser.add_argument("section", nargs="?", choices=SECTIONS, help="one section only")
    chosen = parser.parse_args(arguments).section
    for section in [chosen] if chosen else SECTIONS:
        print(f"{section}:")
        for name, text in globals()[f"list_{section}"]():
            print(f"  {name:<48} {text}".rstrip())
    return 0


def first_line(item: object) -> str:
    """First line of a docstring, without its markup."""
    return (inspect.getdoc(item) or "").split("\n")[0].replace("``", "`")


def classes_of(package: ModuleType, base: type) -> list[tuple[str, str]]:
    """Concrete subclasses of ``base`` that the modules of a package define: dotted path and first line of the docstring."""
    found = []
    for info in walk_packages(package.__path__, package.__name__ + "."):
        for item in vars(import_module(info.name)).values():
            if inspect.isclass(item) and item.__module__ == info.name and issubclass(item, base) and not inspect.isabstract(item):
                found.append((f"{info.name.split('.', 1)[1]}.{item.__name__}", first_line(item)))
    return found


def list_models() -> list[tuple[str, str]]:
    """Networks of every family and tokenizers; not those that others are only built upon."""
    from diffusers import ModelMixin

    def is_base(path: str) -> bool:
        module, name = f"generative.{path}".rsplit(".", 1)
        return bool(getattr(import_module(module), name).__subclasses__())

    packages = [import_module(f"generative.{name}") for name in (*FAMILIES, "tokenizers")]
    return [entry for package in packages for entry in classes_of(package, ModelMixin) if not is_base(entry[0])]


def list_objectives() -> list[tuple[str, str]]:
    """Methods of training."""
    from generative.core.objective import Objective

    return [entry for name in FAMILIES for entry in classes_of(import_module(f"generative.{name}"), Objective)]


def list_sources() -> list[tuple[str, str]]:
    """Layouts of official checkpoints that ``generative convert`` reads."""
    from generative.convert import SOURCES, get_source

    return [(name, get_source(name).repository) for name in SOURCES]


def list_pipelines() -> list[tuple[str, str]]:
    """Pipeline classes."""
    from pipelines import PIPELINES

    return [(name, first_line(getattr(import_module(module), name))) for name, module in PIPELINES.items()]


def list_configs() -> list[tuple[str, str]]:
    """Shipped configurations, with the comment at their top and what was published of them."""
    return [(name, describe_file(path)) for name, path in config_files.list_configs().items()]


def list_overlays() -> list[tuple[str, str]]:
    """What a published size changes in a configuration: ``generative train CONFIG OVERLAY``."""
    return [(name, describe_file(path)) for name, path in config_files.list_overlays().items()]


def describe_file(path: Path) -> str:
    """The first line of a configuration's comment, and the first score that was published of it."""
    published = headline(path)
    return first_comment(path) + (f" [published {published}]" if published else "")


def first_comment(path: Path) -> str:
    """The comment in the first line of a YAML file."""
    line = path.read_text(encoding="utf-8").split("\n")[0]
    return line.lstrip("# ") if line.startswith("#") else ""


def list_datasets() -> list[tuple[str, str]]:
    """Dataset classes."""
    import generative.data
    from generative.data.base import ImageDataset

    return classes_of(generative.data, ImageDataset)


def list_formulations() -> list[tuple[str, str]]:
    """What a diffusion can be trained as."""
    import generative.diffusion.formulations as package
    from generative.diffusion.formulations.base import Formulation

    return classes_of(package, Formulation)


def list_samplers() -> list[tuple[str, str]]:
    """Samplers of diffusion that are written here, as --sampler takes them."""
    from generative.diffusion.samplers.names import SAMPLERS, describe_options

    return [(f"{name}:{describe_options(kind)}", f"{kind.__name__}: {first_line(kind)}") for name, kind in SAMPLERS.items()]


def list_schedulers() -> list[tuple[str, str]]:
    """Schedulers of diffusers that sample too, those that fit the formulation."""
    import diffusers

    from generative.diffusion.samplers.fit import SCHEDULERS

    return [(name, first_line(getattr(diffusers, name)) or "diffusers") for name in SCHEDULERS]


def list_guidance() -> list[tuple[str, str]]:
    """What guides a diffusion while it samples, by the option that asks for it."""
    from generative.diffusion.free_u import FreeU
    from generative.diffusion.guidance.classifier import ClassifierGradient
    from generative.diffusion.guidance.projected import ProjectedGuidance
    from generative.diffusion.guidance.zero_star import ZeroInit, ZeroStar
    from generative.diffusion.options import DiffusionOptions

    options = {name: option_doc(DiffusionOptions, name).split(";")[0] for name in ("guidance_scale", "guide_scale")}
    classes = {
        "classifier_scale": ClassifierGradient,
        "guidance_rule apg": ProjectedGuidance,
        "guidance_rule zero-star": ZeroStar,
        "zero_init": ZeroInit,
        "free_u": FreeU,
    }
    return [*options.items(), *((name, first_line(item)) for name, item in classes.items())]


def list_metrics() -> list[tuple[str, str]]:
    """Metrics."""
    from metrics import registry

    return [(name, score.help) for name, score in registry.SCORES.items()]


def list_extractors() -> list[tuple[str, str]]:
    """Feature extractors."""
    from metrics import registry

    return [(name, first_line(registry.resolve("extractor", registry.EXTRACTORS, name))) for name in registry.EXTRACTORS]
