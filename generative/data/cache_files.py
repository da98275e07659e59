"""The files of a token cache: what ``cache.json`` says, and single rows of its shards, read at their offsets.

A cache is a folder with

- ``cache.json``: a ``CacheSpec``, statistics of the codes or latents, and size and sha256 of every other file;
- ``shard-00000.safetensors``, ...: for ``shard_images`` images each, ``tokens`` (n, views, L) in the smallest integer type that
  holds the ids; or ``mean`` (n, views, C, h, w), and ``std`` alike where the encoder is probabilistic, scaled as
  ``generative.tokenizers.latents`` scales them;
- ``labels.safetensors``: ``labels`` (N,) int64;
- ``previews.safetensors``: ``indices`` (P,) int64 and ``images`` (P, 3, H, W) uint8, some of the images themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from safetensors import SafetensorError, safe_open

from generative.core.errors import UserError
from generative.data.views import Views
from metrics.files.random_reads import RandomReader

CACHE_FILE = "cache.json"
LABELS_FILE = "labels.safetensors"
PREVIEWS_FILE = "previews.safetensors"
FILES = "files"
"""Key of ``cache.json``: size and sha256 of every other file, by its name."""
FORMAT_VERSION = 1

Kind = Literal["tokens", "latents"]

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("uint8"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
"""Types of safetensors that a cache uses; all are stored little-endian."""

HEADER_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its JSON header, an unsigned little-endian integer of this size."""


@dataclass(frozen=True)
class CacheSpec:
    """What a cache holds, and what it was made from: two caches with equal ones are the same.

    Attributes:
        kind: ``tokens`` or ``latents``.
        encoder_class: Class of the tokenizer or autoencoder.
        encoder_config: Its constructor arguments.
        encoder_fingerprint: sha256 of its class, config and weights.
        data_class: Class of the images.
        data_fingerprint: Of the images (``ImageDataset.fingerprint``).
        num_images: N.
        num_classes: Number of classes.
        class_names: ``num_classes`` names.
        image_size: Side of the encoded images in pixels.
        views: Which views of an image are there.
        crop_sizes: See ``Views``.
        shape: Of one view: (L,), or (C, h, w).
        num_codes: V; None for latents.
        dtype: Name of the stored type, a key of ``NUMPY_TYPES``.
        has_std: Whether latents are distributions to draw from.
        mixed_precision: Precision that the encoder ran in.
        shard_images: Images to a shard; the last may have fewer.
        format_version: Of these files.
    """

    kind: Kind
    encoder_class: str
    encoder_config: dict[str, Any]
    encoder_fingerprint: str
    data_class: str
    data_fingerprint: str
    num_images: int
    num_classes: int
    class_names: tuple[str, ...]
    image_size: int
    views: str
    crop_sizes: tuple[int, ...]
    shape: tuple[int, ...]
    num_codes: int | None
    dtype: str
    has_std: bool
    mixed_precision: str
    shard_images: int
    format_version: int = FORMAT_VERSION

    @property
    def num_shards(self) -> int:
        """Number of shard files."""
        return -(-self.num_images // self.shard_images)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors in a shard."""
        if self.kind == "tokens":
            return ("tokens",)
        return ("mean", "std") if self.has_std else ("mean",)

    def make_views(self) -> Views:
        """The views as an object."""
        return Views(self.views, tuple(self.crop_sizes))  # type: ignore[arg-type] # Views checks the name

    def images_of(self, shard: int) -> range:
        """Indices of the images in a shard."""
        return range(shard * self.shard_images, min((shard + 1) * self.shard_images, self.num_images))

    def to_json(self) -> dict[str, Any]:
        """The specification as JSON reads it back (tuples become lists)."""
        result: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return result


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.safetensors"


def smallest_type(num_codes: int) -> str:
    """The smallest stored type for ids in [0, num_codes)."""
    return "U8" if num_codes <= 2**8 else "U16" if num_codes <= 2**16 else "I32"


def read_spec(path: Path) -> tuple[CacheSpec, dict[str, Any]]:
    """Read a ``cache.json`` (or the plan of an unfinished cache).

    Returns:
        The specification, and the statistics beside it.

    Raises:
        UserError: If it is damaged or of another format version.
    """
    try:
        content = json.loads(path.read_text())
        statistics = content.pop("statistics", {})
        content.pop(FILES, None)
        if content.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"'{path}' has format version {content.get('format_version')}, this version of triptych reads {FORMAT_VERSION}; "
                "encode the images anew"
            )
        for name in ("class_names", "crop_sizes", "shape"):
            content[name] = tuple(content[name])
        spec = CacheSpec(**content)
        _check_spec(spec)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged ({' '.join(str(error).split())}); encode the images anew") from error
    return spec, statistics


