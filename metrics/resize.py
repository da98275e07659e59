"""Named resizers: which filter brings an image to the extractor's size is part of a score's protocol.

`clean` follows clean-fid (Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation",
arXiv:2104.11222), `pytorch-fid` follows pytorch-fid, `tensorflow` TF1's ResizeBilinear as in TTUR and
torch-fidelity, `cmmd` the published CMMD code. All of them resize each side to `size`, whatever the aspect
ratio, except `cmmd`, which crops the centre square first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class Resizer(ABC):
    """Brings uint8 images of any sizes to one float batch."""

    name: str

    def __call__(self, images: list[Tensor] | Tensor, size: int) -> Tensor:
        """Resize a batch.

        Args:
            images: uint8 (B, 3, H, W), or a list of uint8 (3, H, W) of mixed sizes, in [0, 255].
            size: Side of the result in pixels.

        Returns:
            float32 (B, 3, size, size) in [0, 255], on the images' device.

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
        # Images of one size are resized together; the filter never sees more than one image, so grouping changes nothing.
        result = torch.empty((len(images), 3, size, size), dtype=torch.float32, device=images[0].device)
        for indices in groups.values():
            result[indices] = self.resize(torch.stack([images[index] for index in indices]), size)
        return result

    @abstractmethod
    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""


def check_images(images: Tensor) -> None:
    """Raise unless `images` is uint8 (B, 3, H, W) with at least one pixel."""
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


class CleanResizer(Resizer):
    """clean-fid's resize: Pillow's antialiased bicubic per float channel, clipped, never quantised.

    Pillow filters rows, then columns, each a small matrix product; done so, a batch is resized at once.
    """

    name = "clean"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""
        rows = bicubic_matrix(images.shape[2], size).to(images.device)
        columns = bicubic_matrix(images.shape[3], size).to(images.device)
        wide = images.float() @ columns.T  # (B, 3, H, size)
        return (rows @ wide).clamp_(0.0, 255.0)  # (B, 3, size, size)


class PytorchFidResizer(Resizer):
    """pytorch-fid's resize: bilinear with half-pixel centres, no antialias."""

    name = "pytorch-fid"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""
        return F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False)


class TensorflowResizer(Resizer):
    """TF1's ResizeBilinear: source coordinate = index * scale, without half-pixel centres, no antialias."""

    name = "tensorflow"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""
        x = images.float()
        left, right, weight_x = _tf1_grid(images.shape[3], size, images.device)
        top, bottom, weight_y = _tf1_grid(images.shape[2], size, images.device)
        # Columns first, then rows, each as low + (high - low) * weight: TF's order of operations, so its rounding.
        wide = torch.lerp(x[..., left], x[..., right], weight_x)  # (B, 3, H, size)
        return torch.lerp(wide[..., top, :], wide[..., bottom, :], weight_y[:, None])  # (B, 3, size, size)


def _tf1_grid(in_size: int, out_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return low and high source indices and the weight of the high one, each (out_size,)."""
    scale = torch.tensor(in_size / out_size, dtype=torch.float32, device=device)
    position = torch.arange(out_size, dtype=torch.float32, device=device) * scale
    low = position.long().clamp_max(in_size - 1)
    high = (low + 1).clamp_max(in_size - 1)
    return low, high, position - low.float()


class CmmdResizer(Resizer):
    """The published CMMD input: centre square, then Pillow's bicubic on 8-bit RGB (antialiased, rounded to integers)."""

    name = "cmmd"

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]."""
        height, width = images.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = images[:, :, top : top + side, left : left + side].permute(0, 2, 3, 1).contiguous().cpu().numpy()
        resized = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in square]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float().to(images.device)
