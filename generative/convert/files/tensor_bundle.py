"""TensorFlow's checkpoints (tensor bundles) without TensorFlow: an index of tensors, and the shards that hold their bytes.

``NAME.index`` is a table (see ``sorted_table``) of messages ``BundleEntryProto`` by key, ``NAME.data-00000-of-00002`` and so on
are the tensors one after the other, unaligned. Shards are mapped into memory, and a tensor is read when it is asked for. Nothing
is run: graphs of objects and other texts are left where they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from generative.convert.files.crc32c import crc32c, masked
from generative.convert.files.snapshot import MAX_EMPTY_AXIS
from generative.convert.files.sorted_table import MAGIC, Cursor, read_table
from generative.core.errors import UserError

INDEX_SUFFIX = ".index"
SHARD_SUFFIX = re.compile(r"\.data-\d{5}-of-\d{5}$")
# Element types by their numbers in tensorflow/core/framework/types.proto.
DTYPES = MappingProxyType(
    {
        1: torch.float32,
        2: torch.float64,
        3: torch.int32,
        4: torch.uint8,
        5: torch.int16,
        6: torch.int8,
        8: torch.complex64,
        9: torch.int64,
        10: torch.bool,
        14: torch.bfloat16,
        17: torch.uint16,
        18: torch.complex128,
        19: torch.float16,
        22: torch.uint32,
        23: torch.uint64,
    }
)
NO_NUMBERS = (7, 20, 21)  # text, handles and variants: no weights
WHOLE_NUMBERS = (3, 9, 22, 23)
SLICE_START = b"\x00"
"""What keys begin with that hold a part of a partitioned variable."""
LITTLE_ENDIAN = 0
BUNDLE_VERSION = 1
MAX_SHARDS = 99_999  # of which the names have room
MAX_AXES = 32


@dataclass(frozen=True)
class BundleEntry:
    """Where a tensor is and what it is.

    Attributes:
        dtype: Its element type by TensorFlow's number.
        shape: Its shape.
        shard: Number of its shard.
        offset: Of its first byte there.
        size: In bytes.
        checksum: Masked CRC-32C of its bytes.
        is_partitioned: Whether it lies in slices under other keys.
    """

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    is_partitioned: bool = False


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields: whole numbers, or the bytes of texts and messages.

    Raises:
        ValueError: If it is damaged.
    """
    cursor = Cursor(message)
    while cursor.is_left:
        number, kind = divmod(cursor.varint(), 8)
        if kind == 0:
            yield number, cursor.varint()
        elif kind == 2:
            yield number, cursor.take(cursor.varint())
        elif kind in (1, 5):
            yield number, int.from_bytes(cursor.take(8 if kind == 1 else 4), "little")
        else:
            raise ValueError("a message has a field of no known kind")


def whole(value: int | bytes) -> int:
    """A field that must be a number.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, int):
        raise ValueError("a message has text in the place of a number")
    return value


def nested(value: int | bytes) -> bytes:
    """A field that must be a message.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, bytes):
        raise ValueError("a message has a number in the place of another message")
    return value


def read_shape(message: bytes) -> tuple[int, ...]:
    """Shape of a ``TensorShapeProto``.

    Raises:
        ValueError: If it is none.
    """
    axes = [nested(value) for number, value in read_fields(message) if number == 2]
    sizes = tuple(next((whole(value) for number, value in read_fields(axis) if number == 1), 0) for axis in axes)
    if len(sizes) > MAX_AXES or any(size >= 1 << 63 for size in sizes):
        raise ValueError("a tensor has no shape")
    return sizes


def read_entry(message: bytes) -> BundleEntry:
    """A ``BundleEntryProto``.

    Raises:
        ValueError: If it is none.
    """
    found: dict[str, int] = {}
    shape: tuple[int, ...] = ()
    is_partitioned = False
    names = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "checksum"}
    for number, value in read_fields(message):
        if number in names:
            found[names[number]] = whole(value)
        elif number == 2:
            shape = read_shape(nested(value))
        elif number == 7:
            is_partitioned = True
    return BundleEntry(**found, shape=shape, is_partitioned=is_partitioned)


def read_num_shards(header: bytes) -> int:
    """How many shards there are, by a ``BundleHeaderProto``.

    Raises:
        ValueError: If it is none, or of another byte order or a later version.
    """
    fields = dict(read_fields(header))
    num_shards = whole(fields.get(1, 0))
    if not 0 < num_shards <= MAX_SHARDS:
        raise ValueError("it does not say in how many shards its tensors are")
    if fields.get(2, LITTLE_ENDIAN) != LITTLE_ENDIAN:
        raise ValueError("its numbers are of another byte order")
    if whole(dict(read_fields(nested(fields.get(3, b"")))).get(2, 0)) > BUNDLE_VERSION:
        raise ValueError("it is of a later format than is known here")
    return num_shards


def is_index(path: Path) -> bool:
    """Whether a file is the index of a checkpoint, by its name or its end."""
    if path.suffix == INDEX_SUFFIX:
        return True
    with path.open("rb") as stream:
        stream.seek(max(path.stat().st_size - len(MAGIC), 0))
        return stream.read() == MAGIC


