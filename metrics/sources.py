"""Where images come from: a folder, a zip, a parquet file, an npz batch, or what a plugin provides (a pipeline).

Every source yields batches of uint8 (3, H, W) tensors in a fixed order. Decoding runs in threads ahead of the
consumer (Pillow releases the GIL), with a bounded number of images in memory.
"""

from __future__ import annotations

import importlib.metadata
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from metrics.images import decode_image, is_image_name, list_images, read_image
from metrics.statistics import npz_keys

#: Entry-point group of providers: callables `(path, num_samples, seed, batch_size, device) -> ImageSource | None`.
SOURCE_ENTRY_POINTS = "triptych.image_sources"
#: A directory with one of these files is a saved generator, to be opened by a provider rather than searched for images.
_GENERATOR_MARKERS = ("model_index.json", "pipeline/model_index.json")
#: Names of the image column in Hugging Face's parquet layout.
_PARQUET_COLUMNS = ("image", "img")
_PARQUET_ROWS = 256
_ARRAY_KEY = "arr_0"

Loader = Callable[[], Tensor]


class ImageSource(ABC):
    """A finite, ordered set of images."""

    #: What the source is, for the printed protocol ("image folder").
    kind: str
    #: Where it is.
    path: Path

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def batches(self, batch_size: int, num_workers: int = 1) -> Iterator[list[Tensor]]:
        """Yield lists of at most `batch_size` images, uint8 (3, H, W), of any sizes."""


class LoaderSource(ImageSource):
    """A source whose images are decoded one by one, in threads."""

    @abstractmethod
    def loaders(self) -> Iterator[Loader]:
        """Yield one function per image that decodes it."""

    def batches(self, batch_size: int, num_workers: int = 1) -> Iterator[list[Tensor]]:
        """Yield lists of at most `batch_size` images, decoded ahead in `num_workers` threads (0: in this one)."""
        if num_workers == 0:
            images: Iterator[Tensor] = (load() for load in self.loaders())
        else:
            images = _decode_ahead(self.loaders(), num_workers, window=2 * batch_size)
        batch: list[Tensor] = []
        for image in images:
            batch.append(image)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _decode_ahead(loaders: Iterator[Loader], num_workers: int, window: int) -> Iterator[Tensor]:
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    waiting: deque[Future[Tensor]] = deque()
    try:
        for load in loaders:
            waiting.append(pool.submit(load))
            if len(waiting) > window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class FolderSource(LoaderSource):
    """The images of a folder and its subfolders, sorted by path."""

    kind = "image folder"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = list_images(path)

    def __len__(self) -> int:
        return len(self.files)

    def loaders(self) -> Iterator[Loader]:
        """Yield one reader per file."""
        for file in self.files:
            yield partial(read_image, file)


class ZipSource(LoaderSource):
    """The images of a zip file, sorted by name."""

    kind = "zip of images"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path} is not a zip file, or is truncated: write it again.") from error
        self.names = sorted(name for name in self.archive.namelist() if is_image_name(name))
        if not self.names:
            raise ValueError(f"zip file {path} holds no images.")

    def __len__(self) -> int:
        return len(self.names)

    def loaders(self) -> Iterator[Loader]:
        """Yield one reader per member."""
        for name in self.names:
            yield partial(self._read, name)

    def _read(self, name: str) -> Tensor:
        try:
            data = self.archive.read(name)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
            raise ValueError(f"image {name} in {self.path} can't be read ({error}): write the zip again.") from error
        return decode_image(data, f"{name} in {self.path}")


