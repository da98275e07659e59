"""Datasets, image transforms and the resumable data order.

Every dataset is an ``ImageDataset``: exact uint8 images by index. ``build_loader`` adds what training needs on top: the
order, the flips and the split over processes, all of them functions of (seed, position).
"""

from __future__ import annotations

from generative.core.images import images_to_float, images_to_uint8
from generative.data.base import BadImage, ImageDataset, check_images
from generative.data.cifar10 import CIFAR10Dataset
from generative.data.digits import DigitsDataset
from generative.data.image_folder import ImageFolderDataset
from generative.data.parquet import ParquetDataset
from generative.data.prepared import PreparedDataset
from generative.data.sampler import (
    EpochOrder,
    PositionDataset,
    StepBatchSampler,
    build_loader,
    epoch_index,
    epoch_permutation,
    flip_mask,
)

__all__ = [
    "BadImage",
    "CIFAR10Dataset",
    "DigitsDataset",
    "EpochOrder",
    "ImageDataset",
    "ImageFolderDataset",
    "ParquetDataset",
    "PositionDataset",
    "PreparedDataset",
    "StepBatchSampler",
    "build_loader",
    "check_images",
    "epoch_index",
    "epoch_permutation",
    "flip_mask",
    "images_to_float",
    "images_to_uint8",
]
