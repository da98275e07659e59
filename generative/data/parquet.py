"""Parquet files in the Hugging Face layout: a column of encoded images and a column of integer labels."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from generative.core.class_names import list_names
from generative.core.errors import UserError
from generative.data.arrow_files import map_column
from generative.data.base import ImageDataset, hash_files, hash_parts
from generative.data.decode import image_to_tensor, verify_image
from generative.data.transforms import center_crop
from metrics.sources.listing import is_hidden
from metrics.sources.parquet import is_joined_parquet
from metrics.sources.splits import describe_splits, mixed_splits

if TYPE_CHECKING:
    import pyarrow as pa


MAX_MEMORY_BYTES = 256 * 2**20
"""Parquet files up to this size together are read into memory, larger ones are mapped from the cache folder."""


class EncodedImages:
    """Encoded image files and labels of some parquet files, read from any place.

    Of files up to ``MAX_MEMORY_BYTES`` together the images stay in memory. Of larger ones they are written once as Arrow files
    into the cache folder and mapped (``arrow_files``), so that memory does not grow with the data and processes share it.

    Args:
        paths: Parquet files, in order.
        image_column: Column of ``struct<bytes: binary, path: string>`` (Hugging Face) or plain ``binary``.
        label_column: Column of integers.

    Attributes:
        labels: (N,) int64.
        class_names: From the Hugging Face metadata where present, else empty.

    Raises:
        UserError: If a file is unreadable, a column is missing or of another type, an image or label is null, or files name
            different classes.
    """

    def __init__(self, paths: Sequence[Path], image_column: str, label_column: str) -> None:
        self._arguments = (tuple(paths), image_column, label_column)
        self.is_mapped = sum(path.stat().st_size for path in paths if path.is_file()) > MAX_MEMORY_BYTES
        self._chunks: list[pa.Array] = []
        self._locations: list[tuple[Path, int]] = []  # of each chunk: its file and the row where it starts
        labels: list[np.ndarray] = []
        self.class_names: list[str] = []
        for path in paths:
            table = _read_columns(path, image_column, label_column, self.is_mapped)
            labels.append(table.labels)
            if self.class_names and table.class_names not in ([], self.class_names):
                raise UserError(
                    f"'{path}' names its classes {list_names(table.class_names)}, and a file before it "
                    f"{list_names(self.class_names)}: their labels do not mean the same; give files of one data set"
                )
            self.class_names = self.class_names or table.class_names
            row = 0
            for chunk in table.chunks:
                if len(chunk):
                    self._chunks.append(chunk)
                    self._locations.append((path, row))
                row += len(chunk)
        self._ends = np.cumsum([len(chunk) for chunk in self._chunks], dtype=np.int64)
        self.labels = torch.from_numpy(np.concatenate(labels))  # (N,)

    def __getstate__(self) -> Any:
        # A process that is started afresh maps the files itself: a pickled map would be a copy of its whole content.
        return self._arguments if self.is_mapped else self.__dict__

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple):
            self.__init__(*state)  # type: ignore[misc]
        else:
            self.__dict__.update(state)

    def _locate(self, index: int) -> tuple[int, int]:
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        return chunk, index - (int(self._ends[chunk - 1]) if chunk else 0)

    def read(self, index: int) -> bytes:
        """The bytes of one image file."""
        chunk, offset = self._locate(index)
        return self._chunks[chunk][offset].as_py()

    def name(self, index: int) -> str:
        """File and row of an image."""
        chunk, offset = self._locate(index)
        path, row = self._locations[chunk]
        return f"{path} row {row + offset}"


class _Columns(NamedTuple):
    chunks: list[pa.Array]
    labels: np.ndarray
    class_names: list[str]


def _read_columns(path: Path, image_column: str, label_column: str, is_mapped: bool) -> _Columns:
    """Read the two columns of one file, or map the images, and check their types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if is_joined_parquet(path, file.metadata):
                raise UserError(
                    f"parquet file '{path}' holds another one before it, as files joined by cat do; give each by itself"
                )
            for column in (image_column, label_column):
                if column not in schema.names:
                    raise UserError(f"parquet file '{path}' has no column '{column}'; its columns are {', '.join(schema.names)}")
            image_type, label_type = schema.field(image_column).type, schema.field(label_column).type
            is_struct = pa.types.is_struct(image_type)
            if is_struct and image_type.get_field_index("bytes") < 0:
                raise UserError(f"column '{image_column}' of '{path}' has no 'bytes' (its type is {image_type})")
            stored = image_type.field("bytes").type if is_struct else image_type
            if not (pa.types.is_binary(stored) or pa.types.is_large_binary(stored)):
                raise UserError(f"column '{image_column}' of '{path}' must hold image bytes, but its type is {image_type}")
            if not pa.types.is_integer(label_type):
                raise UserError(f"column '{label_column}' of '{path}' must hold integers, but its type is {label_type}")
            stored_column = f"{image_column}.bytes" if is_struct else image_column
            table = file.read(columns=[label_column] if is_mapped else [stored_column, label_column])
    except (pa.ArrowException, OSError) as error:
        detail = str(error).splitlines()[0]
        raise UserError(f"parquet file '{path}' cannot be read ({detail}); remove or replace it") from error
    if is_mapped:
        chunks = map_column(path, stored_column)
    else:
        # flatten() keeps a null struct as null bytes, so that one check covers both.
        chunks = [chunk.flatten()[0] if is_struct else chunk for chunk in table.column(image_column).chunks]
    _refuse_nulls(path, image_column, [chunk.is_null() for chunk in chunks])
    label_chunks = table.column(label_column).chunks
    _refuse_nulls(path, label_column, [chunk.is_null() for chunk in label_chunks])
    labels = [chunk.to_numpy(zero_copy_only=False).astype(np.int64) for chunk in label_chunks]
    return _Columns(chunks, np.concatenate(labels or [np.empty(0, np.int64)]), _class_names(schema.metadata, label_column))


