"""EDM's augmentation with labels (Karras et al., arXiv 2206.00364, appendix F.2): flips and a geometric transform.

The network is told how each image was transformed, so what it samples under labels of zero is not. Images are transformed as in
arXiv 2006.06676, appendix B: reflected at the borders, doubled by a wavelet's filter, resampled, and halved by the same filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.core.errors import UserError

AUGMENT_DIM = 9
"""Numbers that tell how an image was augmented."""
# Strengths: deviations of log2 of scale and of anisotropy, and of the shift over the image's size; share of turned anisotropies.
SCALE_STD, ANISOTROPY_STD, SHIFT_STD, TURNED_SHARE = 0.2, 0.2, 0.125, 0.5
# Low-pass filter of the symlet of 6 vanishing moments.
SYMLET_6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466),
    *(0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578),
    *(0.0017677118642428036, -0.007800708325034148),
)
BORDER = len(SYMLET_6) // 4
"""Pixels around the image that halving reads."""


@dataclass(frozen=True)
class Transforms:
    """Transforms of B images, each (B,); zeros leave an image as it is.

    Attributes:
        flip_x: 1 where mirrored left to right.
        flip_y: 1 where turned upside down.
        scale: log2 of the scale over ``SCALE_STD``.
        angle: Of the rotation.
        anisotropy: log2 of the stretch along one axis over ``ANISOTROPY_STD``; the other axis shrinks as much.
        axis: Angle of that axis.
        shift_x: Over the image's width and ``SHIFT_STD``.
        shift_y: Over its height.
    """

    flip_x: Tensor
    flip_y: Tensor
    scale: Tensor
    angle: Tensor
    anisotropy: Tensor
    axis: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def labels(self) -> Tensor:
        """What the network is told, (B, 9) float32."""
        stretch = (self.anisotropy * self.axis.cos(), self.anisotropy * self.axis.sin())
        turn = (self.angle.cos() - 1, self.angle.sin())
        parts = (self.flip_x, self.flip_y, self.scale, *turn, *stretch, self.shift_x, self.shift_y)
        return torch.stack(parts, dim=1).float()

    def inverse(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where each pixel of the result comes from: matrices (B, 2, 2) and offsets (B, 2), in pixels from the centre."""
        stretch = (-ANISOTROPY_STD * self.anisotropy).exp2()
        zeros = torch.zeros_like(stretch)
        axes = torch.stack([torch.stack([stretch, zeros], 1), torch.stack([zeros, 1 / stretch], 1)], dim=1)
        matrix = rotation(self.angle - self.axis) @ axes @ rotation(self.axis)
        matrix = (-SCALE_STD * self.scale).exp2()[:, None, None] * matrix
        shift = SHIFT_STD * torch.stack([width * self.shift_x, height * self.shift_y], dim=1)
        return matrix, -(matrix @ shift[:, :, None])[:, :, 0]

    def is_geometric(self) -> Tensor:
        """(B,) whether more than flips is done."""
        return (self.scale != 0) | (self.angle != 0) | (self.anisotropy != 0) | (self.shift_x != 0) | (self.shift_y != 0)


