"""Random streams and pictures that a seed decides, for all tests: ``from seeded import generator, png``."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image


def generator(seed: int = 0) -> torch.Generator:
    """A stream of random numbers."""
    return torch.Generator().manual_seed(seed)


def picture(seed: int, height: int = 6, width: int = 9) -> np.ndarray:
    """(height, width, 3) uint8 noise."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed: int, height: int = 6, width: int = 9) -> bytes:
    """A PNG file of a picture."""
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, height, width)).save(buffer, "PNG")
    return buffer.getvalue()
