"""Files of configurations: where they are found by name, and what they hold."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

import generative
from generative.core.errors import UserError
from generative.core.safe_yaml import load_yaml

OVERLAYS = "sizes"  # folder of what a published size changes in a whole configuration
MAX_CONFIG_BYTES = 2**20  # a configuration is some kilobytes; data files named in one are not searched for class names


def config_folders() -> list[Path]:
    """Where named configurations are looked for: beside the packages (a checkout), then where a wheel puts them."""
    folders = [Path(generative.__file__).parents[1] / "configs", Path(sys.prefix) / "share" / "triptych" / "configs"]
    return [folder for folder in folders if folder.is_dir()]


def shipped_files() -> dict[str, Path]:
    """Every shipped file by name, whole configurations and overlays."""
    found: dict[str, Path] = {}
    for folder in config_folders():
        for path in sorted(folder.rglob("*.yaml")):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def list_configs() -> dict[str, Path]:
    """Every shipped configuration that is whole, by name, for example ``digits/dit``."""
    return {name: path for name, path in shipped_files().items() if OVERLAYS not in name.split("/")}


def list_overlays() -> dict[str, Path]:
    """Every shipped overlay by name, for example ``imagenet/sizes/mar_l_256``: given after a configuration, it changes that."""
    return {name: path for name, path in shipped_files().items() if OVERLAYS in name.split("/")}


def find_config(name: str) -> Path:
    """Find a configuration or overlay by path, by the folder of a run, or by the name ``generative list`` shows.

    Raises:
        UserError: If there is none.
    """
    for path in (Path(name), Path(name) / "config.yaml"):
        if path.is_file():
            return path
    known = shipped_files()
    key = name.removeprefix("configs/").removesuffix(".yaml")
    if key in known:
        return known[key]
    folder, _, stem = key.rpartition("/")
    size = f"{folder}/{OVERLAYS}/{stem}" if folder else stem
    near = [size] if size in known else get_close_matches(key, known, n=3)
    hint = f"; is {' or '.join(near)} meant?" if near else ""
    kinds = "`generative list configs` and `generative list overlays` show what there is"
    raise UserError(f"configuration '{name}' does not exist{hint} ({kinds})")


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


def is_small_file(path: Path) -> bool:
    """True for a file that may be a part of a configuration."""
    try:
        return path.is_file() and path.stat().st_size <= MAX_CONFIG_BYTES
    except (OSError, ValueError):
        # Not a path at all: too long, or with a zero byte.
        return False