def _check_spec(spec: CacheSpec) -> None:
    """Raise ``ValueError`` unless a specification's values are possible, and those that others follow from fit them."""
    if spec.kind not in get_args(Kind) or spec.dtype not in NUMPY_TYPES:
        raise ValueError(f"kind {spec.kind!r}, dtype {spec.dtype!r}")
    numbers = {name: getattr(spec, name) for name in ("num_images", "num_classes", "image_size", "shard_images")}
    numbers |= {f"shape[{axis}]": side for axis, side in enumerate(spec.shape)}
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} {value!r}")
    if len(spec.shape) != (1 if spec.kind == "tokens" else 3) or (spec.num_codes is None) != (spec.kind == "latents"):
        raise ValueError(f"{spec.kind} of shape {list(spec.shape)} and {spec.num_codes} codes")
    if len(spec.class_names) != spec.num_classes:
        raise ValueError(f"{len(spec.class_names)} class names for {spec.num_classes} classes")


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """Map the tensors of a safetensors file into memory, without reading them.

    Raises:
        UserError: If the file is missing, cut short or damaged, or holds a type that caches do not use.
    """
    try:
        return {
            name: np.memmap(path, dtype=place.dtype, mode="r", offset=place.offset, shape=place.shape)
            for name, place in find_tensors(path).items()
        }
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is missing or damaged ({error}); encode the images anew") from error


class TensorPlace(NamedTuple):
    """Where a tensor lies in a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def find_tensors(path: Path) -> dict[str, TensorPlace]:
    """Find the tensors of a safetensors file without reading them.

    Raises:
        UserError: As ``map_tensors``.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass  # checks the header, and that the file is as long as it says
        with path.open("rb") as file:
            length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
        begin = HEADER_LENGTH_BYTES + length
        return {
            name: TensorPlace(begin + entry["data_offsets"][0], tuple(entry["shape"]), NUMPY_TYPES[entry["dtype"]])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"'{path}' is missing or damaged ({error}); encode the images anew") from error


class ShardReader:
    """Rows of a cache's shards, by image and view; the process's memory stays flat, whatever the size of the cache.

    Rows are read by ``pread``: what the system caches of the files is shared by all processes, and no descriptor or map is held
    for each of thousands of shards.

    Args:
        folder: Folder of the shards.
        spec: What they hold.
    """

    def __init__(self, folder: Path, spec: CacheSpec) -> None:
        self.folder = folder
        self.spec = spec
        self._paths = [folder / shard_name(shard) for shard in range(spec.num_shards)]
        self._places: dict[int, dict[str, int]] = {}
        self._files = RandomReader()
        self._num_views = spec.make_views().count
        self._row_bytes = math.prod(spec.shape) * NUMPY_TYPES[spec.dtype].itemsize

    def check(self, shard: int) -> dict[str, int]:
        """Where the tensors of a shard begin in its file, by name; its header is looked at once.

        Raises:
            UserError: If the file is missing, cut short or damaged, or holds tensors of another type or shape.
        """
        if shard not in self._places:
            places = find_tensors(self._paths[shard])
            shape = (len(self.spec.images_of(shard)), self._num_views, *self.spec.shape)
            wanted = {name: (shape, NUMPY_TYPES[self.spec.dtype]) for name in self.spec.tensors}
            if {name: (place.shape, place.dtype) for name, place in places.items()} != wanted:
                raise UserError(f"'{self._paths[shard]}' holds other tensors than {CACHE_FILE} says; encode the images anew")
            self._places[shard] = {name: place.offset for name, place in places.items()}
        return self._places[shard]

    def shard(self, shard: int) -> dict[str, np.ndarray]:
        """The tensors of one shard, mapped for as long as the caller holds them.

        Raises:
            UserError: As ``check``.
        """
        self.check(shard)
        return map_tensors(self._paths[shard])

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The tensors of all shards, in order."""
        return (self.shard(shard) for shard in range(self.spec.num_shards))

    def read(self, name: str, indices: Sequence[int], views: Sequence[int]) -> np.ndarray:
        """Read rows.

        Args:
            name: A tensor of the shards.
            indices: B images.
            views: B views, one of each image.

        Returns:
            (B, *shape) in the stored type.

        Raises:
            UserError: If a file is missing, or was cut short or changed since it was looked at.
        """
        rows = np.empty((len(indices), *self.spec.shape), NUMPY_TYPES[self.spec.dtype])
        size, buffer = self._row_bytes, rows.reshape(-1).view(np.uint8).data
        for place, (index, view) in enumerate(zip(indices, views, strict=True)):
            shard, row = divmod(index, self.spec.shard_images)
            start = self.check(shard)[name] + (row * self._num_views + view) * size
            try:
                done = self._files.read_into(self._paths[shard], start, buffer[place * size : (place + 1) * size])
            except OSError as error:
                raise UserError(f"'{self._paths[shard]}' cannot be read ({error.strerror}); encode the images anew") from error
            if done < size:
                raise UserError(f"'{self._paths[shard]}' was cut short; encode the images anew")
        return rows
