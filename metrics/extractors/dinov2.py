"""DINOv2 vision transformers (Oquab et al., arXiv:2304.07193), the networks of FD-DINOv2 (Stein et al., "Exposing flaws of
generative model evaluation metrics", arXiv:2306.04675).

The network is transformers' ``Dinov2Model``, with one difference that scores need. The weights hold position embeddings for
37 x 37 patches (518 px); for 224 px the official code resamples them to 16 x 16 by a bicubic filter whose scale is
(16 + 0.1) / 37, transformers by one whose scale is 16 / 37, and the features differ. Here they are resampled as the
official code does, once, when the weights are loaded.

Weight files: the official ``dinov2_vit*14_pretrain.pth``, or ``model.safetensors`` of Hugging Face's ``facebook/dinov2-*``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from metrics.extractors.base import IMAGENET_MEAN, IMAGENET_STD, FeatureExtractor, PixelNormalization
from metrics.extractors.weights import WeightReader
from metrics.files.weights import WeightsFile, load_tensors, resolve_weights

_BASE_URL = "https://dl.fbaipublicfiles.com/dinov2"
_OFFSET = 0.1  # ``interpolate_offset`` of the official code: pixels of the new grid added to the scale, not to the size.
_POSITIONS = "embeddings.position_embeddings"
_MASK_TOKENS = ("mask_token", "embeddings.mask_token")  # For training only.


@dataclass(frozen=True)
class Source:
    """Where an entry of the network lies in a file.

    Args:
        name: Name of the file's entry.
        index: Which of ``count`` equal parts of its rows.
        count: Number of these parts.
    """

    name: str
    index: int = 0
    count: int = 1


#: Entry of transformers' module -> that of an official file, outside the blocks; Hugging Face's files have the former.
_OFFICIAL_NAMES = {
    "embeddings.cls_token": "cls_token",
    _POSITIONS: "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
#: Part of a block -> (in an official file, in a Hugging Face file). transformers has renamed parts of its module (the first
#: eight rows have today's names, the last five those of earlier versions); published files keep the names they have.
_PARTS = {
    "attention.q_proj": (Source("attn.qkv", 0, 3), Source("attention.attention.query")),
    "attention.k_proj": (Source("attn.qkv", 1, 3), Source("attention.attention.key")),
    "attention.v_proj": (Source("attn.qkv", 2, 3), Source("attention.attention.value")),
    "attention.o_proj": (Source("attn.proj"), Source("attention.output.dense")),
    "mlp.gate_proj": (Source("mlp.w12", 0, 2), Source("mlp.weights_in", 0, 2)),
    "mlp.up_proj": (Source("mlp.w12", 1, 2), Source("mlp.weights_in", 1, 2)),
    "mlp.down_proj": (Source("mlp.w3"), Source("mlp.weights_out")),
    "layer_scale1": (Source("ls1"), Source("layer_scale1")),
    "layer_scale2": (Source("ls2"), Source("layer_scale2")),
    "attention.attention.query": (Source("attn.qkv", 0, 3), Source("attention.attention.query")),
    "attention.attention.key": (Source("attn.qkv", 1, 3), Source("attention.attention.key")),
    "attention.attention.value": (Source("attn.qkv", 2, 3), Source("attention.attention.value")),
    "attention.output.dense": (Source("attn.proj"), Source("attention.output.dense")),
    "mlp.weights_in": (Source("mlp.w12"), Source("mlp.weights_in")),
    "mlp.weights_out": (Source("mlp.w3"), Source("mlp.weights_out")),
}
_BLOCK_ENTRY = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)$")


@dataclass(frozen=True)
class DINOv2Size:
    """Size of a DINOv2 vision transformer.

    Args:
        width: Channels.
        layers: Blocks.
        heads: Attention heads.
        swiglu: Whether blocks have a gated feed-forward part (Shazeer, arXiv:2002.05202).
        patch_size: Side of a patch in pixels.
        image_size: Side of the input in pixels.
        trained_grid: Positions per side that the weights hold: 518 / 14.
    """

    width: int
    layers: int
    heads: int
    swiglu: bool = False
    patch_size: int = 14
    image_size: int = 224
    trained_grid: int = 37


class DINOv2(FeatureExtractor):
    """A DINOv2 image encoder. Feature: ``cls``, the class token after the last layer norm.

    Args:
        state: State dict in one of the layouts above.
        weights_sha256: sha256 of the file it came from.
    """

    #: Size of the network.
    size: ClassVar[DINOv2Size]
    #: The official file of its weights.
    weights_file: ClassVar[WeightsFile]
    embedding = "cls"
    default_resizer: ClassVar[str] = "dinov2"

    def __init__(self, state: Mapping[str, Tensor], weights_sha256: str) -> None:
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        size = self.size
        self.input_size = size.image_size
        self.weights_sha256 = weights_sha256
        self.feature_dims = {"cls": size.width}
        config = Dinov2Config(
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            mlp_ratio=4,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            image_size=size.image_size,  # So transformers finds as many positions as patches and resamples nothing.
            patch_size=size.patch_size,
            qkv_bias=True,
            use_swiglu_ffn=size.swiglu,
            use_mask_token=False,
        )
        with torch.device("meta"):  # No time is spent on initial weights: the file's take their place.
            self.network = Dinov2Model(config)
        self.normalize = PixelNormalization(IMAGENET_MEAN, IMAGENET_STD)
        self._load(state)

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Build the network from the official file, or from Hugging Face's."""
        if input_size not in (None, cls.size.image_size):
            raise ValueError(f"{cls.name} takes images of {cls.size.image_size} px only, got input size {input_size}.")
        path, digest = resolve_weights(cls.weights_file, weights)
        return cls(load_tensors(path), digest)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        reader = WeightReader(state, self.name)
        official = not any(key.startswith("embeddings.") for key in state)
        filled = {}
        for key, expected in self.network.state_dict().items():
            source = _source(key, official)
            tensor = reader.take(source.name)
            if key == _POSITIONS:
                grid = self.size.trained_grid
                reader.check_shape(source.name, tensor, torch.Size((1, 1 + grid * grid, self.size.width)))
                tensor = _resampled_positions(tensor, grid, self.size.image_size // self.size.patch_size)
            elif tensor.ndim and len(tensor) % source.count == 0:
                tensor = tensor.chunk(source.count)[source.index].contiguous()
            filled[key] = reader.check_shape(source.name, tensor, expected.shape)
        reader.finish(*_MASK_TOKENS)
        self.network.load_state_dict(filled, assign=True)

    def normalization(self, resizer: str) -> str:
        """Describe how pixel values enter the network."""
        return "ImageNet mean and std"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute class tokens of images, float32 (B, 3, s, s) around [0, 255] with s the input size."""
        tokens = self.network(pixel_values=self.normalize(images)).last_hidden_state  # (B, 1 + patches, width), normalised
        return {"cls": tokens[:, 0]}  # (B, width)


def _source(key: str, official: bool) -> Source:
    """Return where an entry of transformers' module lies in a file of either layout."""
    block = _BLOCK_ENTRY.match(key)
    if block is None:
        return Source(_OFFICIAL_NAMES[key] if official else key)
    index, part, kind = block.groups()
    of_official, of_hugging_face = _PARTS.get(part, (Source(part), Source(part)))  # Norms and the plain MLP: same names.
    source = of_official if official else of_hugging_face
    kind = "gamma" if official and kind == "lambda1" else kind
    prefix = "blocks" if official else "encoder.layer"
    return Source(f"{prefix}.{index}.{source.name}.{kind}", source.index, source.count)


def _resampled_positions(positions: Tensor, grid: int, new_grid: int) -> Tensor:
    """Resample position embeddings as the official ``interpolate_pos_encoding`` does.

    Args:
        positions: float32 (1, 1 + grid ** 2, width), the class token's first.
        grid: Positions per side.
        new_grid: Positions per side of the result.

    Returns:
        float32 (1, 1 + new_grid ** 2, width).
    """
    if new_grid == grid:
        return positions
    scale = (new_grid + _OFFSET) / grid
    maps = positions[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)  # (1, width, grid, grid)
    maps = F.interpolate(maps, scale_factor=(scale, scale), mode="bicubic")  # The scale given is also the filter's.
    return torch.cat([positions[:, :1], maps.flatten(2).transpose(1, 2)], 1)


def _official_file(letter: str, megabytes: int) -> WeightsFile:
    # Meta publishes no hash of these files.
    stem = f"dinov2_vit{letter}14"
    return WeightsFile(f"{stem}_pretrain.pth", f"{_BASE_URL}/{stem}/{stem}_pretrain.pth", sha256="", megabytes=megabytes)


class DINOv2ViTS14(DINOv2):
    """DINOv2 ViT-S/14: 384-d."""

    name = "dinov2-vit-s-14"
    size = DINOv2Size(width=384, layers=12, heads=6)
    weights_file = _official_file("s", 84)


class DINOv2ViTB14(DINOv2):
    """DINOv2 ViT-B/14: 768-d, a quarter of the cost of ViT-L/14."""

    name = "dinov2-vit-b-14"
    size = DINOv2Size(width=768, layers=12, heads=12)
    weights_file = _official_file("b", 330)


class DINOv2ViTL14(DINOv2):
    """DINOv2 ViT-L/14: 1024-d, the network of FD-DINOv2."""

    name = "dinov2-vit-l-14"
    frechet_names: ClassVar[dict[str, str]] = {"cls": "fd_dinov2"}
    size = DINOv2Size(width=1024, layers=24, heads=16)
    weights_file = _official_file("l", 1161)


class DINOv2ViTG14(DINOv2):
    """DINOv2 ViT-g/14: 1536-d, gated feed-forward parts."""

    name = "dinov2-vit-g-14"
    size = DINOv2Size(width=1536, layers=40, heads=24, swiglu=True)
    weights_file = _official_file("g", 4336)
