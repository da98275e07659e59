"""Reader of CIFAR's python batches: pickle files, read as data and never run (see ``metrics.files.safe_pickle``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from generative.core.errors import UserError
from metrics.files import safe_pickle


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
        # "bytes" because the official files were written by Python 2, whose strings are bytes.
        batch = safe_pickle.loads(content, str(path), encoding="bytes")
    except OSError as error:
        raise UserError(f"CIFAR batch '{path}' cannot be read ({error.strerror}); check the file") from error
    except ValueError as error:
        raise UserError(f"CIFAR batch: {error}") from error
    if not isinstance(batch, dict):
        raise UserError(f"CIFAR batch '{path}' holds a {type(batch).__name__} instead of a dict; use an unmodified copy")
    pixels, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
        raise UserError(f"CIFAR batch '{path}' has no 'data' of shape (N, 3072) uint8; use an unmodified copy")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels) or len(labels) != len(pixels):
        raise UserError(f"CIFAR batch '{path}' needs 'labels', one integer for each of its {len(pixels)} images")
    return pixels, np.asarray(labels, dtype=np.int64)
