"""Images that ``generative data prepare`` wrote into shards, read from any place with memory that does not grow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from generative.data.base import ImageDataset, hash_parts
from generative.data.decode import decode_image, image_to_tensor
from generative.data.transforms import center_crop
from metrics.files.shards import ShardIndex, ShardReader, read_index


class PreparedDataset(ImageDataset):
    """Images in the shards of ``generative data prepare``, read at their offsets in any order.

    Files of any other kind that training takes are decoded and cropped at every visit; here that was done once. Memory holds
    the index, 24 bytes an image. ``fid-score`` takes the folder as well.

    Args:
        folder: The folder of the shards.
        image_size: Side of the square images in pixels; None for that of the shards. Others are made by ADM's resize and
            centre crop, and must be given for shards of whole pictures (``--crop none``).
        num_classes: Refuse shards of another number of classes; None takes as many as there are.
        cache: Decode all images at start and keep them in memory.
        verify: Decode every image at start; None does not: all were decoded when they were prepared, shards are looked at by
            their size here, and ``generative data check`` reads them.

    Raises:
        UserError: If the folder holds no prepared images, a shard is missing or of another size, or a number does not fit.
    """

    def __init__(
        self,
        folder: str | Path,
        image_size: int | None = None,
        num_classes: int | None = None,
        cache: bool = False,
        verify: bool | None = None,
    ) -> None:
        self.folder = self.image_path = Path(folder).expanduser()
        self.index = open_index(self.folder)
        classes = len(self.index.class_names)
        if num_classes is not None and classes != num_classes:
            raise UserError(
                f"'{self.folder}' has {classes} classes, and num_classes of the data is {num_classes}; leave num_classes out to "
                "take as many as there are"
            )
        size = self.index.image_size if image_size is None else image_size
        if size is None:
            raise UserError(f"the images of '{self.folder}' are of many sizes (--crop none); give image_size")
        self._reader = ShardReader(self.folder, self.index)
        sums = [shard.sha256 for shard in self.index.shards]
        super().__init__(
            labels=torch.from_numpy(self.index.labels.copy()),
            num_classes=classes,
            image_size=size,
            fingerprint=hash_parts("prepared", size, self.index.labels.tobytes(), *self.index.class_names, *sums),
            class_names=self.index.class_names,
        )
        source = self.index.source
        ids = source.get("class_ids") if isinstance(source, dict) else None
        if isinstance(ids, list) and len(ids) == classes and all(isinstance(each, str) for each in ids):
            self.class_ids = ids
        if self.index.left_out:
            self.left_out = {"that could not be read when the shards were made": len(self.index.left_out)}
        self.prepare(cache=cache, verify=bool(verify))

    @property
    def has_pixels(self) -> bool:
        """Whether shards hold pixels of the size that is asked for."""
        return self.index.encoding == "raw" and self.index.image_size == self.image_size

    def load_image(self, index: int) -> Tensor:
        """One image, (3, H, W) uint8."""
        if self.has_pixels:
            return self._pixels([index])[0]
        picture = self.load_picture(index)
        return image_to_tensor(picture if picture.size == (self.image_size,) * 2 else center_crop(picture, self.image_size))

    def images(self, indices: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Several images, (B, 3, H, W) uint8; pixels go straight from the shards into the batch."""
        if self.has_pixels and self._cached is None:
            return self._pixels(torch.as_tensor(indices, dtype=torch.int64).tolist())
        return super().images(indices)

    def read_encoded(self, index: int) -> bytes | None:
        """The content of an image's file; None for shards of pixels."""
        return None if self.index.encoding == "raw" else self._read(index)

    def load_picture(self, index: int) -> Image.Image:
        """The picture as the shard has it, RGB."""
        content = self.read_encoded(index)
        if content is None:
            return Image.fromarray(self._pixels([index])[0].permute(1, 2, 0).contiguous().numpy())
        return decode_image(content, self.source_name(index))

    def source_name(self, index: int) -> str:
        """Shard and place of an image."""
        return self._reader.name(index)

    def _read(self, index: int) -> bytes:
        try:
            return self._reader.read(index)
        except ValueError as error:
            raise UserError(str(error).rstrip(".")) from error

    def _pixels(self, indices: Sequence[int]) -> Tensor:
        side = self.index.image_size
        assert side is not None
        images = torch.empty(len(indices), 3, side, side, dtype=torch.uint8)  # (B, 3, H, W)
        array = images.numpy()
        for row, index in enumerate(indices):
            try:
                self._reader.read_into(index, array[row].data)
            except ValueError as error:
                raise UserError(str(error).rstrip(".")) from error
        return images


def open_index(folder: Path) -> ShardIndex:
    """Read the index of a folder of shards.

    Raises:
        UserError: If it holds no prepared images, is damaged, or a shard is missing or of another size.
    """
    try:
        return read_index(folder)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error).rstrip(".")) from error
