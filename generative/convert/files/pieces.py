"""Weights in several files with an index, as the Hugging Face Hub has large networks: read as one file would be."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from generative.core.checkpoint import piece_paths
from generative.core.errors import UserError

INDEX_SUFFIX = ".index.json"
"""Ends the name of the index, which begins with that of the file that its pieces stand for."""
PIECE = re.compile(r"-\d{5}-of-\d{5}(\.\w+)$")
"""Ends the name of a piece."""


def is_pieces_index(path: Path) -> bool:
    """Whether a file is such an index, by its name."""
    return path.name.endswith(INDEX_SUFFIX)


def index_of(path: Path) -> Path:
    """The index beside a piece; any other file itself."""
    name = PIECE.sub(r"\1", path.name)
    return path if name == path.name else path.with_name(name + INDEX_SUFFIX)


def pieces_of(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it.

    Raises:
        UserError: If the index is damaged, or one of them is missing.
    """
    pieces = piece_paths(index.with_name(index.name.removesuffix(INDEX_SUFFIX)))
    missing = [piece.name for piece in pieces if not piece.is_file()]
    if missing:
        raise UserError(f"'{index}' names '{missing[0]}', which does not lie beside it; get all {len(pieces)} files")
    return pieces


def read_pieces(index: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """All tensors of the files that an index names.

    Args:
        index: The index.
        read: Reads one file.

    Raises:
        UserError: As ``pieces_of``, and if a file holds something else than tensors by name.
    """
    found: dict[str, Any] = {}
    for piece in pieces_of(index):
        content = read(piece)
        if not isinstance(content, dict):
            raise UserError(f"'{piece}', which '{index.name}' names, holds no tensors by name; get the file anew")
        found |= content
    return found


def with_pieces(paths: Sequence[Path]) -> list[Path]:
    """Files, and those that each index among them names."""
    return [each for path in paths for each in ([path, *pieces_of(path)] if is_pieces_index(path) else [path])]
