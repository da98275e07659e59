"""Read one tensor's memory as torch pickles it: a file of ``torch.save``'s legacy format, of which nothing is run.

The format is a row of pickles (magic number, protocol, byte order, a reference to the storage, its key), then the number of
values and the values themselves.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from metrics.files.safe_pickle import ArrayUnpickler, check_program, plain

# The instruction that a reference needs beside those of plain data.
STORAGE_OPCODES = frozenset({"BINPERSID"})
# torch's storage classes, the element type of each.
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What the legacy format of torch.save begins with, torch/serialization.py.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


class _StorageClass:
    """Stands for one of torch's storage classes; carries its name."""

    __slots__ = ()
    storage_name = ""


class _StorageUnpickler(ArrayUnpickler):
    """Reads the pickles of a storage's ``torch.save``: numbers, text and the one reference to the storage."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Answer torch's storage classes by an object that carries their name."""
        if module == "torch" and name in STORAGE_DTYPES:
            return type("_StorageClass", (_StorageClass,), {"__slots__": (), "storage_name": name})
        return super().find_class(module, name)

    def persistent_load(self, reference: Any) -> Any:
        """Check the reference ``("storage", class, key, device, number of values, None)``."""
        kind, storage_class, key, _, num_values, *view = reference
        if kind != "storage" or not isinstance(storage_class, type) or not issubclass(storage_class, _StorageClass):
            raise pickle.UnpicklingError("it refers to something other than a storage")
        if view not in ([], [None]) or type(num_values) is not int:
            raise pickle.UnpicklingError("it refers to a part of a storage")
        return storage_class.storage_name, key, num_values


def _legacy_pickles(stream: io.BytesIO, data: bytes) -> Iterator[Any]:
    """The pickles that a file of torch.save's legacy format begins with, one after the other."""
    while True:
        start = stream.tell()
        check_program(stream, STORAGE_OPCODES)
        yield _StorageUnpickler(io.BytesIO(data[start : stream.tell()])).load()


def read_storage(data: bytes) -> Tensor:
    """Read what ``torch.save(storage, file, _use_new_zipfile_serialization=False)`` wrote.

    Args:
        data: The file's bytes.

    Returns:
        (N,) values of the storage, over the same memory.

    Raises:
        pickle.UnpicklingError: If it holds anything else, or other than the bytes it announces.
    """
    stream = io.BytesIO(data)
    pickles = _legacy_pickles(stream, data)
    if next(pickles) != LEGACY_MAGIC or next(pickles) != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("the bytes of a tensor are not of torch's legacy format")
    system = plain(next(pickles))
    if not isinstance(system, dict) or system.get("little_endian", True) != (sys.byteorder == "little"):
        raise pickle.UnpicklingError("a tensor of another byte order is refused")
    reference, keys = next(pickles), plain(next(pickles))
    if not isinstance(reference, tuple) or len(reference) != 3 or keys != [reference[1]]:
        raise pickle.UnpicklingError("the bytes of a tensor hold something other than one storage")
    dtype, num_values = STORAGE_DTYPES[reference[0]], reference[2]
    counted = int.from_bytes(stream.read(8), sys.byteorder)
    start = stream.tell()
    if counted != num_values or len(data) - start != num_values * dtype.itemsize:
        raise pickle.UnpicklingError(f"a storage of {num_values} values has {len(data) - start} bytes")
    if num_values == 0:
        return torch.empty(0, dtype=dtype)
    # A bytearray, since torch warns of memory that is not to be written.
    return torch.frombuffer(bytearray(data[start:]), dtype=dtype)
