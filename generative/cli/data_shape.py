"""What a configuration's data look like, told without reading any: classes, size, and batches without content."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

if TYPE_CHECKING:
    from generative.core.objective import Objective
    from generative.core.types import Batch

ASSUMED_CLASSES = 1000


class DataShape:
    """What a configuration's data look like, without reading any.

    Args:
        section: The configuration's ``data``.

    Attributes:
        num_classes: Number of classes.
        image_size: Height and width in pixels.
        notes: What had to be assumed, one sentence each.
    """

    def __init__(self, section: Namespace) -> None:
        self.layers = list(data_layers(section))
        self.notes: list[str] = []
        self.image_size = int(next((a["image_size"] for _, a in self.layers if a.get("image_size")), 0))
        self.num_classes = self._count_classes()

    def _count_classes(self) -> int:
        for kind, arguments in self.layers:
            if isinstance(arguments.get("num_classes"), int):
                return arguments["num_classes"]
            if kind.usual_classes is not None:
                return kind.usual_classes
            root = arguments.get("root")
            if root is not None and Path(root).expanduser().is_dir():
                if folders := sum(entry.is_dir() for entry in Path(root).expanduser().iterdir()):
                    return folders
        self.notes.append(f"the data are not there: {ASSUMED_CLASSES:,} classes are assumed")
        return ASSUMED_CLASSES

    def batch(self, size: int, objective: Objective) -> Batch:
        """A micro-batch for an objective, without content: what caches would bring of it is made by the objective's encoders."""
        import torch

        kind, arguments = self.layers[0]
        brings = {name for each, _ in self.layers for name in each.brings}
        brings |= {"images"} if any(arguments.get("with_images") for _, arguments in self.layers) else set()
        blank = kind.blank_batch(size, objective.image_size, arguments)
        return objective.as_cached(blank, brings, torch.Generator().manual_seed(0))


def data_layers(section: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Data sets of a data section with their arguments, the outermost first, then those it wraps."""
    from generative.data.base import ImageDataset

    if not isinstance(section, (Namespace, dict)):
        return
    content = vars(section) if isinstance(section, Namespace) else section
    if "class_path" in content:
        module, _, name = content["class_path"].rpartition(".")
        kind = getattr(import_module(module), name)
        given = content.get("init_args") or {}
        given = vars(given) if isinstance(given, Namespace) else given
        defaults = {
            key: parameter.default
            for key, parameter in inspect.signature(kind).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        if isinstance(kind, type) and issubclass(kind, ImageDataset):  # and no network that a data set looks through
            yield kind, {**defaults, **given}
        for value in given.values():
            yield from data_layers(value)
