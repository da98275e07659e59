"""What a feature extractor is: a frozen network from a float image batch to named feature vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

_WHITE = 255.0
#: ImageNet's pixel statistics over values in [0, 1], as torchvision and its users round them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FeatureExtractor(nn.Module, ABC):
    """A frozen network whose features metrics compare.

    One's own extractor is a subclass in one file with the attributes below, a ``from_file`` and a ``forward``; pass an
    instance to ``MetricSuite``, name it ``path/to/file.py:ClassName`` on the command line, or add a line to
    ``metrics.registry.EXTRACTORS`` to give it a name of its own.
    """

    #: What the network is, e.g. "inception-v3".
    name: str
    #: Side in pixels that the resizer brings images to.
    input_size: int
    #: sha256 of the weight file: a score names it.
    weights_sha256: str
    #: Feature name -> dimension D.
    feature_dims: dict[str, int]
    #: Feature that distances compare unless told otherwise.
    embedding: str
    #: Feature that holds class logits, or None if the network is no classifier.
    class_logits: str | None = None
    #: Feature name -> what the literature calls its Frechet distance ("fid"), where it has a name.
    frechet_names: ClassVar[dict[str, str]] = {}
    #: sha256 of the file that defines one's own network, so that features are not taken from before it was edited; None for ours.
    code_sha256: str | None = None
    #: Resizer that the network's published scores use.
    default_resizer: ClassVar[str] = "clean"
    #: Images per forward pass on one core: few, so that activations stay in its cache, but with fewer than 16 and a single
    #: thread torch runs some convolutions without oneDNN (EfficientNet-Lite0 at 96 px: 575 images/s at 8, 1056 at 16).
    microbatch: ClassVar[int] = 16

    @classmethod
    @abstractmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Build the network.

        Args:
            weights: Its weight file; None takes the packaged or cached one, or downloads and verifies it.
            input_size: Side in pixels; None takes the network's own.

        Raises:
            FileNotFoundError: If there are no weights to be had.
            ValueError: If the file is corrupt, not this network's, or the network has one input size only.
        """

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute features.

        Args:
            images: float32 (B, 3, h, w) in [0, 255].

        Returns:
            Feature name -> float32 (B, D).
        """

    def compute(self, images: Tensor, features: Iterable[str]) -> dict[str, Tensor]:
        """Compute at least the features named; a network that can leave the others out overrides this."""
        return self.forward(images)

    def match_protocol(self, images: Tensor, resizer: str) -> Tensor:
        """Return the images as ``forward`` must get them under a resizer's protocol; most networks know only one way."""
        return images

    def normalization(self, resizer: str) -> str:
        """Describe how pixel values enter the network, for the printed protocol."""
        return "the network's own"

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: a score under training-mode batch norm depends on the batch."""
        return super().train(False)

    def freeze(self) -> Self:
        """Put the network in its only state: no gradients to weights, evaluation mode, channels last in memory."""
        self.requires_grad_(False)
        self.train(False)
        return self.to(memory_format=torch.channels_last)


class PixelNormalization(nn.Module):
    """(x / 255 - mean) / std per channel.

    Args:
        mean: Of red, green and blue, over values in [0, 1].
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * _WHITE, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * _WHITE, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise float32 (B, 3, h, w) in [0, 255]."""
        return (images - self.mean) / self.std


def fold_batch_norm(weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Fold an evaluation-mode batch norm into the bias-free convolution before it.

    Args:
        weight: (C_out, C_in, kh, kw) of the convolution.
        gamma: (C_out,) scale of the batch norm; likewise ``beta`` its shift, ``mean`` and ``var`` its running
            statistics.
        eps: The batch norm's epsilon.

    Returns:
        Weight and bias of the one convolution that does both, float32.
    """
    scale = gamma.double() / (var.double() + eps).sqrt()
    folded = weight.float() * scale.float()[:, None, None, None]
    return folded, (beta.double() - mean.double() * scale).float()
