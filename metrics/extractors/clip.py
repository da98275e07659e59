"""CLIP ViT-L/14 at 336 px with OpenAI's weights, the network CMMD is defined on (Radford et al.,
arXiv:2103.00020).

The vision tower is open_clip's; nothing is downloaded but the weight file. OpenAI's file is a TorchScript
archive, read only after its full sha256 has been verified; files of others are safetensors or plain state
dicts in the same key layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from metrics.cache import WeightsFile, load_tensors, resolve_weights
from metrics.extractors.base import FeatureExtractor

WEIGHTS = WeightsFile(
    filename="ViT-L-14-336px.pt",
    url=(
        "https://openaipublic.azureedge.net/clip/models/"
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt"
    ),
    sha256="3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    megabytes=891,
)
# CLIP's own pixel statistics, over values in [0, 1].
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_WHITE = 255.0
_PREFIX = "visual."


@dataclass(frozen=True)
class VisionTower:
    """Size of a CLIP vision transformer.

    Args:
        image_size: Side of the input in pixels.
        patch_size: Side of a patch in pixels.
        width: Channels.
        layers: Blocks.
        heads: Attention heads.
        embed_dim: Dimension of the joint embedding.
    """

    image_size: int = 336
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    embed_dim: int = 768


class CLIPImageEncoder(FeatureExtractor):
    """CLIP's image encoder. Feature: `embedding`, the projected class token (768-d), not normalised.

    Args:
        state: State dict with `visual.*` keys in OpenAI's layout; those of the text tower are not used.
        weights_sha256: sha256 of the file it came from.
        tower: Its size.
        name: What it is called; the default name is reserved for the default size.
    """

    mean: Tensor
    std: Tensor
    embedding = "embedding"
    default_resizer: ClassVar[str] = "cmmd"

    def __init__(
        self,
        state: Mapping[str, Tensor],
        weights_sha256: str,
        tower: VisionTower | None = None,
        name: str = "clip-vit-l-14-336",
    ) -> None:
        super().__init__()
        from open_clip.transformer import QuickGELU, VisionTransformer

        tower = tower or VisionTower()
        self.name = name
        self.input_size = tower.image_size
        self.weights_sha256 = weights_sha256
        self.feature_dims = {"embedding": tower.embed_dim}
        with torch.device("meta"):  # No time is spent on initial weights: the file's take their place.
            self.visual = VisionTransformer(
                image_size=tower.image_size,
                patch_size=tower.patch_size,
                width=tower.width,
                layers=tower.layers,
                heads=tower.heads,
                mlp_ratio=4.0,
                output_dim=tower.embed_dim,
                act_layer=QuickGELU,  # OpenAI's weights were trained with it.
            )
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1) * _WHITE)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1) * _WHITE)
        self._load(state)

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Build the network from OpenAI's file, or from one in its key layout."""
        if input_size not in (None, VisionTower().image_size):
            raise ValueError(f"clip-vit-l-14-336 takes images of 336 px only, got input size {input_size}.")
        path, digest = resolve_weights(WEIGHTS, weights)
        if digest == WEIGHTS.sha256:
            state = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = load_tensors(path)
        return cls(state, digest)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        expected = self.visual.state_dict()
        found = {key.removeprefix(_PREFIX): value.float() for key, value in state.items() if key.startswith(_PREFIX)}
        for key in expected.keys() | found.keys():
            if key not in found or key not in expected or found[key].shape != expected[key].shape:
                problem = "no" if key not in found else "an unexpected" if key not in expected else "a misshapen"
                raise ValueError(f"weights have {problem} entry {_PREFIX}{key}: they are not those of {self.name}.")
        self.visual.load_state_dict(found, assign=True)

    def normalization(self, resizer: str) -> str:
        """Describe how pixel values enter the network."""
        return "CLIP mean and std"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute embeddings of images, float32 (B, 3, 336, 336) in [0, 255]."""
        return {"embedding": self.visual((images - self.mean) / self.std)}  # (B, 768)
