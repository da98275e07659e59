"""Read a pickle of numbers, text, lists, dicts and NumPy arrays without running anything in it.

A pickle is a program. Here it is first walked without being run (``pickletools.genops``), and refused if it has any
instruction beyond those that such data need. Then a restricted unpickler runs it: the handful of names that NumPy's arrays
need are answered by inert functions of this file, made anew for each name; every other name is refused, and nothing is ever
imported. NumPy itself sees only a type from a short list, a checked shape and bytes of just that size.

A reader of pickles that hold more builds on the parts that are public here: ``check_program``, ``ArrayUnpickler``, ``plain`` and
``refusing``.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from metrics.files.arrays import brief

#: Largest file that is read, in bytes. EDM2's reference files have 42 MB.
MAX_BYTES = 1 << 30
#: Deepest nesting of containers; the statistics of EDM2 have two levels.
_MAX_DEPTH = 16
#: Where pickles of NumPy 1 and 2 find their functions.
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
#: Element types by NumPy's short name.
_DTYPES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
#: Instructions that data need; what makes objects in other ways (INST, OBJ, NEWOBJ, EXT, PERSID) is not among them.
_OPCODES = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK DUP "
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS "
    "PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE "
    "GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
#: What a damaged program raises in the unpickler.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


class _Dtype:
    """Stands for ``numpy.dtype``: a name from ``_DTYPES`` and a byte order."""

    def __init__(self, name: object) -> None:
        text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        if not isinstance(text, str) or text not in _DTYPES:
            raise pickle.UnpicklingError(f"arrays of type {text!r} are refused")
        self.dtype = np.dtype(text).newbyteorder("<")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii", "replace") if isinstance(state[1], bytes) else state[1]
        if order == ">":
            self.dtype = self.dtype.newbyteorder(">")
        elif order not in ("<", "|"):
            raise pickle.UnpicklingError(f"byte order {order!r} is unknown")


class _Array:
    """Stands for ``numpy.ndarray``, so that no instruction ever meets a real one."""

    def __init__(self, array: np.ndarray | None = None) -> None:
        self.array = array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _build_array(data, dtype, shape, "F" if is_fortran else "C")


def _build_array(data: object, dtype: object, shape: object, order: object) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray, str)):
        raise pickle.UnpicklingError("an array without plain bytes is refused")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise pickle.UnpicklingError("an array without a shape is refused")
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    if len(raw) != math.prod(shape) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(raw)} bytes")
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _build_scalar(dtype: object, data: object) -> Any:
    return _build_array(data, dtype, (), "C").item()


def _encode(text: object, encoding: object) -> bytes:
    """Stands for ``_codecs.encode``, how protocol 2 spells bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"text in encoding {encoding!r} is refused")
    return text.encode("latin1")


class ArrayUnpickler(pickle.Unpickler):
    """Knows the names that numbers, text, containers and NumPy's arrays need; a subclass may know more."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Look a name up: in this function, nowhere else."""
        # Each answer is a new function: what a pickle might set on one is gone with it.
        if name == "_reconstruct" and module in _MULTIARRAY:
            return lambda subtype, shape, code: _Array()
        if name == "scalar" and module in _MULTIARRAY:
            return lambda dtype, data: _build_scalar(dtype, data)
        if name == "_frombuffer" and module in _NUMERIC:
            return lambda data, dtype, shape, order: _Array(_build_array(data, dtype, shape, order))
        if (module, name) == ("numpy", "dtype"):
            return lambda text, align=False, copy=True: _Dtype(text)
        if (module, name) == ("numpy", "ndarray"):
            return lambda: None  # Only ever an argument of ``_reconstruct``.
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: _encode(text, encoding)
        if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):
            return lambda: b""  # How protocol 2 spells no bytes.
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numbers, text, containers and arrays are read")


def check_program(stream: BinaryIO, further_opcodes: frozenset[str] = frozenset()) -> None:
    """Walk one pickle without running it, and leave the stream behind it.

    Args:
        stream: Stands at the pickle's first byte.
        further_opcodes: Instructions that are taken beside those of plain data.

    Raises:
        pickle.UnpicklingError: If it has another instruction, or a memo place that would make the unpickler allocate gigabytes.
        ValueError: If it is cut short.
    """
    count = 0
    for opcode, argument, _ in pickletools.genops(stream):
        count += 1
        if opcode.name not in _OPCODES and opcode.name not in further_opcodes:
            raise pickle.UnpicklingError(f"it holds the instruction {opcode.name}, which plain data do not need")
        if opcode.name in _PUTS and not 0 <= int(argument or 0) <= count:
            raise pickle.UnpicklingError(f"it numbers an object {argument}, which plain data do not need")


def plain(value: Any) -> Any:
    """Return what an ``ArrayUnpickler`` read with its stand-ins replaced by arrays.

    Raises:
        pickle.UnpicklingError: If it holds anything that is not plain data.
    """
    return _plain(value, 0, {})


def _plain(value: Any, depth: int, done: dict[int, Any]) -> Any:
    if id(value) in done:
        return done[id(value)]
    if depth > _MAX_DEPTH:
        raise pickle.UnpicklingError("it nests containers too deeply")
    result: Any
    if isinstance(value, dict):
        if not all(isinstance(key, (str, bytes, int)) for key in value):
            raise pickle.UnpicklingError("it holds a dict whose keys are not text")
        result = {key: _plain(item, depth + 1, done) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)(_plain(item, depth + 1, done) for item in value)
    elif isinstance(value, _Array):
        result = value.array
        if result is None:
            raise pickle.UnpicklingError("it holds an array without content")
    elif value is None or isinstance(value, (bool, int, float, str, bytes, bytearray)):
        result = value
    else:
        raise pickle.UnpicklingError("it holds a name where data belong")
    done[id(value)] = result
    return result


def loads(data: bytes, name: str, encoding: str = "ASCII") -> Any:
    """Return what a pickle holds: None, bool, int, float, str, bytes, list, tuple, dict and read-only arrays of numbers.

    Args:
        data: The pickle, any protocol.
        name: What to call it in messages.
        encoding: How strings written by Python 2 are read; "bytes" where they may be data.

    Raises:
        ValueError: If it is damaged, or asks for anything that data do not need.
    """
    with refusing(name):
        check_program(io.BytesIO(data))
        return plain(ArrayUnpickler(io.BytesIO(data), encoding=encoding).load())


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Turn whatever a hostile or damaged pickle raises inside into one ``ValueError`` that names it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(f"pickle {name} is refused or damaged: {brief(error)}; use an unmodified copy.") from error
    except _ERRORS as error:
        raise ValueError(f"pickle {name} is truncated or damaged ({brief(error)}): use an unmodified copy.") from error


def load(path: Path) -> Any:
    """Read a pickle file as ``loads`` does.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is unreadable, too large, damaged, or asks for anything that data do not need.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"pickle {path} has {path.stat().st_size} bytes: statistics have less than {MAX_BYTES}.")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"pickle {path} can't be read: {error.strerror}.") from error
    return loads(data, str(path))
