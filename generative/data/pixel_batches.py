"""CIFAR-100 and downsampled ImageNet: batches of small images as they are published, pixels and labels."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generative.core.class_names import list_names
from generative.core.errors import UserError
from generative.data.base import ImageDataset, hash_files, hash_parts
from generative.data.batch_files import read_batch, read_npz_batch
from generative.data.decode import image_to_tensor
from generative.data.imagenet import read_devkit
from generative.data.transforms import center_crop
from metrics.files import safe_pickle

CIFAR100_FOLDER = "cifar-100-python"
IMAGENET_CLASSES = 1000
VALIDATION_BATCHES = ("val_data.npz", "val_data")
ZIP_MAGIC, PICKLE_MAGICS = b"PK", (b"\x80", b"(")
"""First bytes of npz files; of pickles, those of protocols 2 and later and a dict's in protocol 0."""
_TRAIN_BATCH = re.compile(r"train_data_batch_(\d+)(\.npz)?")
Split = Literal["train", "test"]


class PixelBatchesDataset(ImageDataset):
    """Images of some batch files; a base class.

    Args:
        files: The files, in order.
        num_classes: Number of classes.
        class_names: Names in the order of the labels.
        image_size: Side of the images in pixels; None for that of the files, others by ADM's resize and centre crop.
        cache: Decode all images at start and keep them in memory.

    Raises:
        UserError: If a file is damaged, files are of several sizes, or a label is out of range.
    """

    def __init__(
        self,
        files: Sequence[Path],
        num_classes: int,
        class_names: Sequence[str],
        image_size: int | None,
        cache: bool,
    ) -> None:
        parts = [self.read_file(file) for file in files]
        widths = {planes.shape[1] for planes, _ in parts}
        if len(widths) > 1:
            raise UserError(f"'{files[0].parent}' mixes images of several sizes; keep one of them in a folder")
        self.native_size = math.isqrt(widths.pop() // 3)
        self._files, self._planes = list(files), [planes for planes, _ in parts]
        self._ends = np.cumsum([len(planes) for planes, _ in parts])
        size = self.native_size if image_size is None else image_size
        super().__init__(
            labels=torch.from_numpy(self.number_classes(np.concatenate([labels for _, labels in parts]))),
            num_classes=num_classes,
            image_size=size,
            fingerprint=hash_parts(type(self).__name__, size, *class_names, hash_files(files)),
            class_names=class_names,
        )
        self.prepare(cache=cache, verify=False)  # pixels cannot be corrupt but by their number, which is checked

    @abstractmethod
    def read_file(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """A file's pixels (N, 3 S^2) uint8, and its labels (N,) int64."""

    @abstractmethod
    def number_classes(self, labels: np.ndarray) -> np.ndarray:
        """The labels of the data set, (N,) int64, for those of the files."""

    def _locate(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - (int(self._ends[part - 1]) if part else 0)

    def load_picture(self, index: int) -> Image.Image:
        """The picture in the files' own size."""
        part, row = self._locate(index)
        planes = self._planes[part][row].reshape(3, self.native_size, self.native_size)
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    def load_image(self, index: int) -> Tensor:
        """One image, (3, H, W) uint8."""
        picture = self.load_picture(index)
        return image_to_tensor(picture if picture.width == self.image_size else center_crop(picture, self.image_size))

    def source_name(self, index: int) -> str:
        """File and row of an image."""
        part, row = self._locate(index)
        return f"{self._files[part]} row {row}"


class CIFAR100Dataset(PixelBatchesDataset):
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels in 100 classes, from the python version.

    Args:
        root: The folder that holds ``cifar-100-python``, or that folder: ``train``, ``test`` and ``meta``, pickles of which
            nothing is executed.
        split: ``train`` or ``test``.
        image_size: Side in pixels; other than 32 is made by bicubic resizing.
        cache: Decode all images at start and keep them in memory.

    Raises:
        UserError: If a file is missing, damaged or refused.
    """

    usual_classes = 100

    def __init__(self, root: str | Path, split: Split = "train", image_size: int | None = None, cache: bool = False) -> None:
        if split not in ("train", "test"):
            raise UserError(f"split must be 'train' or 'test', got {split!r}")
        folder = find_cifar100(Path(root).expanduser())
        if folder is None:
            raise UserError(f"no CIFAR-100 in '{root}'; expected {CIFAR100_FOLDER}/{split} and {CIFAR100_FOLDER}/meta")
        names = read_class_names(folder / "meta")
        super().__init__([folder / split], len(names), names, image_size, cache)

    def read_file(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and fine labels of a pickle."""
        return read_batch(path, "fine_labels")

    def number_classes(self, labels: np.ndarray) -> np.ndarray:
        """The files' labels."""
        return labels


def find_cifar100(root: Path) -> Path | None:
    """The folder of CIFAR-100's three files in or at a path, None if it is not there."""
    places = (root / CIFAR100_FOLDER, root)
    return next((place for place in places if all((place / name).is_file() for name in ("train", "test", "meta"))), None)


def read_class_names(path: Path) -> list[str]:
    """The names of CIFAR-100's fine classes in the order of their labels.

    Raises:
        UserError: If the file is damaged, refused or holds none.
    """
    try:
        meta = safe_pickle.loads(path.read_bytes(), str(path), encoding="bytes")
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); unpack cifar-100-python.tar.gz again") from error
    names = meta.get(b"fine_label_names", meta.get("fine_label_names")) if isinstance(meta, dict) else None
    if not isinstance(names, list) or not names:
        raise UserError(f"'{path}' holds no 'fine_label_names'; unpack cifar-100-python.tar.gz again")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]


class DownsampledImageNetDataset(PixelBatchesDataset):
    """ImageNet at 16, 32 or 64 pixels (Chrabaszcz et al., arXiv:1707.08819), npz files or pickles of which nothing is executed.

    The files number classes as the development kit does, from 1. With the kit they become the labels that everybody uses, the
    places of the sorted WordNet ids; without, they keep the files' order and have no names.

    Npz files that are not compressed are mapped, and take no memory; others and pickles (which at 64 pixels are too large to be
    read) are held in memory whole: prepare them once.

    Args:
        root: The folder of ``train_data_batch_1`` to ``_10`` or ``val_data``, with or without ``.npz``.
        split: ``train``, or ``test`` for the validation images.
        devkit: Folder of the development kit; see above.
        image_size: Side in pixels; None for that of the files.
        cache: Decode all images at start and keep them in memory.

    Raises:
        UserError: If a file is missing, damaged or refused, or a label is not the kit's.
    """

    usual_classes = 1000

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        devkit: str | Path | None = None,
        image_size: int | None = None,
        cache: bool = False,
    ) -> None:
        if split not in ("train", "test"):
            raise UserError(f"split must be 'train' or 'test', got {split!r}")
        folder = Path(root).expanduser()
        files = find_downsampled(folder, split)
        self._kit = None if devkit is None else read_devkit(Path(devkit).expanduser())
        wnids = [] if self._kit is None else self._kit.wnids
        super().__init__(files, len(wnids) or IMAGENET_CLASSES, wnids, image_size, cache)
        if self._kit is None:
            self.notices.append(
                f"classes of '{folder}' keep the order of its files, which is not that of ImageNet's labels: give the "
                "development kit"
            )

    def read_file(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and class numbers of an npz file or a pickle."""
        return read_npz_batch(path) if path.suffix == ".npz" else read_batch(path, side=None)

    def number_classes(self, labels: np.ndarray) -> np.ndarray:
        """Labels for the files' class numbers."""
        count = IMAGENET_CLASSES if self._kit is None else len(self._kit.wnids)
        if labels.min() < 1 or labels.max() > count:
            raise UserError(f"class numbers of downsampled ImageNet are 1 to {count}, got {labels.min()} to {labels.max()}")
        return labels - 1 if self._kit is None else self._kit.label_of[labels]


def is_downsampled(root: Path) -> bool:
    """Whether a folder holds batches of downsampled ImageNet, by their names and how they begin."""
    if not root.is_dir():
        return False
    files = (file for file in root.iterdir() if _TRAIN_BATCH.fullmatch(file.name) or file.name in VALIDATION_BATCHES)
    return any(file.is_file() and _begins_as_batch(file) for file in files)


def _begins_as_batch(file: Path) -> bool:
    """Whether a file begins as an npz file or a pickle does; one that cannot be read is taken for a batch, to be named then."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(ZIP_MAGIC)).startswith(ZIP_MAGIC if file.suffix == ".npz" else PICKLE_MAGICS)
    except OSError:
        return True


def find_downsampled(root: Path, split: str) -> list[Path]:
    """The files of a split of downsampled ImageNet, in the order of their numbers.

    Raises:
        UserError: If there are none, or a number is missing.
    """
    if not root.is_dir():
        raise UserError(f"downsampled ImageNet '{root}' is no folder; give that of train_data_batch_1, ... or val_data")
    if split == "test":
        files = [root / name for name in VALIDATION_BATCHES if (root / name).is_file()][:1]
    else:
        found = {int(match[1]): file for file in root.iterdir() if (match := _TRAIN_BATCH.fullmatch(file.name))}
        missing = [number for number in range(1, max(found, default=0) + 1) if number not in found]
        if missing:
            raise UserError(f"'{root}' lacks {list_names([f'train_data_batch_{number}' for number in missing])}; unpack it again")
        files = [found[number] for number in sorted(found)]
    if not files:
        expected = "val_data" if split == "test" else "train_data_batch_1"
        raise UserError(f"no {split} split of downsampled ImageNet in '{root}'; expected {expected} or {expected}.npz, ...")
    return files
