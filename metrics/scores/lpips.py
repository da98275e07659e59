"""LPIPS: learned perceptual image patch similarity (Zhang et al., arXiv:1801.03924), VGG16, version 0.1.

Weights are never downloaded: VGG16's are torchvision's, the five linear layers those of the package ``lpips``
(``lpips/weights/v0.1/vgg.pth``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.files.weights import load_tensors

#: VGG16's convolutions by stage (arXiv:1409.1556, configuration D); a stage's last map after its ReLU is compared, then pooled.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
#: Mean and standard deviation of ImageNet for values in [-1, 1], as the official code rounds them.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
#: Added to the norm of a feature vector (official code).
_EPS = 1e-10
_MIN_SIZE = 16  # Four poolings leave one place of it.


def unit_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared difference (B, C, h, w) of two feature maps whose channel vectors are scaled to unit length.

    Args:
        first: (B, C, h, w), any floating dtype; the distance is float32.
        second: The same shape.
    """
    first, second = first.float(), second.float()
    return (first / _norm(first) - second / _norm(second)).square()


def _norm(features: Tensor) -> Tensor:
    """Length of the channel vectors, (B, 1, h, w); a vector of zeros has a gradient of zeros, not NaN."""
    squares = features.square().sum(1, keepdim=True)
    is_zero = squares == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squares).sqrt()) + _EPS


class LPIPS(nn.Module):
    """The frozen network: 0 for equal images, higher for less alike, mostly below 1.

    ``d(x, y) = sum over stages of mean over places of sum_c w_c (x_c - y_c)^2``, x and y unit channel vectors (eq. 1).
    It starts with random weights; ``from_files`` makes the published one.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        width = 3
        stages = []
        for widths in _STAGES:
            convs = []
            for out in widths:
                convs.append(nn.Conv2d(width, out, 3, padding=1))
                width = out
            stages.append(nn.ModuleList(convs))
        self.stages = nn.ModuleList(stages)
        self.weights = nn.ParameterList(torch.rand(widths[-1]) / widths[-1] for widths in _STAGES)  # (C,) each
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_files(cls, vgg: Path, linear: Path) -> Self:
        """Load the published network.

        Args:
            vgg: torchvision's VGG16 (``vgg16-397923af.pth``); its classifier is left out.
            linear: The linear layers (``vgg.pth`` of the package ``lpips``, version 0.1).

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If a file cannot be read or is another network's.
        """
        for path in (vgg, linear):
            if not Path(path).is_file():
                raise FileNotFoundError(f"weights file {path} does not exist.")
        network = cls()
        network.load_published(load_tensors(Path(vgg)), load_tensors(Path(linear)))
        return network

    def load_published(self, vgg: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> None:
        """Fill the network with published tensors.

        Args:
            vgg: ``features.N.weight`` and ``.bias`` of torchvision's VGG16.
            linear: ``linN.model.1.weight`` (1, C, 1, 1), N = 0..4.

        Raises:
            ValueError: If a tensor is missing or of another shape.
        """
        place = 0  # torchvision numbers convolutions, ReLUs and poolings alike.
        state: dict[str, Tensor] = {}
        for index, widths in enumerate(_STAGES):
            for number in range(len(widths)):
                for kind in ("weight", "bias"):
                    state[f"stages.{index}.{number}.{kind}"] = _take(vgg, f"features.{place}.{kind}", "VGG16")
                place += 2
            place += 1
            state[f"weights.{index}"] = _take(linear, f"lin{index}.model.1.weight", "LPIPS").flatten()
        for name, tensor in self.state_dict().items():
            if state[name].shape != tensor.shape:
                raise ValueError(
                    f"weights of LPIPS do not fit: {name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}."
                )
        self.load_state_dict(state)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Return the five maps (B, C, h, w) after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
        hidden = (images - self.shift) / self.scale
        maps = []
        for index, convs in enumerate(self.stages):
            if index:
                hidden = F.max_pool2d(hidden, 2)
            assert isinstance(convs, nn.ModuleList)
            for conv in convs:
                hidden = F.relu(conv(hidden))
            maps.append(hidden)
        return maps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare image pairs.

        Args:
            first: float (B, 3, H, W) in [-1, 1], at least 16 pixels wide and high.
            second: The same shape.

        Returns:
            float32 (B,).

        Raises:
            ValueError: If the shapes differ or the images are too small.
        """
        if first.shape != second.shape or first.dim() != 4 or first.shape[1] != 3 or min(first.shape[2:]) < _MIN_SIZE:
            raise ValueError(
                f"LPIPS compares images (B, 3, H, W) of at least {_MIN_SIZE} px, got {tuple(first.shape)} and "
                f"{tuple(second.shape)}."
            )
        distances = []
        for weights, ours, theirs in zip(self.weights, self.feature_maps(first), self.feature_maps(second), strict=True):
            weighted = unit_distance(ours, theirs) * weights[:, None, None]  # (B, C, h, w)
            distances.append(weighted.sum(1).mean((1, 2)))
        return torch.stack(distances).sum(0)


def _take(state: Mapping[str, Tensor], name: str, what: str) -> Tensor:
    if name not in state:
        raise ValueError(f"weights of LPIPS lack {name}: give {what}'s file, as its package names the tensors.")
    return state[name]


@torch.no_grad()
def lpips(network: LPIPS, first: Tensor, second: Tensor) -> Tensor:
    """LPIPS of pairs of 8-bit images.

    Args:
        network: The network, see ``LPIPS.from_files``.
        first: uint8 (B, 3, H, W).
        second: uint8, the same shape.

    Returns:
        float32 (B,) on the CPU; a mean over pairs is what papers print.

    Raises:
        TypeError: If the images are not uint8.
        ValueError: If the shapes differ or the images are too small.
    """
    if first.dtype != torch.uint8 or second.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {first.dtype} and {second.dtype}.")
    device = network.shift.device
    return network(first.to(device).float() / 127.5 - 1, second.to(device).float() / 127.5 - 1).cpu()