class TensorBundle:
    """A checkpoint of TensorFlow.

    Args:
        path: Its index; the shards lie beside it.

    Attributes:
        entries: Tensors of numbers by key.
        shards: The shards' files.

    Raises:
        UserError: If the index is damaged or no checkpoint's, or a shard is missing or shorter than the index says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            num_shards, entries = read_index(path.read_bytes())
        except ValueError as error:
            raise UserError(
                f"checkpoint '{path}' can't be read as the index of a TensorFlow checkpoint: {error}; it is truncated, damaged "
                "or another file, get it again"
            ) from error
        stem = path.name.removesuffix(INDEX_SUFFIX)
        self.shards = [path.with_name(f"{stem}.data-{number:05d}-of-{num_shards:05d}") for number in range(num_shards)]
        if missing := [shard for shard in self.shards if not shard.is_file()]:
            raise UserError(f"checkpoint '{path}' needs '{missing[0].name}' beside it, where its tensors are; get that file too")
        self.check_places(entries)
        self.entries = {key: entry for key, entry in entries.items() if entry.dtype not in NO_NUMBERS}
        self.memory: dict[int, np.ndarray] = {}

    def check_places(self, entries: dict[str, BundleEntry]) -> None:
        """Check that tensors lie within their shards and not over one another: a small file may else fill the memory.

        Raises:
            UserError: If they do not.
        """
        ends = dict.fromkeys(range(len(self.shards)), 0)
        sizes = {number: shard.stat().st_size for number, shard in enumerate(self.shards)}
        for key, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].offset, item[1].size)):
            if entry.shard not in ends:
                raise UserError(f"checkpoint '{self.path}' has {key} in shard {entry.shard} of {len(self.shards)}: it is damaged")
            if entry.is_partitioned or entry.size == 0:
                continue
            if entry.offset < ends[entry.shard]:
                raise UserError(f"checkpoint '{self.path}' is refused: {key} lies over another tensor")
            ends[entry.shard] = entry.offset + entry.size
            if ends[entry.shard] > sizes[entry.shard]:
                name = self.shards[entry.shard].name
                raise UserError(
                    f"checkpoint '{self.path}' needs more of '{name}' than its {sizes[entry.shard]:,} bytes: get it again"
                )

    def is_counter(self, key: str) -> bool:
        """Whether a tensor is one whole number, as of steps."""
        return self.entries[key].shape == () and self.entries[key].dtype in WHOLE_NUMBERS

    def read(self, key: str) -> Tensor:
        """Read a tensor and verify its checksum.

        Args:
            key: Of ``entries``.

        Raises:
            UserError: If it is damaged, partitioned or of a type that torch has not.
        """
        entry = self.entries[key]
        dtype = DTYPES.get(entry.dtype)
        if entry.is_partitioned:
            raise UserError(f"checkpoint '{self.path}' holds {key} in slices, which is not read; save it without a partitioner")
        if dtype is None:
            raise UserError(f"checkpoint '{self.path}' holds {key} of TensorFlow's type {entry.dtype}, which is not read")
        if math.prod(entry.shape) * dtype.itemsize != entry.size:
            raise UserError(f"checkpoint '{self.path}' has {entry.size} bytes for {key} of shape {entry.shape}: it is damaged")
        if entry.size == 0:
            if max(entry.shape) > MAX_EMPTY_AXIS:
                raise UserError(f"checkpoint '{self.path}' is refused: {key} is empty and of shape {entry.shape}")
            return torch.empty(entry.shape, dtype=dtype)
        if entry.shard not in self.memory:
            self.memory[entry.shard] = np.memmap(self.shards[entry.shard], np.uint8, "r")
        values = self.memory[entry.shard][entry.offset : entry.offset + entry.size]
        if masked(crc32c(values)) != entry.checksum:
            name = self.shards[entry.shard].name
            raise UserError(f"checkpoint '{self.path}': the bytes of {key} in '{name}' don't have their checksum: get it again")
        # A copy, since tensors lie unaligned in the file.
        return torch.from_numpy(np.array(values)).view(dtype).reshape(entry.shape)


def with_shards(paths: Sequence[Path]) -> list[Path]:
    """Files, and the shards of those that are indices, each once."""
    shards = [shard for path in paths if is_index(path) for shard in TensorBundle(path).shards]
    return list(dict.fromkeys([*paths, *shards]))


def read_index(data: bytes) -> tuple[int, dict[str, BundleEntry]]:
    """Number of shards and entries by key, without the slices of partitioned variables.

    Args:
        data: The index.

    Raises:
        ValueError: If it is damaged or none.
    """
    table = read_table(data)
    key, header = next(table, (b"-", b""))
    if key != b"":
        raise ValueError("it has no header")
    num_shards = read_num_shards(header)
    return num_shards, {name.decode(): read_entry(value) for name, value in table if not name.startswith(SLICE_START)}
