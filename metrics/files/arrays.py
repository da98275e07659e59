"""Read .npy and .npz files of strangers: no pickle, no allocation that the file does not back, one sentence on damage."""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from metrics.files.zips import JoinedZipError, open_zip

#: What NumPy's header parser and the zip reader raise on damaged data.
READ_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # zipfile on an encrypted member or an unknown compression
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_MAX_DETAIL = 120  # Characters of a library's own words that a message passes on.
#: Arrays up to this size are unpacked whatever they were packed to; larger ones from up to this part of it: deflate takes zeros
#: to a thousandth, photographs hardly to the half.
_FREE_BYTES = 1 << 30
_MAX_INFLATION = 100
#: Booleans, integers, floats and text: what an array may hold. Objects would need pickle.
_ALLOWED_KINDS = "biufUS"


class RefusedArrayError(ValueError):
    """An array that is whole and is not read; the text is a predicate."""


class ArrayHeader(NamedTuple):
    """What an .npy header says, checked."""

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool

    @property
    def num_bytes(self) -> int:
        """Size of the data that must follow."""
        return math.prod(self.shape) * self.dtype.itemsize


def brief(error: Exception) -> str:
    """Return what an error says, its first line and no longer than a sentence bears."""
    lines = str(error).splitlines()
    text = lines[0] if lines else ""
    return (text if len(text) <= _MAX_DETAIL else f"{text[:_MAX_DETAIL]}...") or type(error).__name__


@contextmanager
def reading(path: Path, what: str = "npz file") -> Iterator[None]:
    """Turn whatever damaged content raises inside into one ``ValueError`` that names the file."""
    try:
        yield
    except (JoinedZipError, RefusedArrayError) as error:
        raise ValueError(f"{what} {path} {error}.") from error
    except READ_ERRORS as error:
        raise ValueError(f"{what} {path} can't be read ({brief(error)}): it is truncated or corrupt, write it again.") from error


def read_npy_header(stream: BinaryIO) -> ArrayHeader:
    """Read an .npy header.

    Raises:
        RefusedArrayError: If the type is not one of plain numbers or text.
        ValueError: On damage, or others of ``READ_ERRORS``.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise RefusedArrayError(f"holds an array of npy format {version[0]}.{version[1]}, for named fields: save plain numbers")
    if dtype.hasobject:
        raise RefusedArrayError(
            f"holds an array of dtype {dtype}: Python objects (a dictionary, a list of arrays of several shapes) that only "
            "unpickling would read, which may run anything and is never done here; save plain arrays of numbers"
        )
    if dtype.kind not in _ALLOWED_KINDS or dtype.itemsize == 0 or dtype.subdtype is not None:
        raise RefusedArrayError(f"holds an array of dtype {dtype}, which is not one of numbers: save plain arrays of numbers")
    if any(size < 0 for size in shape):
        raise ValueError(f"an array of shape {shape}")
    return ArrayHeader(tuple(int(size) for size in shape), dtype, bool(is_fortran))


def _read_npy(stream: BinaryIO, num_bytes: int) -> np.ndarray:
    """Read an array, checked against the size of what holds it before anything is allocated."""
    header = read_npy_header(stream)
    if header.num_bytes != num_bytes - stream.tell():
        raise ValueError(f"an array of shape {header.shape} and dtype {header.dtype} in {num_bytes} bytes")
    data = stream.read(header.num_bytes)
    if len(data) != header.num_bytes:
        raise ValueError(f"{len(data)} bytes of an array of {header.num_bytes}")
    return np.frombuffer(data, header.dtype).reshape(header.shape, order="F" if header.is_fortran else "C")


def _member(archive: zipfile.ZipFile, key: str) -> zipfile.ZipInfo:
    return archive.getinfo(f"{key}.npy")


def npz_keys(path: Path) -> list[str]:
    """List the arrays of an npz file without reading them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an npz file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist.")
    try:
        with open_zip(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except JoinedZipError as error:
        raise ValueError(f"npz file {path} {error}.") from error
    except READ_ERRORS as error:
        raise ValueError(f"{path} is not an npz file, or is truncated: write it again.") from error


def read_npz(path: Path, key: str) -> np.ndarray:
    """Read one array of an npz file, without pickle.

    Raises:
        ValueError: If it is absent, damaged or holds objects.
    """
    with reading(path), zipfile.ZipFile(path) as archive:
        member = _member(archive, key)
        _refuse_bomb(member)
        with archive.open(member) as stream:
            return _read_npy(cast(BinaryIO, stream), member.file_size)


def _refuse_bomb(member: zipfile.ZipInfo) -> None:
    """Raise ``RefusedArrayError`` for an array of gigabytes that a small file unpacks to."""
    size, packed = member.file_size, max(1, member.compress_size)
    if size > _FREE_BYTES and size > _MAX_INFLATION * packed:
        raise RefusedArrayError(
            f"holds an array of {size / 2**30:,.1f} GiB in {packed / 2**20:,.1f} MiB, more than images and features are packed: "
            "save it uncompressed, by numpy.savez, if it is meant"
        )


def npz_header(path: Path, key: str) -> ArrayHeader:
    """Read the shape and type of one array of an npz file.

    Raises:
        ValueError: If it is absent, damaged or holds objects.
    """
    with reading(path), zipfile.ZipFile(path) as archive:
        member = _member(archive, key)
        with archive.open(member) as stream:
            header = read_npy_header(cast(BinaryIO, stream))
            if header.num_bytes != member.file_size - stream.tell():
                raise ValueError(f"{key} of shape {header.shape} and dtype {header.dtype} in {member.file_size} bytes")
            return header


def npz_checksums(path: Path, keys: list[str]) -> list[int]:
    """Return the CRC-32 and size that the archive's directory gives for some arrays: what they hold, without reading them."""
    with reading(path), zipfile.ZipFile(path) as archive:
        return [number for key in keys for number in (_member(archive, key).CRC, _member(archive, key).file_size)]


def stored_offset(path: Path, key: str) -> int | None:
    """Return where an array's .npy begins in an npz file if it is not compressed, else None."""
    with reading(path), zipfile.ZipFile(path) as archive:
        member = _member(archive, key)
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            return None
        with path.open("rb") as file:
            # APPNOTE.TXT 4.3.7: a local header of 30 bytes ends with the lengths of the name and the extra field.
            file.seek(member.header_offset)
            header = file.read(30)
            if len(header) != 30 or header[:4] != b"PK\x03\x04":
                raise ValueError(f"no header of {key}.npy where the directory says")
            name_length, extra_length = struct.unpack("<HH", header[26:])
            return int(member.header_offset + len(header) + name_length + extra_length)


def read_npy(path: Path) -> np.ndarray:
    """Read an .npy file, without pickle.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist.")
    with reading(path, "npy file"), path.open("rb") as stream:
        return _read_npy(stream, path.stat().st_size)


def npy_header(path: Path) -> ArrayHeader:
    """Read the shape and type of an .npy file.

    Raises:
        ValueError: If it is damaged or holds objects.
    """
    with reading(path, "npy file"), path.open("rb") as stream:
        header = read_npy_header(stream)
        if header.num_bytes != path.stat().st_size - stream.tell():
            raise ValueError(f"an array of shape {header.shape} and dtype {header.dtype} in {path.stat().st_size} bytes")
        return header


def holds_image_array(path: Path) -> bool:
    """Return whether an .npy file holds whole numbers of four dimensions, as images are; embeddings are floats (N, D)."""
    try:
        header = npy_header(path)
    except (ValueError, OSError):
        return False
    return header.dtype.kind in "iu" and len(header.shape) == 4
