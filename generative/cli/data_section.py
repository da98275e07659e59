"""Images for commands that train nothing: the ``data`` section of a training configuration, or ``--data CLASS``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from generative.cli.config import (
    OneSentenceParser,
    build_config,
    condense,
    current_overrides,
    foreign,
    foreign_code,
    parse_override,
    stray_keys,
)
from generative.cli.config_files import find_config
from generative.cli.layers import merge_layers, place_of, quoted, read_layers
from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.data.base import ImageDataset

CACHE_CLASS = "TokenCacheDataset"


class DataSection:
    """A parsed data set, built when asked for, at its own image size or at others.

    Args:
        command: Name of the command, for its messages.
        configs: Training configurations (files or names) whose ``data`` section is taken, of which later ones win; none if
            ``--data`` names a class.
        overrides: Command-line arguments that are left, for example ``["--data.init_args.root", "data/cifar10"]``.
        trust_code: Allow classes of any module.

    Raises:
        UserError: If there is no data set, a key is unknown, a value has the wrong type, or a class is not trusted.
    """

    def __init__(self, command: str, configs: Sequence[str], overrides: Sequence[str], trust_code: bool = False) -> None:
        from generative.data.base import ImageDataset

        layers = read_layers([find_config(name) for name in configs])
        content = merge_layers(layers)
        paths = [layer.path for layer in layers]
        section = read_section(content, paths) if layers else None
        given = any(argument.split("=")[0] == "--data" for argument in overrides)
        if section is None and not given:
            raise UserError(
                f"{command} has no images; give --config CONFIG (its data section is taken) or --data CLASS --data.root ..."
            )
        if not trust_code:
            for name in foreign_code([section, *map(parse_override, overrides)], (*(path.parent for path in paths), Path())):
                raise UserError(f"the data section {foreign(name)}")
        for name in stray_keys({"data": section}):
            raise UserError(f"configuration {quoted(paths)}: {name} is not a known key; a class has class_path and init_args")
        self._parser = OneSentenceParser(prog=command, exit_on_error=False)
        self._parser.add_subclass_arguments(ImageDataset, "data", required=True)
        first = [] if section is None or given else ["--data", json.dumps(section)]
        try:
            self._config = self._parser.parse_args([*first, *current_overrides(overrides)])
        except UserError as error:
            message = condense(str(error))
            place = f"{place_of(message, layers, overrides)}: " if layers else ""
            raise UserError(place + message) from error

    def build(self, image_size: int | None = None) -> ImageDataset:
        """Construct the data set.

        Args:
            image_size: Side of the images in pixels; None for the configured one.

        Raises:
            UserError: What the constructor raised, or if the class has no ``image_size``.
        """
        config = self._config.clone()
        if image_size is not None:
            target = config.data
            while "image_size" not in target.init_args and isinstance(target.init_args.get("images"), Namespace):
                target = target.init_args.images  # a wrapper has the size of what it wraps
            if "image_size" not in target.init_args:
                raise UserError(
                    f"{target.class_path.split('.')[-1]} has no image_size, so its images cannot be made of another size"
                )
            target.init_args.image_size = image_size
            if "verify" in target.init_args:
                target.init_args.verify = False  # they were verified at their own size
        dataset: ImageDataset = build_config(self._parser, config).data
        return dataset


def read_section(content: dict[str, Any], paths: Sequence[Path]) -> Any:
    """The ``data`` section of a training configuration; of one that trains on a cache, the images given with it.

    Args:
        content: The configuration.
        paths: Its files.

    Raises:
        UserError: If it has no such section, or names no images.
    """
    section = content.get("data")
    if section is None:
        raise UserError(f"configuration {quoted(paths)} has no data section; give --data CLASS --data.root ... instead")
    name = section.get("class_path") if isinstance(section, dict) else section
    if isinstance(name, str) and name.split(".")[-1] == CACHE_CLASS:
        images = (section.get("init_args") or {}).get("images") if isinstance(section, dict) else None
        if images is None:
            raise UserError(
                f"configuration {quoted(paths)} trains on a cache and names no images; give them by --data CLASS --data.root ..."
            )
        return images
    return section
