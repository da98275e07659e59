"""Where images come from: a folder, a zip, a tar, parquet, an npz batch, or what a plugin provides (a pipeline).

Every source yields batches of uint8 (3, H, W) tensors in a fixed order, from any place in it, with labels where it has them.
Decoding runs in threads ahead of the consumer (Pillow releases the GIL), with a bounded number of images in memory.
"""

from metrics.sources.base import ImageBatch, ImageSource
from metrics.sources.encoded import ShardSource
from metrics.sources.folder import FolderSource
from metrics.sources.npz import NpySource, NpzSource
from metrics.sources.open import SOURCE_ENTRY_POINTS, is_generator, open_source
from metrics.sources.parquet import ParquetSource
from metrics.sources.tar import TarSource
from metrics.sources.zip import ZipSource

__all__ = [
    "SOURCE_ENTRY_POINTS",
    "FolderSource",
    "ImageBatch",
    "ImageSource",
    "NpySource",
    "NpzSource",
    "ParquetSource",
    "ShardSource",
    "TarSource",
    "ZipSource",
    "is_generator",
    "open_source",
]
