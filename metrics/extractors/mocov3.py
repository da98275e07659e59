"""MoCo v3 vision transformers (Chen et al., arXiv:2104.02057), the encoders of RCG (arXiv:2312.03701).

Weight files: the official ``vit-b-300ep.pth.tar`` and its like, whose ``base_encoder`` is read, with positions for 224 px.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.extractors.base import IMAGENET_MEAN, IMAGENET_STD, FeatureExtractor, PixelNormalization
from metrics.extractors.weights import WeightReader
from metrics.files.weights import load_tensors, sha256_of

_PREFIX = re.compile(r"^(?:module\.)?base_encoder\.")
#: Parts that the authors of RCG found misnamed in the ViT-L file -> what they are.
_MISNAMED = (
    (r"(blocks\.13\.)norm13\.", r"\1norm1."),
    (r"(blocks\.13\.mlp\.)fc13\.", r"\1fc1."),
    (r"(blocks\.14\.)norm14\.", r"\1norm2."),
    (r"(blocks\.14\.mlp\.)fc14\.", r"\1fc2."),
)
_NORM_EPS = 1e-6
_PATCH_SIZE = 16
_IMAGE_SIZE = 224
_HEAD_WIDTH = 4096


@dataclass(frozen=True)
class MoCoV3Size:
    """Size of a vision transformer.

    Args:
        width: Channels.
        layers: Blocks.
        heads: Attention heads.
        projection: Numbers of the projection.
        head_width: Width within the projection's layers.
    """

    width: int
    layers: int
    heads: int
    projection: int = 256
    head_width: int = _HEAD_WIDTH


class _Block(nn.Module):
    """Pre-norm block of a vision transformer (arXiv:2010.11929), its parts named as timm's."""

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


class MoCoV3Network(nn.Module):
    """The encoder with its projection head, its parts named as in the official files.

    Args:
        size: Of the transformer.
    """

    def __init__(self, size: MoCoV3Size) -> None:
        super().__init__()
        width, inner = size.width, size.head_width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (_IMAGE_SIZE // _PATCH_SIZE) ** 2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, _PATCH_SIZE, _PATCH_SIZE)})
        self.blocks = nn.Sequential(*(_Block(width, size.heads) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.head = nn.Sequential(
            nn.Linear(width, inner, bias=False),
            nn.BatchNorm1d(inner),
            nn.ReLU(),
            nn.Linear(inner, inner, bias=False),
            nn.BatchNorm1d(inner),
            nn.ReLU(),
            nn.Linear(inner, size.projection, bias=False),
            nn.BatchNorm1d(size.projection, affine=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The class token (B, width), after the last norm, of normalised images (B, 3, 224, 224)."""
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)  # (B, 196, width)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(tokens)[:, 0])


class MoCoV3(FeatureExtractor):
    """A MoCo v3 image encoder. Features: ``cls``, the class token, and ``projection``, which RCG generates.

    Args:
        state: Tensors of an official file.
        weights_sha256: sha256 of the file they came from.
    """

    #: Size of the network.
    size: ClassVar[MoCoV3Size]
    #: Where its weights are to be had.
    address: ClassVar[str]
    embedding = "cls"

    def __init__(self, state: Mapping[str, Tensor], weights_sha256: str) -> None:
        super().__init__()
        self.input_size = _IMAGE_SIZE
        self.weights_sha256 = weights_sha256
        self.feature_dims = {"cls": self.size.width, "projection": self.size.projection}
        self.normalize = PixelNormalization(IMAGENET_MEAN, IMAGENET_STD)
        with torch.device("meta"):  # No time is spent on initial weights: the file's take their place.
            self.network = MoCoV3Network(self.size)
        reader = WeightReader(base_encoder(state), self.name)
        filled = {}
        for key, expected in self.network.state_dict().items():
            tensor = reader.check_shape(key, reader.take(key), expected.shape)
            filled[key] = tensor.long() if key.endswith("num_batches_tracked") else tensor
        reader.finish()
        self.network.load_state_dict(filled, assign=True)

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Build the network from an official file."""
        if input_size not in (None, _IMAGE_SIZE):
            raise ValueError(f"{cls.name} takes images of {_IMAGE_SIZE} px only, got input size {input_size}.")
        if weights is None:
            raise FileNotFoundError(f"{cls.name} takes its weights by file: get them from {cls.address}, and name the file.")
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"weights file {path} does not exist.")
        return cls(load_tensors(path, "state_dict"), sha256_of(path))

    def normalization(self, resizer: str) -> str:
        """Describe how pixel values enter the network."""
        return "ImageNet mean and std"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute both features of images, float32 (B, 3, 224, 224) around [0, 255]."""
        token = self.network(self.normalize(images))
        return {"cls": token, "projection": self.network.head(token)}


def base_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors of an official file, which holds those of its training too; a file of the encoder alone as it is."""
    chosen = {_PREFIX.sub("", key): value for key, value in state.items() if _PREFIX.match(key)} or dict(state)
    for pattern, replacement in _MISNAMED:
        chosen = {re.sub(pattern, replacement, key): value for key, value in chosen.items()}
    return chosen


class MoCoV3ViTS(MoCoV3):
    """MoCo v3 ViT-S/16: 384-d."""

    name = "mocov3-vit-s"
    size = MoCoV3Size(width=384, layers=12, heads=12)
    address = "https://dl.fbaipublicfiles.com/moco-v3/vit-s-300ep/vit-s-300ep.pth.tar"


class MoCoV3ViTB(MoCoV3):
    """MoCo v3 ViT-B/16: 768-d, the encoder of RCG's MAGE-B, DiT and ADM."""

    name = "mocov3-vit-b"
    size = MoCoV3Size(width=768, layers=12, heads=12)
    address = "https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar"


class MoCoV3ViTL(MoCoV3):
    """MoCo v3 ViT-L/16: 1024-d, the encoder of RCG's MAGE-L."""

    name = "mocov3-vit-l"
    size = MoCoV3Size(width=1024, layers=24, heads=16)
    address = "the link in the README of github.com/LTH14/rcg"