def rotation(angle: Tensor) -> Tensor:
    """Matrices (B, 2, 2) of angles (B,)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], dim=1)


class EDMAugment:
    """Augments images and tells how; for denoisers with ``augment_dim`` 9.

    Args:
        probability: Of each of vertical flips, scale, rotation, anisotropy and shift: 0.12 on CIFAR-10, 0.15 on FFHQ and AFHQ.
            Half of the images are mirrored whatever it is, unless it is 0, which leaves images as they are.

    Raises:
        UserError: If it is outside [0, 1].
    """

    def __init__(self, probability: float = 0.12) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"probability of augmentation must be in [0, 1], got {probability}")
        self.probability = probability

    def draw(self, batch_size: int, generator: torch.Generator) -> Transforms:
        """Draw transforms of B images, on the generator's device."""
        device = generator.device
        chosen = torch.rand(6, batch_size, generator=generator, device=device)
        flips = torch.randint(2, (2, batch_size), generator=generator, device=device)
        normals = torch.randn(4, batch_size, generator=generator, device=device)
        angles = (2 * torch.rand(2, batch_size, generator=generator, device=device) - 1) * math.pi
        flip_y, scale, turn, stretch, shift = (chosen[:5] < self.probability).float()
        return Transforms(
            flip_x=flips[0].float() * (self.probability > 0),
            flip_y=flips[1] * flip_y,
            scale=normals[0] * scale,
            angle=angles[0] * turn,
            anisotropy=normals[1] * stretch,
            axis=angles[1] * (chosen[5] < TURNED_SHARE),
            shift_x=normals[2] * shift,
            shift_y=normals[3] * shift,
        )

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment images.

        Args:
            images: (B, C, H, W).
            generator: Of the step; draws on its own device.

        Returns:
            Images of the same shape, and labels (B, 9) float32.
        """
        drawn = self.draw(len(images), generator)
        moved = Transforms(**{name: value.to(images.device) for name, value in vars(drawn).items()})
        return transform(images, moved), moved.labels()


def transform(images: Tensor, transforms: Transforms) -> Tensor:
    """Transform images (B, C, H, W); those that stay, or are flipped only, to the bit."""
    images = torch.where(over(transforms.flip_x) == 1, images.flip(3), images)
    images = torch.where(over(transforms.flip_y) == 1, images.flip(2), images)
    matrices, offsets = transforms.inverse(*images.shape[2:])
    is_geometric = transforms.is_geometric()
    if images.device.type != "cpu":  # all of them, so that nothing waits for the device
        return torch.where(over(is_geometric), warp(images, matrices, offsets), images)
    if not bool(is_geometric.any()):
        return images
    result = images.clone()
    result[is_geometric] = warp(images[is_geometric], matrices[is_geometric], offsets[is_geometric])
    return result


def over(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return values[:, None, None, None]


def warp(images: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
    """Take each pixel from where an affine map sends it, between the pixels of the doubled image.

    Args:
        images: (B, C, H, W).
        matrices: (B, 2, 2), x before y.
        offsets: (B, 2).

    Returns:
        (B, C, H, W).
    """
    height, width = images.shape[2:]
    with torch.autocast(images.device.type, enabled=False):
        up_rows, down_rows = resampling_matrices(height, images.device)
        up_columns, down_columns = resampling_matrices(width, images.device)
        doubled = up_rows @ images.float() @ up_columns.t()  # (B, C, 2 (3H - 2), 2 (3W - 2))
        # affine_grid counts half sizes; a pixel of the doubled image lies half of its own size before the centre of its origin.
        half_in = offsets.new_tensor([len(up_columns), len(up_rows)]) / 2
        half_out = offsets.new_tensor([width + 2 * BORDER, height + 2 * BORDER])
        start = matrices.sum(2) / 2 + 2 * offsets - 0.5
        theta = torch.cat([matrices * half_out, start[:, :, None]], dim=2) / half_in[:, None]  # (B, 2, 3)
        size = [*images.shape[:2], 2 * (height + 2 * BORDER), 2 * (width + 2 * BORDER)]
        sampled = F.grid_sample(doubled, F.affine_grid(theta, size, align_corners=False), align_corners=False)
        return (down_rows @ sampled @ down_columns.t()).to(images.dtype)


@lru_cache(maxsize=16)
def resampling_matrices(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Doubling and halving along one axis, float32.

    Args:
        size: N pixels.
        device: Of the result.

    Returns:
        (2 (3N - 2), N), which reflects the image N - 1 pixels beyond its borders first; (N, 2 (N + 6)), which cuts
        off the border.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        line = torch.tensor(SYMLET_6, dtype=torch.float64)[None, None]
        pixels = torch.eye(size, dtype=torch.float64)[:, None]  # (N, 1, N): each pixel alone
        wide = F.pad(pixels, (size - 1, size - 1), mode="reflect")
        spread = torch.stack([wide, torch.zeros_like(wide)], dim=3).flatten(2)[:, :, :-1]
        doubling = F.conv1d(spread, line.flip(2), padding=(line.shape[2] + 1) // 2)[:, 0].t()
        doubled_pixels = torch.eye(2 * (size + 2 * BORDER), dtype=torch.float64)[:, None]
        halving = F.conv1d(doubled_pixels, line, stride=2, padding=(line.shape[2] - 1) // 2)[:, 0, BORDER:-BORDER].t()
        return doubling.float().contiguous().to(device), halving.float().contiguous().to(device)