def _refuse_nulls(path: Path, column: str, masks: Sequence[pa.Array]) -> None:
    rows = np.flatnonzero(np.concatenate([np.empty(0, bool), *(mask.to_numpy(zero_copy_only=False) for mask in masks)]))
    if len(rows):
        raise UserError(f"column '{column}' of '{path}' is empty in row {rows[0]}; remove the row or fill it in")


def _class_names(metadata: dict[bytes, bytes] | None, label_column: str) -> list[str]:
    """Names of the ``ClassLabel`` feature that the ``datasets`` library stores with its files, if any."""
    try:
        info: Any = json.loads((metadata or {})[b"huggingface"])
        names = info["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def find_parquet_files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """Resolve a file, a folder, a glob pattern or a list of these to parquet files, sorted by name within each.

    Raises:
        UserError: If nothing is found, or a folder or pattern mixes splits.
    """
    if not isinstance(path, (str, Path)):
        return [file for part in path for file in find_parquet_files(part)]
    place = Path(path).expanduser()
    if place.is_dir():
        root, files = place, [file for file in sorted(place.glob("*.parquet")) if not is_hidden(file.name)]
    else:
        files = [place] if place.exists() else [Path(match) for match in sorted(glob.glob(str(place), recursive=True))]
        root = Path(os.path.commonpath([file.parent for file in files])) if files else place
    splits = mixed_splits(file.relative_to(root).as_posix() for file in files)
    if splits is not None:
        raise UserError(
            f"'{place}' mixes the splits {' and '.join(splits)}; give {describe_splits(splits, root)} instead, or a list to take "
            "several"
        )
    if not files:
        raise UserError(f"no parquet file at '{place}'; check the path")
    return files


def find_image_column(path: Path) -> str:
    """``img`` as the hub's CIFAR names it if present, else ``image``; files that cannot be read are reported by their reader."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return "img" if "img" in pq.read_schema(path).names else "image"
    except (pa.ArrowException, OSError):
        return "image"


class ParquetDataset(ImageDataset):
    """Images in parquet files of the Hugging Face layout, decoded when asked for.

    Memory does not grow with the files (``EncodedImages``); those of more than 256 MiB together are unpacked into the cache
    folder once. Images are brought to a square by ADM's resize and centre crop (``transforms.center_crop``).

    Args:
        path: A parquet file, a folder of them, a glob pattern such as ``data/train-*.parquet``, or a list of these.
        image_size: Side of the square images in pixels.
        num_classes: Number of classes; None takes the number of class names stored in the files, else the largest label + 1.
        image_column: Column of encoded images: ``struct<bytes, path>`` or plain bytes.
        label_column: Column of integer labels.
        cache: Decode all images at start and keep them in memory (3 * image_size**2 bytes each).
        verify: Read every image at start, so that a corrupt one is named before training; None means below 20,000 images.

    Raises:
        UserError: If a file is missing or unreadable, a column is missing or of another type, a label is out of range (file
            and row are named), or (if verified) an image is corrupt.
    """

    def __init__(
        self,
        path: str | Path | list[str],
        image_size: int,
        num_classes: int | None = None,
        image_column: str = "image",
        label_column: str = "label",
        cache: bool = False,
        verify: bool | None = None,
    ) -> None:
        files = find_parquet_files(path)
        self._encoded = EncodedImages(files, image_column, label_column)
        self.image_path = files[0] if len(files) == 1 else None
        labels = self._encoded.labels
        if len(labels) == 0:
            raise UserError(f"parquet file '{files[0]}' has no rows; check the path")
        if num_classes is None:
            num_classes = max(1, len(self._encoded.class_names) or int(labels.max()) + 1)
        elif self._encoded.class_names and len(self._encoded.class_names) != num_classes:
            raise UserError(
                f"'{files[0]}' names {len(self._encoded.class_names)} classes, and num_classes of the data is {num_classes}; "
                "leave num_classes out to take as many as there are"
            )
        super().__init__(
            labels=labels,
            num_classes=num_classes,
            image_size=image_size,
            fingerprint=hash_parts("parquet", image_size, image_column, label_column, hash_files(files)),
            class_names=self._encoded.class_names,
        )
        self.prepare(cache=cache, verify=verify)

    def load_image(self, index: int) -> Tensor:
        """Decode, resize and crop one image, (3, H, W) uint8."""
        return image_to_tensor(center_crop(self.load_picture(index), self.image_size))

    def read_encoded(self, index: int) -> bytes:
        """The content of an image's file."""
        return self._encoded.read(index)

    def verify_image(self, index: int) -> bool:
        """Whether EXIF turns an image; raises ``UserError`` if it cannot be read to its end."""
        return verify_image(self._encoded.read(index), self.source_name(index))

    def source_name(self, index: int) -> str:
        """File and row of an image."""
        return self._encoded.name(index)
