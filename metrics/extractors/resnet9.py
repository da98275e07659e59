"""A nine-layer residual classifier for small images, trained on one's own data set: features where ImageNet's do not fit.

Nothing is packaged: ``fid-score --train-extractor TRAIN OUT.safetensors --extractor resnet9`` trains it, and ``--weights`` names
the file. Distances on it are not FID, compare only under the same weights, and are labelled so. The AM score (arXiv:1703.02000)
asks for just such a classifier. Layers: residual blocks (He et al., arXiv:1512.03385), four widths, max pooling between them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.extractors.base import FeatureExtractor
from metrics.files.weights import sha256_of
from metrics.files.whole import whole_file

_CENTER = 127.5
MIN_INPUT_SIZE = 8  # Total stride: a smaller image leaves no position in the last map.
_ARCHITECTURE = "resnet9"  # Key of the file's metadata, too.


class _ConvBlock(nn.Sequential):
    """Convolution, batch norm, ReLU; halves the size if asked to."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool = False) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
        super().__init__(*layers, *([nn.MaxPool2d(2)] if pool else []))


class ResNet9Network(nn.Module):
    """The network, from normalised images to features and logits.

    Args:
        num_classes: Classes K.
        width: Channels of the first layer; the embedding has 8 times as many.
    """

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = _ConvBlock(3, width)
        self.stage1 = _ConvBlock(width, 2 * width, pool=True)
        self.residual1 = nn.Sequential(_ConvBlock(2 * width, 2 * width), _ConvBlock(2 * width, 2 * width))
        self.stage2 = _ConvBlock(2 * width, 4 * width, pool=True)
        self.stage3 = _ConvBlock(4 * width, 8 * width, pool=True)
        self.residual3 = nn.Sequential(_ConvBlock(8 * width, 8 * width), _ConvBlock(8 * width, 8 * width))
        self.classifier = nn.Linear(8 * width, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Return the pooled features (B, 8 width) of images (B, 3, H, W) in [-1, 1]."""
        hidden = self.stage1(self.stem(images))  # (B, 2 width, H/2, W/2)
        hidden = hidden + self.residual1(hidden)
        hidden = self.stage3(self.stage2(hidden))  # (B, 8 width, H/8, W/8)
        hidden = hidden + self.residual3(hidden)
        return F.adaptive_avg_pool2d(hidden, 1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, 3, H, W) in [-1, 1]."""
        return self.classifier(self.embed(images))


def normalise(images: Tensor) -> Tensor:
    """Bring pixel values in [0, 255] to float32 in [-1, 1]."""
    return (images.float() - _CENTER) / _CENTER


def save_resnet9(path: Path, network: ResNet9Network, facts: dict[str, Any]) -> None:
    """Write a trained network, whole or not at all.

    Args:
        path: A .safetensors file.
        network: The network.
        facts: What it was trained on and how well it does; must hold ``input_size``. Kept as metadata.
    """
    sizes = {"num_classes": network.classifier.out_features, "width": network.classifier.in_features // 8}
    metadata = {_ARCHITECTURE: json.dumps({**sizes, **facts})}  # one entry: their order in a file is not fixed
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    with whole_file(path) as file:
        file.write(save(state, metadata=metadata))


class ResNet9(FeatureExtractor):
    """A trained nine-layer classifier. Features: ``pooled`` (8 x width) and ``logits``.

    Args:
        network: With its weights.
        weights_sha256: sha256 of the file it came from.
        input_size: Side in pixels that it was trained at.
    """

    name = "resnet9"
    embedding = "pooled"
    class_logits = "logits"

    def __init__(self, network: ResNet9Network, weights_sha256: str, input_size: int) -> None:
        super().__init__()
        self.network = network
        self.weights_sha256 = weights_sha256
        self.input_size = input_size
        self.feature_dims = {"pooled": network.classifier.in_features, "logits": network.classifier.out_features}

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Build the network from a file that ``--train-extractor`` wrote."""
        if weights is None:
            raise FileNotFoundError(
                "resnet9 has no weights of its own: train it with `fid-score --train-extractor TRAIN OUT.safetensors --extractor "
                "resnet9`, and name the file with --weights."
            )
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"weights file {path} does not exist.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
            facts = json.loads(metadata[_ARCHITECTURE]) if _ARCHITECTURE in metadata else None
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"weights file {path} is damaged or no safetensors file: {error}.") from error
        if facts is None:
            raise ValueError(f"weights file {path} was not written by --train-extractor for resnet9.")
        network = ResNet9Network(facts["num_classes"], facts["width"])
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"weights file {path} does not hold the tensors of resnet9.") from error
        size = facts["input_size"] if input_size is None else input_size
        if size < MIN_INPUT_SIZE:
            raise ValueError(f"input size of resnet9 must be at least {MIN_INPUT_SIZE} px, got {size}.")
        return cls(network, sha256_of(path), size)

    def normalization(self, resizer: str) -> str:
        """Describe how pixel values enter the network."""
        return "(x - 127.5) / 127.5"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute both features of images, float32 (B, 3, h, w) in [0, 255]."""
        pooled = self.network.embed(normalise(images).contiguous(memory_format=torch.channels_last))  # (B, D)
        return {"pooled": pooled, "logits": self.network.classifier(pooled)}  # logits (B, K)
