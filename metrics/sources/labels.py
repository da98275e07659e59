"""Where the classes of images come from: what states them, else the folders they lie in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metrics.files.images import printable

#: Files at the root of a folder or archive that may hold labels: EDM's, and the one that ``generative sample`` writes.
LABEL_TABLES = ("dataset.json", "manifest.json")
#: Members of a tar that state a class, the first before the second.
_LABEL_EXTENSIONS = (".cls", ".json")


@dataclass(frozen=True)
class FoundLabels:
    """What is known of the classes of a set's images.

    Args:
        stated: Class of each image where something states it (a table, a column, a file beside it), or None.
        folders: Folder of each image where every image lies in one and nothing states classes, or None.
        are_numbers: Whether what is stated are places in an order of classes.
        class_names: The names in that order as a file holds them, unchecked; None where they are not known.
        missing: Why there are no labels, what was expected and what was found, or "".
    """

    stated: list[str] | None = None
    folders: list[str] | None = None
    are_numbers: bool = False
    class_names: object = None
    missing: str = ""

    @property
    def labels(self) -> list[str] | None:
        """Class of each image: what is stated, else the folders if there are two or more."""
        if self.stated is not None:
            return self.stated
        return self.folders if self.folders is not None and len(set(self.folders)) > 1 else None


def join_labels(parts: Sequence[FoundLabels]) -> FoundLabels:
    """Return the labels of several sets, one after the other: stated in all, or by folders in all."""
    if all(part.stated is not None for part in parts):
        stated = [label for part in parts for label in part.stated or []]
        return FoundLabels(stated=stated, are_numbers=all(part.are_numbers for part in parts))
    if all(part.folders is not None for part in parts):
        return _by_folders([folder for part in parts for folder in part.folders or []])
    missing = next((part.missing for part in parts if part.missing), "some files state classes and others are in folders")
    return FoundLabels(missing=missing)


def find_labels(names: Sequence[str], tables: Mapping[str, bytes] | None = None, in_archive: bool = False) -> FoundLabels:
    """Return each image's class.

    Args:
        names: Path of each image below the source's root, with forward slashes.
        tables: Content of those of ``LABEL_TABLES`` that the root has. EDM's layout keeps labels in ``dataset.json`` ({"labels":
            [[name, number], ...]}); the folders of that layout only keep listings short. ``manifest.json`` holds {"images":
            [{"file": name, "class_label": number}, ...], "class_names": [name, ...]}.
        in_archive: Whether a folder that all images share is passed over: archives are made of a folder.

    Returns:
        The first table's numbers if there is one (none if EDM's lacks some image), else the first-level folders.
    """
    stated = _find_stated(names, tables or {})
    if stated is not None:
        return stated
    parts = [[part for part in name.split("/") if part not in ("", ".")] for name in names]
    depth = 0
    while in_archive and all(len(part) > depth + 2 for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    outside = next((name for name, part in zip(names, parts, strict=True) if len(part) < depth + 2), None)
    if outside is not None:
        return FoundLabels(missing=f"image {printable(outside)} lies in no folder of a class")
    return _by_folders([part[depth] for part in parts])


def _find_stated(names: Sequence[str], tables: Mapping[str, bytes]) -> FoundLabels | None:
    """Return what a table states, None where folders are to be asked."""
    table = _parse_table(tables.get("dataset.json"))
    if table is not None and "labels" in table:
        try:
            labels = {str(name): label for name, label in table["labels"] or []}
        except (ValueError, TypeError):
            return FoundLabels(missing="the labels in its dataset.json are no list of pairs")
        return _numbers(names, labels) or FoundLabels(missing="its dataset.json gives no number for some image")
    manifest = _parse_table(tables.get("manifest.json"))
    if manifest is None or not isinstance(manifest.get("images"), list):
        return None
    entries = [entry for entry in manifest["images"] if isinstance(entry, dict)]
    return _numbers(names, {str(entry.get("file")): entry.get("class_label") for entry in entries}, manifest.get("class_names"))


def _parse_table(content: bytes | None) -> dict[str, Any] | None:
    try:
        table = None if content is None else json.loads(content)
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def _numbers(names: Sequence[str], labels: Mapping[str, object], class_names: object = None) -> FoundLabels | None:
    """Return the number that a table gives to each image, None where it lacks one."""
    found = [labels.get(name) for name in names]
    if not all(type(label) is int for label in found):
        return None
    return FoundLabels(stated=[str(label) for label in found], are_numbers=True, class_names=class_names)


def _by_folders(folders: list[str]) -> FoundLabels:
    is_one = len(set(folders)) == 1
    return FoundLabels(folders=folders, missing=f"all images lie in one folder, {printable(folders[0])}" if is_one else "")


def sample_key(name: str) -> str:
    """Return what the members of one sample share by WebDataset's rule: the path up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def pair_members(images: Sequence[str], labels: Mapping[str, str]) -> FoundLabels:
    """Return the class of each image of a tar from the members beside it.

    Members of one key (``sample_key``) are a sample, with one image, whose class is that of its ``.cls``, else of its ``.json``.
    Where several images share a key, each must have such a member of its own name but for the extension, as
    "cfg1.5_000.png" and "cfg1.5_000.cls".

    Args:
        images: Name of each image.
        labels: Name of each member that states a class -> that class.

    Raises:
        ValueError: A predicate ("holds ..."), if a name occurs twice, if several images share a key, or several classes.
    """
    names = Counter(images)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"holds {printable(twice)} twice: keep one of them")
    beside: dict[str, dict[str, str]] = {}
    for name, text in labels.items():
        beside.setdefault(sample_key(name), {})[name] = text
    first: dict[str, str] = {}
    shared = {sample_key(name) for name in images if first.setdefault(sample_key(name), name) != name}
    found = []
    for image in images:
        key = sample_key(image)
        members = beside.get(key, {})
        label = _own_label(image, members)
        if label is None and key in shared:
            raise ValueError(_several_message(key, [printable(name) for name in images if sample_key(name) == key]))
        found.append(label or _label_of_sample(image, members))
    num_stated = sum(label is not None for label in found)
    if num_stated == len(images):
        stated = [str(label) for label in found]
        return FoundLabels(stated=stated, are_numbers=all(label.isascii() and label.isdigit() for label in stated))
    if num_stated:
        return FoundLabels(missing=f'{num_stated} of {len(images)} images have a class (a .cls beside it, or .json with "label")')
    return find_labels(images, in_archive=True)


def _own_label(image: str, members: Mapping[str, str]) -> str | None:
    """Return the class by the member that is called as the image but for the extension."""
    stem = image.rpartition(".")[0]
    return next((members[stem + extension] for extension in _LABEL_EXTENSIONS if stem + extension in members), None)


def _label_of_sample(image: str, members: Mapping[str, str]) -> str | None:
    """Return the class by any member of the image's sample."""
    for extension in _LABEL_EXTENSIONS:
        stated = {name: label for name, label in members.items() if name.endswith(extension)}
        if len(set(stated.values())) > 1:
            raise ValueError(
                f"holds several classes of {printable(image)} ({', '.join(map(printable, stated))}): keep one of them"
            )
        if stated:
            return next(iter(stated.values()))
    return None


def _several_message(key: str, images: Sequence[str]) -> str:
    named = ", ".join(images[:2]) + (", ..." if len(images) > 2 else "")
    return (
        f"holds {len(images)} images in one sample ({named}): by WebDataset's rule the key of a sample is the path up to the "
        f"first dot of the file name, here {printable(key)}; keep one image per sample, or replace the other dots in the names"
    )