class ParquetSource(LoaderSource):
    """The images of a parquet file in Hugging Face's layout: a column `image` or `img` of {bytes, path} or of bytes."""

    kind = "parquet of images"

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ValueError(f"reading {path} needs the package pyarrow: pip install pyarrow.") from error
        self.path = path
        try:
            self.file = parquet.ParquetFile(path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is not a parquet file, or is truncated: write it again.") from error
        names = self.file.schema_arrow.names
        self.column = next((name for name in _PARQUET_COLUMNS if name in names), "")
        if not self.column:
            raise ValueError(f"{path} has the columns {', '.join(names)}: expected an image column named image or img.")
        if len(self) == 0:
            raise ValueError(f"parquet file {path} holds no rows.")

    def __len__(self) -> int:
        return int(self.file.metadata.num_rows)

    def loaders(self) -> Iterator[Loader]:
        """Yield one decoder per row."""
        row = 0
        for batch in self.file.iter_batches(_PARQUET_ROWS, columns=[self.column]):
            for value in batch.column(0).to_pylist():
                data = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(data, bytes):
                    raise ValueError(f"row {row} of {self.path} holds no image bytes in column {self.column}.")
                yield partial(decode_image, data, f"row {row} of {self.path}")
                row += 1


class NpzSource(ImageSource):
    """An npz batch in the layout of the ADM suite: `arr_0` uint8 (N, H, W, 3), read piece by piece."""

    kind = "npz of images"

    def __init__(self, path: Path) -> None:
        self.path = path
        keys = npz_keys(path)
        if _ARRAY_KEY not in keys:
            raise ValueError(
                f"{path} holds {', '.join(keys) or 'nothing'}: expected arr_0 (images, uint8 (N, H, W, 3)) or mu and sigma."
            )
        with zipfile.ZipFile(path) as archive, archive.open(f"{_ARRAY_KEY}.npy") as stream:
            shape, is_fortran, dtype = _read_npy_header(cast(BinaryIO, stream), path)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:3] or is_fortran:
            raise ValueError(f"{path} holds arr_0 of dtype {dtype} and shape {shape}: expected uint8 (N, H, W, 3).")
        if shape[0] == 0:
            raise ValueError(f"{path} holds no images: arr_0 has shape {shape}.")
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, batch_size: int, num_workers: int = 1) -> Iterator[list[Tensor]]:
        """Yield lists of at most `batch_size` images; `num_workers` has no use here, the file is one stream."""
        _, height, width, channels = self.shape
        image_bytes = height * width * channels
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{_ARRAY_KEY}.npy") as stream:
            _read_npy_header(cast(BinaryIO, stream), self.path)
            for start in range(0, len(self), batch_size):
                count = min(batch_size, len(self) - start)
                try:
                    data = stream.read(count * image_bytes)
                except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
                    raise ValueError(f"{self.path} is corrupt ({error}): write it again.") from error
                if len(data) != count * image_bytes:
                    raise ValueError(f"{self.path} is truncated: it ends before image {start + count}.")
                pixels = np.frombuffer(data, dtype=np.uint8).reshape(count, height, width, channels).copy()
                yield list(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())


def _read_npy_header(stream: BinaryIO, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        return np.lib.format.read_array_header_2_0(stream)
    except (ValueError, EOFError, OSError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} has an unreadable arr_0: write it again.") from error


def is_generator(path: Path) -> bool:
    """Return whether a path is a saved pipeline or a run that holds one."""
    return any((path / marker).is_file() for marker in _GENERATOR_MARKERS)


def open_source(
    path: Path,
    num_samples: int | None = None,
    seed: int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
) -> ImageSource:
    """Open a set of images by what the path is.

    Args:
        path: An image folder, .zip, .parquet, .npz (`arr_0`), or a saved generator if an installed package
            provides it.
        num_samples: How many images to draw from a generator; refused for anything else.
        seed: Seed of that draw; refused for anything else.
        batch_size: Batch size of that draw.
        device: Device of that draw.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If it holds no images or is of no known kind.
    """
    if not path.exists():
        raise FileNotFoundError(f"path {path} does not exist.")
    if is_generator(path):
        return _open_generator(path, num_samples, seed, batch_size, device)
    if num_samples is not None or seed is not None:
        raise ValueError(f"num_samples and seed apply to saved pipelines only, and {path} is none.")
    if path.is_dir():
        return FolderSource(path)
    by_extension: dict[str, type[ZipSource] | type[ParquetSource] | type[NpzSource]] = {
        ".npz": NpzSource,
        ".parquet": ParquetSource,
        ".zip": ZipSource,
    }
    if path.suffix.lower() not in by_extension:
        raise ValueError(f"{path} is neither a folder nor a file of a known kind ({', '.join(by_extension)}).")
    return by_extension[path.suffix.lower()](path)


def _open_generator(path: Path, num_samples: int | None, seed: int | None, batch_size: int, device: str) -> ImageSource:
    for entry_point in importlib.metadata.entry_points(group=SOURCE_ENTRY_POINTS):
        source = entry_point.load()(path, num_samples=num_samples, seed=seed, batch_size=batch_size, device=device)
        if source is not None:
            return cast(ImageSource, source)
    raise ValueError(f"{path} is a saved pipeline that no installed package can sample: install the one that wrote it.")
