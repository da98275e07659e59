"""MoCo v3 vision transformers (Chen et al., arXiv:2104.02057), the encoders of RCG (arXiv:2312.03701).

Weight files: the official ``vit-b-300ep.pth.tar`` and its like, whose ``base_encoder`` is read, with positions for 224 px.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from metrics.extractors.vit import OfficialViT, VisionTransformer, ViTSize
from metrics.extractors.weights import WeightReader

_PREFIX = re.compile(r"^(?:module\.)?base_encoder\.")
#: Parts that the authors of RCG found misnamed in the ViT-L file -> what they are.
_MISNAMED = (
    (r"(blocks\.13\.)norm13\.", r"\1norm1."),
    (r"(blocks\.13\.mlp\.)fc13\.", r"\1fc1."),
    (r"(blocks\.14\.)norm14\.", r"\1norm2."),
    (r"(blocks\.14\.mlp\.)fc14\.", r"\1fc2."),
)
_HEAD_WIDTH = 4096


@dataclass(frozen=True)
class MoCoV3Size(ViTSize):
    """Size of a vision transformer with its projection head.

    Args:
        projection: Numbers of the projection.
        head_width: Width within the projection's layers.
    """

    projection: int = 256
    head_width: int = _HEAD_WIDTH


class MoCoV3Network(VisionTransformer):
    """The encoder with its projection head, its parts named as in the official files.

    Args:
        size: Of the transformer.
    """

    def __init__(self, size: MoCoV3Size) -> None:
        super().__init__(size)
        width, inner = size.width, size.head_width
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
        return self.norm(self.class_token(images))


class MoCoV3(OfficialViT):
    """A MoCo v3 image encoder. Features: ``cls``, the class token, and ``projection``, which RCG generates.

    Args:
        state: Tensors of an official file.
        weights_sha256: sha256 of the file they came from.
    """

    #: Size of the network.
    size: ClassVar[MoCoV3Size]
    entry = "state_dict"
    embedding = "cls"

    def __init__(self, state: Mapping[str, Tensor], weights_sha256: str) -> None:
        super().__init__(state, weights_sha256)
        self.feature_dims = {"cls": self.size.width, "projection": self.size.projection}
        with torch.device("meta"):  # No time is spent on initial weights: the file's take their place.
            self.network = MoCoV3Network(self.size)
        reader = WeightReader(base_encoder(state), self.name)
        filled = {}
        for key, expected in self.network.state_dict().items():
            tensor = reader.check_shape(key, reader.take(key), expected.shape)
            filled[key] = tensor.long() if key.endswith("num_batches_tracked") else tensor
        reader.finish()
        self.network.load_state_dict(filled, assign=True)

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
