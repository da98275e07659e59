"""Named resizers: which filter brings an image to the extractor's size is part of a score's protocol.

``clean`` follows clean-fid (Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation",
arXiv:2104.11222), ``pytorch-fid`` follows pytorch-fid, ``tensorflow`` TF1's ResizeBilinear as in TTUR and
torch-fidelity, ``cmmd`` the published CMMD code, ``clip-fid`` clean-fid's CLIP-FID, ``dinov2`` EDM2's FD-DINOv2 and
``dinov2-pil`` that of dgm-eval. All of them resize each side to ``size``, whatever the aspect ratio, except ``cmmd``,
which crops the centre square first, and ``clip-fid``, which crops it afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from metrics import registry

_BICUBIC_A = -0.5  # Keys' cubic convolution parameter in Pillow's BICUBIC (torch's bicubic without antialias has -0.75).
_BICUBIC_SUPPORT = 2.0  # Pixels either side that the cubic filter reaches at scale 1.
_MAX_CACHED_SIZES = 64
_BAND_ROWS = 24  # Rows of the filter matrix per product: of 16, 24, 32, 48 the fastest for 256 -> 299 px on one core.
_LARGE_PIXELS = 1 << 22  # Larger images are resized in parts: twelve megapixels in floating point take 144 MB on every core.
_BLOCK_PIXELS = 1 << 20  # Pixels of such an image in floating point at once.
_CHUNK_PIXELS = 256 * 256  # Pixels resized at once on a CPU: more do not fit its cache (3x slower for 8 images of 256 px).


class Resizer(ABC):
    """Brings uint8 images of any sizes to one float batch."""

    name: str

    def __call__(self, images: list[Tensor] | Tensor, size: int) -> Tensor:
        """Resize a batch.

        Args:
            images: uint8 (B, 3, H, W), or a list of uint8 (3, H, W) of mixed sizes, in [0, 255].
            size: Side of the result in pixels.

        Returns:
            float32 (B, 3, size, size) on the images' device, in [0, 255] (``dinov2`` rings past both ends, as its
            origin does).

        Raises:
            TypeError: If an image is not uint8.
            ValueError: If an image is not (3, H, W).
        """
        if isinstance(images, Tensor):
            check_images(images)
            return self.resize(images, size)
        if not images:
            raise ValueError("no images to resize: the list is empty.")
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            check_images(image[None])
            groups.setdefault((image.shape[1], image.shape[2]), []).append(index)
        if len(groups) == 1:
            return self.resize(torch.stack(images) if len(images) > 1 else images[0][None], size)
        # Images of one size are resized together; the filter never sees more than one image, so grouping changes nothing.
        result = torch.empty((len(images), 3, size, size), dtype=torch.float32, device=images[0].device)
        for indices in groups.values():
            same = [images[index] for index in indices]
            result[indices] = self.resize(torch.stack(same) if len(same) > 1 else same[0][None], size)
        return result

    @abstractmethod
    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""


def check_images(images: Tensor) -> None:
    """Raise unless ``images`` is uint8 (B, 3, H, W) with at least one pixel."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 in [0, 255], got {images.dtype}: convert them before scoring.")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}.")


def build_resizer(name: str) -> Resizer:
    """Return the resizer of that name.

    Raises:
        ValueError: If no resizer has that name.
    """
    resizer: Resizer = registry.resolve("resizer", registry.RESIZERS, name)()
    return resizer


@lru_cache(maxsize=_MAX_CACHED_SIZES)
def bicubic_matrix(in_size: int, out_size: int) -> Tensor:
    """Return Pillow's antialiased bicubic filter along one axis as a matrix.

    The filter is Keys' cubic stretched by the downscaling factor, its taps cut at the border and normalised
    to sum 1, as Pillow's resampling does in double precision.

    Returns:
        float32 (out_size, in_size): output row = matrix @ input row.
    """
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = _BICUBIC_SUPPORT * stretch
    matrix = np.zeros((out_size, in_size))
    for row in range(out_size):
        center = (row + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), in_size)
        weights = _keys_cubic((np.arange(first, last) - center + 0.5) / stretch)
        matrix[row, first:last] = weights / weights.sum()
    return torch.from_numpy(matrix).float()


def _keys_cubic(x: np.ndarray) -> np.ndarray:
    """Keys, "Cubic convolution interpolation for digital image processing" (1981), equation 4, with a = -0.5."""
    x = np.abs(x)
    a = _BICUBIC_A
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@dataclass(frozen=True)
class FilterBand:
    """A few rows of a filter matrix, cut to the columns where they are not zero.

    Args:
        outputs: Rows of the matrix, which are pixels of the result.
        inputs: Columns of the matrix, which are pixels of the source.
        weights: float32 (len(outputs), len(inputs)).
    """

    outputs: slice
    inputs: slice
    weights: Tensor


@lru_cache(maxsize=_MAX_CACHED_SIZES)
def bicubic_bands(in_size: int, out_size: int) -> tuple[FilterBand, ...]:
    """Return ``bicubic_matrix`` without most of its zeros: a filter of 4 taps touches 4 of 256 columns in each row."""
    matrix = bicubic_matrix(in_size, out_size)
    bands = []
    for first in range(0, out_size, _BAND_ROWS):
        rows = matrix[first : first + _BAND_ROWS]
        used = rows.any(0).nonzero()
        inputs = slice(int(used[0]), int(used[-1]) + 1)
        bands.append(FilterBand(slice(first, first + len(rows)), inputs, rows[:, inputs].contiguous()))
    return tuple(bands)


