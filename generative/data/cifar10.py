"""CIFAR-10 from parquet files (Hugging Face layout) or from the standard python batches."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generative.core.class_names import list_names
from generative.core.errors import UserError
from generative.data.base import ImageDataset, hash_files, hash_parts
from generative.data.batch_files import read_batch
from generative.data.decode import decode_image, image_to_tensor
from generative.data.parquet import EncodedImages, find_image_column
from generative.data.transforms import center_crop

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NATIVE_SIZE = 32
"""Side of the images in pixels."""

BATCH_FOLDER = "cifar-10-batches-py"
OFFICIAL_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""MD5 sums of the files published at cs.toronto.edu/~kriz/cifar.html, as torchvision checks them."""


class CIFAR10Dataset(ImageDataset):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in 10 classes.

    Two layouts are read. Batches: ``cifar-10-batches-py/data_batch_1`` to ``_5`` and ``test_batch`` with the original pixels
    (pickle files, of which nothing is executed; see ``batch_files``). Parquet: ``cifar10-train.parquet`` or
    ``train-*.parquet``; when its images are JPEG the pixels are not the original ones, so say "CIFAR-10 (JPEG)" beside
    figures.

    Args:
        root: The folder that holds either layout, or one parquet file.
        split: ``train`` or ``test``.
        image_size: Side in pixels; other than 32 is made by bicubic resizing.
        layout: ``batches``, ``parquet``, or ``auto``: batches if present, else parquet.
        cache: Decode all images at start and keep them in memory (about 150 MB for the training split).
        verify: Read every image at start; None means below 20,000 images. Decoding into the cache also fails
            on corrupt ones.
        require_official: Refuse batches whose MD5 sums are not those of the published files.

    Attributes:
        is_official: Whether the pixels come from the published batches (their MD5 sums agree).

    Raises:
        UserError: If no layout is found or a file is damaged, refused or mislabelled.
    """

    usual_classes = 10

    def __init__(
        self,
        root: str | Path,
        split: Literal["train", "test"] = "train",
        image_size: int = NATIVE_SIZE,
        layout: Literal["auto", "batches", "parquet"] = "auto",
        cache: bool = True,
        verify: bool | None = None,
        require_official: bool = False,
    ) -> None:
        if split not in ("train", "test"):
            raise UserError(f"split must be 'train' or 'test', got {split!r}")
        if layout not in ("auto", "batches", "parquet"):
            raise UserError(f"layout must be 'auto', 'batches' or 'parquet', got {layout!r}")
        place = Path(root).expanduser()
        files = _find_files(place, split, layout)
        self._encoded: EncodedImages | None = None
        self._planes: np.ndarray | None = None  # (N, 3072) uint8
        if files[0].suffix == ".parquet":
            self.is_official = False
            self._encoded = EncodedImages(files, find_image_column(files[0]), "label")
            self.image_path = files[0] if len(files) == 1 else None
            labels, names = self._encoded.labels, self._encoded.class_names
            if names and tuple(names) != CLASS_NAMES:
                raise UserError(
                    f"'{files[0]}' names its classes {list_names(names)}, which are not CIFAR-10's; use ParquetDataset"
                )
        else:
            self.is_official = all(_md5(file) == OFFICIAL_MD5[file.name] for file in files)
            parts = [read_batch(file) for file in files]
            self._planes = np.concatenate([planes for planes, _ in parts])
            labels = torch.from_numpy(np.concatenate([part_labels for _, part_labels in parts]))
            self._files, self._ends = files, np.cumsum([len(planes) for planes, _ in parts])
        if require_official and not self.is_official:
            raise UserError(
                f"'{files[0].parent}' does not hold the published CIFAR-10 batches (MD5 differs); download them again"
            )
        if len(labels) == 0:
            raise UserError(f"'{files[0]}' has no images; use an unmodified copy of CIFAR-10")
        super().__init__(
            labels=labels,
            num_classes=len(CLASS_NAMES),
            image_size=image_size,
            fingerprint=hash_parts("cifar10", image_size, hash_files(files)),
            class_names=CLASS_NAMES,
        )
        self.prepare(cache=cache, verify=verify)

    def load_image(self, index: int) -> Tensor:
        """One image, (3, H, W) uint8."""
        if self._planes is not None:
            pixels = torch.from_numpy(self._planes[index].reshape(3, NATIVE_SIZE, NATIVE_SIZE).copy())  # (3, 32, 32)
            if self.image_size == NATIVE_SIZE:
                return pixels
            image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        else:
            assert self._encoded is not None
            image = decode_image(self._encoded.read(index), self.source_name(index))
        return image_to_tensor(image if image.size == (self.image_size,) * 2 else center_crop(image, self.image_size))

    def source_name(self, index: int) -> str:
        """File and row of an image."""
        if self._encoded is not None:
            return self._encoded.name(index)
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        return f"{self._files[chunk]} row {index - (int(self._ends[chunk - 1]) if chunk else 0)}"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _find_files(root: Path, split: str, layout: str) -> list[Path]:
    """The files of a split, batches before parquet."""
    if not root.exists():
        raise UserError(f"CIFAR-10 root '{root}' does not exist; check the path")
    if root.is_file():
        if root.suffix != ".parquet" or layout == "batches":
            raise UserError(f"CIFAR-10 root '{root}' must be a folder or a .parquet file")
        return [root]
    names = [name for name in OFFICIAL_MD5 if name.startswith("data_batch" if split == "train" else "test_batch")]
    if layout in ("auto", "batches"):
        for folder in (root / BATCH_FOLDER, root):
            present = [name for name in names if (folder / name).is_file()]
            if present and len(present) < len(names):
                missing = sorted(set(names) - set(present))
                raise UserError(f"CIFAR-10 folder '{folder}' lacks {', '.join(missing)}; unpack cifar-10-python.tar.gz again")
            if present:
                return [folder / name for name in names]
    if layout in ("auto", "parquet"):
        for folder in (root, root / "plain_text", root / "data"):
            for pattern in (f"cifar10-{split}.parquet", f"{split}-*.parquet"):
                if files := sorted(folder.glob(pattern)):
                    return files
    raise UserError(
        f"no CIFAR-10 {split} split (layout: {layout}) in '{root}'; expected {BATCH_FOLDER}/{names[0]}, "
        f"cifar10-{split}.parquet or {split}-*.parquet"
    )
