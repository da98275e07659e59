"""Write TensorFlow's checkpoints (tensor bundles) as TensorFlow does, whole ones and such as it never would."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from generative.convert.files.crc32c import crc32c, masked
from generative.convert.files.sorted_table import MAGIC
from generative.convert.files.tensor_bundle import DTYPES

RESTART_INTERVAL = 16


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer: a number, or the bytes of a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def checksum(data: bytes) -> bytes:
    return masked(crc32c(data)).to_bytes(4, "little")


def header(num_shards: int, endianness: int = 0, least_version: int = 0) -> bytes:
    return field(1, num_shards) + field(2, endianness) + field(3, field(1, 1) + field(2, least_version))


def entry(dtype: int, shape: tuple[int, ...], data: bytes, offset: int, shard: int = 0) -> bytes:
    sizes = b"".join(field(2, field(1, size)) for size in shape)
    place = field(1, dtype) + field(2, sizes) + field(3, shard) + field(4, offset) + field(5, len(data))
    return place + varint(6 << 3 | 5) + checksum(data)


def block(entries: Mapping[bytes, bytes], compression: int = 0) -> bytes:
    content, restarts, last = b"", [], b""
    for index, (key, value) in enumerate(entries.items()):
        shared = len(os.path.commonprefix([last, key]))
        if index % RESTART_INTERVAL == 0:
            restarts.append(len(content))
            shared = 0
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    for restart in [*(restarts or [0]), len(restarts or [0])]:
        content += restart.to_bytes(4, "little")
    content += bytes([compression])
    return content + checksum(content)


def write_table(entries: Mapping[bytes, bytes], compression: int = 0, entries_per_block: int = 20) -> bytes:
    """A table of entries, in the order in which they are given."""
    table, handles = b"", {}
    keys = list(entries)
    for start in range(0, len(keys), entries_per_block):
        part = block({key: entries[key] for key in keys[start : start + entries_per_block]}, compression)
        handles[keys[min(start + entries_per_block, len(keys)) - 1]] = varint(len(table)) + varint(len(part) - 5)
        table += part
    places = b""
    for part in (block({}), block(handles)):
        places += varint(len(table)) + varint(len(part) - 5)
        table += part
    return table + places.ljust(40, b"\0") + MAGIC


def to_bytes(value: Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def write_bundle(prefix: Path, tensors: Mapping[str, Tensor], num_shards: int = 1) -> Path:
    """Write tensors by key, one after the other over the shards; returns the index."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    shards = [bytearray(b"text") for _ in range(num_shards)]  # which leaves the tensors unaligned
    entries = {b"": header(num_shards)}
    for number, (key, value) in enumerate(sorted(tensors.items())):
        data, shard = to_bytes(value), number % num_shards
        entries[key.encode()] = entry(codes[value.dtype], tuple(value.shape), data, len(shards[shard]), shard)
        shards[shard] += data + b"x"
    for number, content in enumerate(shards):
        prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{num_shards:05d}").write_bytes(bytes(content))
    index = prefix.with_name(f"{prefix.name}.index")
    index.write_bytes(write_table(entries))
    return index
