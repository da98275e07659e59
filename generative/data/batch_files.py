"""Reader of batches of small images: CIFAR's and downsampled ImageNet's pickles, read as data and never run
(``metrics.files.safe_pickle``), and downsampled ImageNet's npz files, mapped where they are not compressed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from generative.core.errors import UserError
from metrics.files import safe_pickle
from metrics.files.arrays import npz_header, npz_keys, read_npy_header, read_npz, stored_offset

CIFAR_SIDE = 32
"""Side of CIFAR's images in pixels."""
MAX_LABEL = 2**31
"""Integers of a pickle know no bounds, those of arrays do."""


def read_batch(path: Path, label_key: str = "labels", side: int | None = CIFAR_SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of a python version without running anything in it.

    Args:
        path: ``data_batch_1`` or the like: a pickled dict with ``data``, (N, 3 S^2) uint8, and ``labels``, N integers.
        label_key: Name of the labels (``fine_labels`` of CIFAR-100).
        side: S; None takes what the file has.

    Returns:
        Pixels (N, 3 S^2) uint8, each row the red, green and blue plane; labels (N,) int64.

    Raises:
        UserError: If the file cannot be read, is damaged, asks for code, or is not such a dict.
    """
    try:
        content = path.read_bytes()
        # "bytes" because the official files were written by Python 2, whose strings are bytes.
        batch = safe_pickle.loads(content, str(path), encoding="bytes")
    except OSError as error:
        raise UserError(f"batch file '{path}' cannot be read ({error.strerror}); check the file") from error
    except ValueError as error:
        raise UserError(f"batch file: {error}") from error
    if not isinstance(batch, dict):
        raise UserError(f"batch file '{path}' holds a {type(batch).__name__} instead of a dict; use an unmodified copy")
    pixels, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", label_key))
    return _checked(path, pixels, labels, label_key, side)


def read_npz_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one npz file of downsampled ImageNet: ``data`` (N, 3 S^2) uint8 and ``labels`` (N,).

    Returns:
        As ``read_batch``; the pixels are mapped into memory where the file is not compressed.

    Raises:
        UserError: If it is no such file.
    """
    try:
        keys = npz_keys(path)
        if not {"data", "labels"} <= set(keys):
            raise UserError(
                f"'{path}' holds {', '.join(keys) or 'nothing'}; expected data and labels, as downsampled ImageNet has"
            )
        header, offset = npz_header(path, "data"), stored_offset(path, "data")
        if offset is None or header.is_fortran:
            pixels = read_npz(path, "data")
        else:
            with path.open("rb") as file:
                file.seek(offset)
                read_npy_header(file)
                pixels = np.memmap(path, header.dtype, "r", file.tell(), header.shape)
        return _checked(path, pixels, read_npz(path, "labels"), "labels", None)
    except UserError:
        raise
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error).rstrip(".")) from error


def _checked(path: Path, pixels: Any, labels: Any, label_key: str, side: int | None) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    columns = "3 S^2" if side is None else str(3 * side**2)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != 3 * (side or math.isqrt(pixels.shape[1] // 3)) ** 2
    ):
        raise UserError(f"batch file '{path}' has no 'data' of shape (N, {columns}) uint8; use an unmodified copy")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels) or len(labels) != len(pixels):
        raise UserError(f"batch file '{path}' needs '{label_key}', one integer for each of its {len(pixels)} images")
    if not labels:
        raise UserError(f"batch file '{path}' holds no images; use an unmodified copy")
    if max(map(abs, labels)) > MAX_LABEL:
        raise UserError(f"batch file '{path}' holds a class number beyond any, {max(labels, key=abs)}; use an unmodified copy")
    return pixels, np.asarray(labels, dtype=np.int64)
