"""Open zip archives whole: Python's zipfile passes over what lies before the first member and behind the end."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

_END_MARK = b"PK\x05\x06"
_END_BYTES = 22
_MAX_COMMENT = 1 << 16
#: APPNOTE.TXT 8.5: an archive that was made for several disks and fits one begins with these.
_SPAN_MARKS = (b"PK\x07\x08", b"PK00")


class JoinedZipError(ValueError):
    """A zip with something beside it in its file; the text is a predicate."""


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip file and refuse one that shares its file with anything else.

    Raises:
        JoinedZipError: If there is something before the first member, or more than zeros behind the end.
        zipfile.BadZipFile: If it is no zip file; others of ``metrics.files.arrays.READ_ERRORS`` on damage.
    """
    archive = zipfile.ZipFile(path)
    try:
        with path.open("rb") as file:
            _check_ends(archive, file)
    except BaseException:
        archive.close()
        raise
    return archive


def _check_ends(archive: zipfile.ZipFile, file: BinaryIO) -> None:
    first = min((member.header_offset for member in archive.infolist()), default=0)
    if first > 0 and not (first == len(_SPAN_MARKS[0]) and file.read(first) in _SPAN_MARKS):
        raise JoinedZipError(
            f"holds {first:,} bytes before its first member, as archives joined by cat do, which would not be read: unpack the "
            "parts and make one archive of them"
        )
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_BYTES - _MAX_COMMENT))
    tail = file.read()
    # As zipfile looks for it: at the very end, else the last mark.
    end = len(tail) - _END_BYTES
    if not (tail[end:].startswith(_END_MARK) and tail.endswith(b"\0\0")):
        end = tail.rfind(_END_MARK)
    (comment,) = struct.unpack("<H", tail[end + _END_BYTES - 2 : end + _END_BYTES])
    behind = tail[end + _END_BYTES + comment :]
    if behind.strip(b"\0"):
        raise JoinedZipError(
            f"holds {len(behind):,} bytes behind its end, which would not be read: remove them, or write it again"
        )
