"""Which split of a data set a file belongs to, by its name: training and test images in one score are an accident.

The words are those that Hugging Face's ``datasets`` looks for and their kin, as whole words in any case: in the file name
(``train-00000-of-00001.parquet``, ``imagenet_val_0001.tar``), else in the nearest folder on its way that has one
(``default/train/0000.parquet``).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "minival"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"),
    "trainval": ("trainval",),
    "extra": ("extra",),
    "unlabeled": ("unlabeled", "unlabelled", "unsupervised"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # "imagenetTrain2012" is imagenet and Train.


def split_of(name: str) -> str | None:
    """Return the split that a word of a name states ("imagenet_val_0001.tar" -> "validation"), None without or with several."""
    words = (word.lower().removesuffix("set") for word in _WORD.findall(name))
    found = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def group_by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the relative paths of each split; "" holds those that state none."""
    groups: dict[str, list[str]] = {}
    for name in names:
        splits = (split_of(part) for part in reversed(PurePosixPath(name).parts))
        groups.setdefault(next((split for split in splits if split is not None), ""), []).append(name)
    return groups


def mixed_splits(names: Iterable[str]) -> dict[str, list[str]] | None:
    """Return the files of each split, sorted by split, if there are several, else None."""
    groups = {split: files for split, files in group_by_split(names).items() if split}
    return dict(sorted(groups.items())) if len(groups) > 1 else None


def describe_splits(groups: Mapping[str, Sequence[str]], root: object) -> str:
    """Return what to name for each split alone, joined by " or ": its file, its folder, or a pattern of its files.

    Args:
        groups: The files of each split, relative to the data set's folder.
        root: That folder.
    """
    places = []
    for split, files in groups.items():
        others = [file for other, theirs in groups.items() if other != split for file in theirs]
        places.append(f"{root}/{_place_of(files, others)}")
    return " or ".join(places)


def _place_of(files: Sequence[str], others: Sequence[str]) -> str:
    if len(files) == 1:
        return files[0]
    folder = posixpath.commonpath(posixpath.dirname(file) for file in files)
    if folder and not any(other.startswith(f"{folder}/") for other in others):
        return folder
    start = posixpath.commonprefix([file.removeprefix(f"{folder}/") for file in files]).rstrip("0123456789")
    return posixpath.join(folder, f"{start}*")


def describe_split_folders(counts: Mapping[str, int]) -> str | None:
    """Return what to know of images that lie in folders named as splits, or None.

    Args:
        counts: Folder of images, relative to the data set's, with forward slashes -> number of images in it.
    """
    splits = mixed_splits(counts)
    if splits is None:
        return None
    named = [f"{min(folders, key=len)} ({sum(counts[folder] for folder in folders)} images)" for folders in splits.values()]
    return f"folders named as splits are scored together, {' and '.join(named)}: if they are no classes, name one of them."