class CleanResizer(Resizer):
    """clean-fid's resize: Pillow's antialiased bicubic per float channel, clipped, never quantised.

    Pillow filters rows, then columns, each a matrix product. On a CPU the matrices are cut into bands, which leaves
    an eighth of the arithmetic at 256 px, and images go through in chunks that fit the cache.
    """

    name = "clean"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""
        height, width = images.shape[2:]
        if images.device.type != "cpu":
            rows = bicubic_matrix(height, size).to(images.device)
            columns = bicubic_matrix(width, size).to(images.device)
            return (rows @ (images.float() @ columns.T)).clamp_(0.0, 255.0)  # (B, 3, size, size)
        result = torch.empty(len(images), 3, size, size)
        num_at_once = max(1, _CHUNK_PIXELS // (height * width))
        for source, target in zip(images.split(num_at_once), result.split(num_at_once), strict=True):
            wide = torch.empty(len(source), 3, height, size)
            num_blocks = 1 if height * width <= _LARGE_PIXELS else -(-height * width // _BLOCK_PIXELS)
            rows_at_once = -(-height // num_blocks)  # Even blocks: products of few rows round otherwise.
            for block, wide_block in zip(source.split(rows_at_once, 2), wide.split(rows_at_once, 2), strict=True):
                pixels = block.float()
                for band in bicubic_bands(width, size):
                    wide_block[..., band.outputs] = pixels[..., band.inputs] @ band.weights.T
            for band in bicubic_bands(height, size):
                target[:, :, band.outputs] = band.weights @ wide[:, :, band.inputs]
        return result.clamp_(0.0, 255.0)


def _by_channel(images: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of (B, 3, H, W) that treats channels alike; to one of large images at a time, which takes less memory."""
    if images.device.type != "cpu" or images.shape[2] * images.shape[3] <= _LARGE_PIXELS:
        return resize(images)
    return torch.cat([resize(plane) for plane in images.split(1, 1)], 1)


class PytorchFidResizer(Resizer):
    """pytorch-fid's resize: bilinear with half-pixel centres, no antialias."""

    name = "pytorch-fid"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""
        return _by_channel(
            images, lambda planes: F.interpolate(planes.float(), size=(size, size), mode="bilinear", align_corners=False)
        )


class TensorflowResizer(Resizer):
    """TF1's ResizeBilinear: source coordinate = index * scale, without half-pixel centres, no antialias.

    It is torch's bilinear with aligned corners from one pixel more to one pixel more: coordinates are then
    index * ((in + 1) - 1) / ((out + 1) - 1), TF's, and the pixel added, a copy of the last, is TF's clamp at the border.
    """

    name = "tensorflow"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""

        def resize(planes: Tensor) -> Tensor:
            padded = F.pad(planes.float(), (0, 1, 0, 1), mode="replicate")
            return F.interpolate(padded, size=(size + 1, size + 1), mode="bilinear", align_corners=True)[..., :size, :size]

        return _by_channel(images, resize)


def _pillow_bicubic(images: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 (B, 3, H, W) to uint8 (B, 3, height, width) with Pillow's bicubic on 8-bit RGB: antialiased, rounded."""
    if images.shape[2:] == (height, width):
        return images
    pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    resized = [np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)) for image in pixels]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(images.device)


class CmmdResizer(Resizer):
    """The published CMMD input: centre square, then Pillow's bicubic on 8-bit RGB (antialiased, rounded to integers)."""

    name = "cmmd"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""
        height, width = images.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _pillow_bicubic(images[:, :, top : top + side, left : left + side], size, size).float()


class ClipFidResizer(Resizer):
    """clean-fid's CLIP-FID input: the shorter side to ``size`` with Pillow's bicubic on 8-bit RGB, then the centre square.

    It is torchvision's Resize and CenterCrop on a Pillow image, with their rounding; clean-fid runs them in place of its
    own resize to 299 px, not after it.
    """

    name = "clip-fid"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""
        short = min(images.shape[2:])
        height, width = (int(size * side / short) for side in images.shape[2:])
        top, left = round((height - size) / 2), round((width - size) / 2)  # Halves go to the even number.
        return _pillow_bicubic(images, height, width)[:, :, top : top + size, left : left + size].float()


class Dinov2Resizer(Resizer):
    """EDM2's FD-DINOv2 input: torch's antialiased bicubic in float, neither clipped nor rounded."""

    name = "dinov2"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size), which rings past 0 and 255 at sharp edges."""
        return _by_channel(
            images, lambda planes: F.interpolate(planes.float(), size=(size, size), mode="bicubic", antialias=True)
        )


class Dinov2PilResizer(Resizer):
    """dgm-eval's FD-DINOv2 input, also EDM2's "pil" mode: Pillow's bicubic on 8-bit RGB."""

    name = "dinov2-pil"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""
        return _pillow_bicubic(images, size, size).float()
