"""Reader of CIFAR's python batches: pickle files, of which only numbers, strings, containers and byte arrays are believed.

A pickle is a program that may call any importable function. This reader looks nothing up: the few names that NumPy arrays
need are answered by inert functions of this file, made anew for each file, and every other name is refused before anything
runs.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from generative.core.errors import UserError

ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Where pickles of NumPy 1 and 2 find ``_reconstruct``."""

BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
"""Where protocol 5 pickles of NumPy find ``_frombuffer``."""

DTYPES = {"u1": np.uint8, "i8": np.int64, "i4": np.int32}
"""The element types that a batch may hold, by NumPy's short name; read as little-endian."""


class _PickledDtype:
    """Stands for ``numpy.dtype`` while reading: a name from ``DTYPES`` and nothing else."""

    def __init__(self, name: str | bytes, align: object = False, copy: object = True) -> None:
        text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        if text not in DTYPES:
            raise pickle.UnpicklingError(f"arrays of type {text!r} are not allowed")
        self.dtype = np.dtype(DTYPES[text])

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("|", "<", b"|", b"<"):  # the byte order
            raise pickle.UnpicklingError("only little-endian arrays are allowed")


class _PickledArray:
    """Stands for ``numpy.ndarray`` while reading: keeps the numbers, checked against the shape."""

    array: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _build_array(data, dtype, shape, "F" if is_fortran else "C")


def _build_array(data: object, dtype: object, shape: object, order: object) -> np.ndarray:
    """An array from bytes, every part checked; NumPy never sees an object that a stranger chose."""
    if not isinstance(dtype, _PickledDtype) or not isinstance(data, (bytes, bytearray, str, pickle.PickleBuffer)):
        raise pickle.UnpicklingError("an array without plain bytes is not allowed")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"an array of shape {shape!r} is not allowed")
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    if len(raw) != math.prod(shape) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(raw)} bytes")
    return np.frombuffer(raw, dtype=dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


class _BatchUnpickler(pickle.Unpickler):
    """Answers the names below with inert functions and refuses all others."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Look a name up: in this function, nowhere else."""
        if name == "_reconstruct" and module in ARRAY_MODULES:
            return lambda *args: _PickledArray()
        if name == "_frombuffer" and module in BUFFER_MODULES:
            return lambda data, dtype, shape, order, *rest: _build_array(data, dtype, shape, order)
        if (module, name) == ("numpy", "dtype"):
            return lambda *args: _PickledDtype(*args)
        if (module, name) == ("numpy", "ndarray"):
            return lambda *args: None  # only ever an argument of _reconstruct
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 spells bytes
            return lambda text, encoding: str(text).encode("latin1")
        raise pickle.UnpicklingError(f"it asks for '{module}.{name}', and only numbers, strings, lists and arrays are read")


def _entry(batch: dict[object, object], key: str) -> object:
    """One entry of the dict, its key bytes (Python 2) or text, with an array taken out of its stand-in."""
    value = batch.get(key.encode(), batch.get(key))
    return getattr(value, "array", None) if isinstance(value, _PickledArray) else value


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of CIFAR's python version without running anything in it.

    Args:
        path: ``data_batch_1`` or the like: a pickled dict with ``data``, (N, 3072) uint8, and ``labels``, N integers.

    Returns:
        Pixels (N, 3072) uint8, each row the red, green and blue plane of 32x32; labels (N,) int64.

    Raises:
        UserError: If the file cannot be read, is damaged, asks for code, or is not such a dict.
    """
    try:
        content = path.read_bytes()
        # "bytes" rather than "ASCII" because the official files were written by Python 2, whose strings are bytes.
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    except OSError as error:
        raise UserError(f"CIFAR batch '{path}' cannot be read ({error.strerror}); check the file") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"CIFAR batch '{path}' is refused or damaged: {error}; use an unmodified copy") from error
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise UserError(f"CIFAR batch '{path}' is truncated or damaged ({error}); use an unmodified copy") from error
    if not isinstance(batch, dict):
        raise UserError(f"CIFAR batch '{path}' holds a {type(batch).__name__} instead of a dict; use an unmodified copy")
    pixels, labels = _entry(batch, "data"), _entry(batch, "labels")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
        raise UserError(f"CIFAR batch '{path}' has no 'data' of shape (N, 3072) uint8; use an unmodified copy")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels) or len(labels) != len(pixels):
        raise UserError(f"CIFAR batch '{path}' needs 'labels', one integer for each of its {len(pixels)} images")
    return pixels, np.asarray(labels, dtype=np.int64)
