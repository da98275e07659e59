"""Whether the files of a cache are what ``cache.json`` says: there, of their size, and byte by byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generative.core.errors import UserError
from generative.data.cache_files import CACHE_FILE, FILES
from metrics.files.weights import sha256_of


@dataclass(frozen=True)
class FileSum:
    """What a file of a cache must be.

    Attributes:
        bytes: Its size.
        sha256: Of its content, hexadecimal.
    """

    bytes: int
    sha256: str


def sum_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``cache.json`` is to say of the files of a cache that is whole: each one's size and sha256 by its name."""
    files = sorted(folder.glob("*.safetensors"))
    return {path.name: vars(FileSum(path.stat().st_size, sha256_of(path))) for path in files}


def read_sums(folder: Path) -> dict[str, FileSum]:
    """What ``cache.json`` says of the files; nothing where it was written before it did.

    Raises:
        UserError: If it is damaged.
    """
    path = folder / CACHE_FILE
    try:
        content = json.loads(path.read_text()).get(FILES, {})
        sums = {name: FileSum(int(entry["bytes"]), str(entry["sha256"])) for name, entry in content.items()}
        if any(Path(name).name != name for name in sums):
            raise ValueError("it names a file outside the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged ({' '.join(str(error).split())}); encode the images anew") from error
    return sums


def check_sizes(folder: Path, sums: dict[str, FileSum]) -> None:
    """Refuse a cache of which a file is missing or of another size; nothing is read.

    Raises:
        UserError: Naming the first such file.
    """
    for name, wanted in sums.items():
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            raise UserError(f"'{folder / name}' is missing or damaged ({error.strerror}); encode the images anew") from error
        if found != wanted.bytes:
            raise UserError(
                f"'{folder / name}' has {found:,} bytes and {CACHE_FILE} says {wanted.bytes:,}; encode the images anew, or "
                "restore it from a copy"
            )


def check_content(folder: Path, sums: dict[str, FileSum]) -> Iterator[tuple[int, str | None]]:
    """Read the files of a cache, whose sizes are as they should be.

    Yields:
        Bytes of a file, and what is wrong with it, the beginning of a sentence; None if it is well.
    """
    for name, wanted in sums.items():
        found = sha256_of(folder / name)
        altered = f"'{folder / name}' was altered (its sha256 begins with {found[:12]}, {CACHE_FILE} says {wanted.sha256[:12]})"
        yield wanted.bytes, None if found == wanted.sha256 else altered
