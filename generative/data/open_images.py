"""Images by what their path is, as people have them: folders, archives, parquet files, CIFAR, ImageNet, prepared shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generative.core.errors import UserError
from generative.data.archive import ArchiveDataset
from generative.data.base import ImageDataset
from generative.data.cifar10 import BATCH_FOLDER, CIFAR10Dataset
from generative.data.image_folder import ImageFolderDataset
from generative.data.imagenet import ImageNetValidationDataset
from generative.data.imagenet_tars import ImageNetTrainTarDataset, ImageNetValidationTarDataset, is_train_tar, is_validation_tar
from generative.data.parquet import ParquetDataset, find_image_column, find_parquet_files
from generative.data.pixel_batches import CIFAR100Dataset, DownsampledImageNetDataset, find_cifar100, is_downsampled
from generative.data.prepared import PreparedDataset
from metrics.files.shards import read_description
from metrics.sources.listing import is_hidden

ARCHIVES = (".tar", ".zip", ".tar.gz", ".tgz")
ANY_SIZE = 1
"""Side given to data sets of which whole pictures are taken: it has no say in them."""


def open_images(path: Path, split: str | None = None, devkit: Path | None = None) -> ImageDataset:
    """Open a source of whole pictures; nothing is decoded.

    Args:
        path: A file or folder.
        split: ``train`` or ``test``, of what holds several.
        devkit: ImageNet's development kit, for what is numbered by it.

    Raises:
        UserError: If it does not exist, is of no known kind, or its content is not as it should be.
    """
    if not path.exists():
        raise UserError(f"source '{path}' does not exist; check the path")
    kind = next((kind for kind in KINDS if kind.recognises(path)), None)
    if kind is None and path.is_file():
        raise UserError(
            f"source '{path}' is a file of no known kind; give a folder of class folders, or a .parquet, .tar or .zip file"
        )
    kind = kind or (IMAGENET_VALIDATION if devkit is not None else CLASS_FOLDERS)  # a flat folder is known by the kit alone
    if split is not None and not kind.has_splits:
        raise UserError(
            f"--split belongs to CIFAR and downsampled ImageNet, and '{path}' is {kind.name}; name the split's own folder"
        )
    if devkit is not None and not kind.takes_devkit:
        raise UserError(
            f"--devkit numbers the classes of ImageNet's validation images, and '{path}' is {kind.name}; leave it out"
        )
    return kind.opens(path, split or "train", devkit)


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
        name: What it is, for messages.
        recognises: Whether a path is one.
        opens: Opens it, given path, split and development kit.
        has_splits: Whether one path holds training and test images.
        takes_devkit: Whether its classes are numbered by ImageNet's development kit.
    """

    name: str
    recognises: Callable[[Path], bool]
    opens: Callable[[Path, Any, Path | None], ImageDataset]
    has_splits: bool = False
    takes_devkit: bool = False


def _holds(folder: Path, *patterns: str) -> bool:
    found = (file for pattern in patterns for file in folder.glob(pattern)) if folder.is_dir() else iter(())
    return any(not is_hidden(file.name) for file in found)


def _is_cifar10(path: Path) -> bool:
    return (path / BATCH_FOLDER).is_dir() or (path / "data_batch_1").is_file() or _holds(path, "cifar10-*.parquet")


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet" if path.is_file() else _holds(path, "*.parquet")


def _is_archive(path: Path) -> bool:
    if path.is_file():
        return path.name.lower().endswith(ARCHIVES)
    # Beside class folders an archive is what they were unpacked from.
    has_folders = path.is_dir() and any(entry.is_dir() and not is_hidden(entry.name) for entry in path.iterdir())
    return not has_folders and _holds(path, *(f"*{end}" for end in ARCHIVES))


def _open_parquet(path: Path, split: Any, devkit: Path | None) -> ImageDataset:
    column = find_image_column(find_parquet_files(path)[0])
    return ParquetDataset(path, ANY_SIZE, image_column=column, verify=False)


def _open_validation(path: Path, split: Any, devkit: Path | None) -> ImageDataset:
    if devkit is None:
        raise UserError(
            f"'{path}' holds ImageNet's validation images, whose classes the development kit states; add --devkit "
            "ILSVRC2012_devkit_t12.tar.gz"
        )
    opens = ImageNetValidationTarDataset if path.is_file() else ImageNetValidationDataset
    return opens(path, devkit, ANY_SIZE, verify=False)


CLASS_FOLDERS = Kind(
    "a folder of class folders", Path.is_dir, lambda path, split, devkit: ImageFolderDataset(path, ANY_SIZE, verify=False)
)
IMAGENET_VALIDATION = Kind("ImageNet's validation images", is_validation_tar, _open_validation, takes_devkit=True)
KINDS = (
    Kind(
        "a folder of prepared shards",
        lambda path: read_description(path) is not None,
        lambda path, split, devkit: PreparedDataset(path, ANY_SIZE),
    ),
    Kind(
        "CIFAR-10",
        _is_cifar10,
        lambda path, split, devkit: CIFAR10Dataset(path, split, cache=False, verify=False),
        has_splits=True,
    ),
    Kind(
        "CIFAR-100",
        lambda path: find_cifar100(path) is not None,
        lambda path, split, devkit: CIFAR100Dataset(path, split),
        has_splits=True,
    ),
    Kind(
        "downsampled ImageNet",
        is_downsampled,
        lambda path, split, devkit: DownsampledImageNetDataset(path, split, devkit),
        has_splits=True,
        takes_devkit=True,
    ),
    Kind("parquet", _is_parquet, _open_parquet),
    Kind(
        "ImageNet's training archive",
        is_train_tar,
        lambda path, split, devkit: ImageNetTrainTarDataset(path, ANY_SIZE, verify=False),
    ),
    IMAGENET_VALIDATION,
    Kind("an archive", _is_archive, lambda path, split, devkit: ArchiveDataset(path, ANY_SIZE, verify=False)),
)
"""The first that recognises a path opens it; else it is a folder of class folders."""
