"""Data sets whose statistics clean-fid publishes, by name (its README of 0.1.35). Nothing heavy is imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Split, and what stands for the resolution, of statistics that ``cleanfid.fid.make_custom_stats`` made.
CUSTOM_SPLIT = "custom"
CUSTOM_RESOLUTION = "na"
#: clean-fid's mode -> the protocol that computes it.
MODES = {"clean": "clean", "legacy_pytorch": "pytorch-fid", "legacy_tensorflow": "tensorflow"}
_DEFAULT_SPLIT = "train"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class NamedDataset:
    """What clean-fid publishes of a data set.

    Args:
        resolutions: Sides in pixels.
        splits: Names of the parts.
    """

    resolutions: tuple[int, ...]
    splits: tuple[str, ...] = ("train",)


DATASETS: dict[str, NamedDataset] = {
    "cifar10": NamedDataset((32,), ("train", "test")),
    "ffhq": NamedDataset((1024, 256), ("trainval", "trainval70k")),
    "lsun_church": NamedDataset((256,), ("train", "trainfull")),
    "lsun_horse": NamedDataset((256,), ("train", "trainfull")),
    "lsun_cat": NamedDataset((256,), ("train", "trainfull")),
    "afhq_cat": NamedDataset((512,)),
    "afhq_dog": NamedDataset((512,)),
    "afhq_wild": NamedDataset((512,)),
    "brecahad": NamedDataset((512,)),
    "metfaces": NamedDataset((1024,)),
    "horse2zebra": NamedDataset((256,), ("test",)),
    "cat2dog": NamedDataset((256,), ("test",)),
}


@dataclass(frozen=True)
class NamedReference:
    """Published statistics, or custom ones, that a user names.

    Args:
        name: Name of the data set.
        split: Name of the part.
        resolution: Side in pixels, or "na" of custom statistics.
    """

    name: str
    split: str
    resolution: int | str

    @property
    def is_published(self) -> bool:
        """Whether clean-fid publishes these statistics."""
        known = DATASETS.get(self.name)
        return known is not None and self.split in known.splits and self.resolution in known.resolutions


def resolve_reference(name: str, split: str | None, resolution: int | None) -> NamedReference:
    """Return the statistics that a name stands for, with clean-fid's defaults where the data set leaves no choice.

    Args:
        name: A key of ``DATASETS``, or the name of custom statistics or of files of one's own.
        split: The part; None takes ``train``, or the only one there is, or custom statistics where the name is not published.
        resolution: Side in pixels; None takes the only one there is.

    Raises:
        ValueError: If a name is no file name, or there is a choice and nothing says which.
    """
    for flag, text in (("--dataset", name), ("--dataset-split", split or _DEFAULT_SPLIT)):
        if not _NAME.fullmatch(text):
            raise ValueError(f"{flag} must be letters, digits, dots, dashes and underscores, got {text!r}.")
    name = name.lower()
    known = DATASETS.get(name)
    if split is None:
        split = CUSTOM_SPLIT if known is None else _only("split", known.splits, name, _DEFAULT_SPLIT)
    split = split.lower()
    if split == CUSTOM_SPLIT:
        if resolution is not None:
            raise ValueError(f"custom statistics of clean-fid have no resolution, got --dataset-res {resolution}: leave it out.")
        return NamedReference(name, split, CUSTOM_RESOLUTION)
    if resolution is None:
        if known is None:
            raise ValueError(
                f"--dataset {name} with --dataset-split {split} needs --dataset-res, the side of its images in pixels: clean-fid "
                f"publishes statistics of {', '.join(DATASETS)} only."
            )
        resolution = int(_only("res", tuple(map(str, known.resolutions)), name))
    return NamedReference(name, split, resolution)


def _only(what: str, choices: tuple[str, ...], name: str, preferred: str | None = None) -> str:
    if preferred in choices:
        return preferred
    if len(choices) > 1:
        raise ValueError(f"clean-fid has {name} as {' and '.join(choices)}: choose one with --dataset-{what}.")
    return choices[0]


def published(name: str) -> str:
    """Return in words what clean-fid publishes of a data set, or of which, where it does not know the name."""
    known = DATASETS.get(name)
    if known is None:
        return f"statistics of {', '.join(DATASETS)} only"
    return f"{name} with split {' or '.join(known.splits)} at {' or '.join(map(str, known.resolutions))} px"


def dataset_lines() -> list[str]:
    """Return one line for each data set, for ``--help``."""
    width = max(map(len, DATASETS))
    return [
        f"  {name:<{width}}  split {' or '.join(known.splits)}, {' or '.join(map(str, known.resolutions))} px"
        for name, known in DATASETS.items()
    ]
