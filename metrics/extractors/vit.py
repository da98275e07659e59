"""The plain vision transformer (Dosovitskiy et al., arXiv:2010.11929) of self-supervised encoders, its parts named as timm's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.extractors.base import IMAGENET_MEAN, IMAGENET_STD, FeatureExtractor, PixelNormalization
from metrics.files.weights import load_tensors, sha256_of

_NORM_EPS = 1e-6


@dataclass(frozen=True)
class ViTSize:
    """Size of a vision transformer.

    Args:
        width: Channels.
        layers: Blocks.
        heads: Attention heads.
        patch_size: Side of a patch in pixels.
        image_size: Side of the images whose places the positions tell, in pixels.
    """

    width: int
    layers: int
    heads: int
    patch_size: int = 16
    image_size: int = 224


class _Block(nn.Module):
    """Pre-norm block of a vision transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform tokens (B, L, width)."""
        qkv = self.attn["qkv"](self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv)  # (B, heads, L, d)
        tokens = tokens + self.attn["proj"](mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))


class VisionTransformer(nn.Module):
    """Patches and a class token through pre-norm blocks; the last norm is there and is the caller's to apply.

    Args:
        size: Of the transformer.
    """

    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        width, patch_size = size.width, size.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size.image_size // patch_size) ** 2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, patch_size)})
        self.blocks = nn.Sequential(*(_Block(width, size.heads) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)

    def class_token(self, images: Tensor) -> Tensor:
        """The class token (B, width) of the last block, before the last norm, of normalised images (B, 3, s, s)."""
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)  # (B, patches, width)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        token: Tensor = self.blocks(tokens)[:, 0]
        return token


class OfficialViT(FeatureExtractor):
    """A vision transformer whose weights are an official file of its training, given by path."""

    #: Size of the network.
    size: ClassVar[ViTSize]
    #: Where its weights are to be had.
    address: ClassVar[str]
    #: What the file calls the weights.
    entry: ClassVar[str]

    def __init__(self, state: Mapping[str, Tensor], weights_sha256: str) -> None:
        super().__init__()
        self.input_size = self.size.image_size
        self.weights_sha256 = weights_sha256
        self.normalize = PixelNormalization(IMAGENET_MEAN, IMAGENET_STD)

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Build the network from an official file."""
        if input_size not in (None, cls.size.image_size):
            raise ValueError(f"{cls.name} takes images of {cls.size.image_size} px only, got input size {input_size}.")
        if weights is None:
            raise FileNotFoundError(f"{cls.name} takes its weights by file: get them from {cls.address}, and name the file.")
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"weights file {path} does not exist.")
        return cls(load_tensors(path, cls.entry), sha256_of(path))

    def normalization(self, resizer: str) -> str:
        """Describe how pixel values enter the network."""
        return "ImageNet mean and std"
