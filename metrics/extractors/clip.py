"""CLIP's image encoders with OpenAI's weights (Radford et al., arXiv:2103.00020): ViT-L/14 at 336 px, the network CMMD
is defined on, and ViT-B/32, that of clean-fid's CLIP-FID.

The vision tower is open_clip's; nothing is downloaded but the weight file. It may be OpenAI's own (a TorchScript archive,
opened only after its full sha256 has been verified), or hold the same weights as safetensors or a plain state dict in
the layout of OpenAI and open_clip (``visual.*``) or of Hugging Face's ``openai/clip-vit-*`` (``vision_model.*``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from metrics.extractors.base import FeatureExtractor, PixelNormalization
from metrics.extractors.weights import WeightReader
from metrics.files.weights import WeightsFile, load_tensors, resolve_weights

# CLIP's own pixel statistics, over values in [0, 1].
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_PREFIX = "visual."
#: Parts of a whole CLIP that its image encoder does without; position_ids is a constant of old Hugging Face files.
_HUGGING_FACE_REST = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")
#: Entry of the tower -> Hugging Face's, outside the blocks. ``pre_layrnorm`` is spelt so in the files.
_HUGGING_FACE_NAMES = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}
#: Part of a block -> Hugging Face's; the tower's projections to queries, keys and values are one matrix.
_HUGGING_FACE_PARTS = {
    "ln_1.": ("layer_norm1.",),
    "ln_2.": ("layer_norm2.",),
    "attn.in_proj_": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "attn.out_proj.": ("self_attn.out_proj.",),
    "mlp.c_fc.": ("mlp.fc1.",),
    "mlp.c_proj.": ("mlp.fc2.",),
}
_BLOCK_ENTRY = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)(weight|bias)$")


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

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int


class CLIPImageEncoder(FeatureExtractor):
    """A CLIP image encoder. Feature: ``embedding``, the projected class token, not normalised.

    Args:
        state: State dict in one of the layouts above; entries of the text tower are not used.
        weights_sha256: sha256 of the file it came from.
    """

    #: Size of the network.
    tower: ClassVar[VisionTower]
    #: OpenAI's file of its weights.
    weights_file: ClassVar[WeightsFile]
    embedding = "embedding"

    def __init__(self, state: Mapping[str, Tensor], weights_sha256: str) -> None:
        super().__init__()
        from open_clip.transformer import QuickGELU, VisionTransformer

        tower = self.tower
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
        self.normalize = PixelNormalization(_MEAN, _STD)
        self._load(state)

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Build the network from OpenAI's file, or from one in a layout above."""
        if input_size not in (None, cls.tower.image_size):
            raise ValueError(f"{cls.name} takes images of {cls.tower.image_size} px only, got input size {input_size}.")
        path, digest = resolve_weights(cls.weights_file, weights)
        return cls(cls._read(path, digest), digest)

    @classmethod
    def _read(cls, path: Path, digest: str) -> Mapping[str, Tensor]:
        if not _is_torchscript(path):
            return load_tensors(path)
        if digest != cls.weights_file.sha256:  # Such an archive holds code: only OpenAI's own, known bit by bit, is opened.
            raise ValueError(
                f"weights file {path} is a TorchScript archive but not OpenAI's {cls.weights_file.filename} (its sha256 is "
                f"{digest[:8]}..., not {cls.weights_file.sha256[:8]}...): give the weights of {cls.name} as safetensors."
            )
        with warnings.catch_warnings():  # OpenAI published no other form, so torch's advice to export anew helps nobody here.
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is deprecated", category=FutureWarning)
            return dict(torch.jit.load(path, map_location="cpu").state_dict())

    def _load(self, state: Mapping[str, Tensor]) -> None:
        reader = WeightReader(state, self.name)
        of_hugging_face = any(key.startswith("vision_model.") for key in state)
        filled = {}
        for key, expected in self.visual.state_dict().items():
            sources = _hugging_face_sources(key) if of_hugging_face else [_PREFIX + key]
            parts = [reader.take(source) for source in sources]
            tensor = parts[0].T.contiguous() if of_hugging_face and key == "proj" else torch.cat(parts)
            filled[key] = reader.check_shape(" + ".join(sources), tensor, expected.shape)
        reader.finish(*_HUGGING_FACE_REST if of_hugging_face else _outside_of_tower(state))
        self.visual.load_state_dict(filled, assign=True)

    def normalization(self, resizer: str) -> str:
        """Describe how pixel values enter the network."""
        return "CLIP mean and std"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute embeddings of images, float32 (B, 3, s, s) in [0, 255] with s the input size."""
        return {"embedding": self.visual(self.normalize(images))}  # (B, embed_dim)


class CLIPViTL14At336(CLIPImageEncoder):
    """ViT-L/14 at 336 px: 768-d embeddings, for CMMD (Jayasumana et al., arXiv:2401.09603)."""

    name = "clip-vit-l-14-336"
    default_resizer: ClassVar[str] = "cmmd"
    tower = VisionTower(image_size=336, patch_size=14, width=1024, layers=24, heads=16, embed_dim=768)
    weights_file = WeightsFile(
        filename="ViT-L-14-336px.pt",
        url=(
            "https://openaipublic.azureedge.net/clip/models/"
            "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt"
        ),
        sha256="3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        megabytes=891,
    )


class CLIPViTB32(CLIPImageEncoder):
    """ViT-B/32 at 224 px: 512-d embeddings, for CLIP-FID (Kynkaanniemi et al., arXiv:2203.06026, as in clean-fid).

    clean-fid runs it in float32 on a CPU and in float16 on a GPU; here it is float32 on both.
    """

    name = "clip-vit-b-32"
    default_resizer: ClassVar[str] = "clip-fid"
    frechet_names: ClassVar[dict[str, str]] = {"embedding": "clip_fid"}
    tower = VisionTower(image_size=224, patch_size=32, width=768, layers=12, heads=12, embed_dim=512)
    weights_file = WeightsFile(
        filename="ViT-B-32.pt",
        url=(
            "https://openaipublic.azureedge.net/clip/models/"
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"
        ),
        sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        megabytes=338,
    )


def _is_torchscript(path: Path) -> bool:
    try:
        with ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except BadZipFile:  # Another format, or a damaged file: its reader will tell.
        return False


def _outside_of_tower(state: Mapping[str, Tensor]) -> list[str]:
    return [key for key in state if not key.startswith(_PREFIX)]


def _hugging_face_sources(key: str) -> list[str]:
    """Return the entries of a Hugging Face file that make up an entry of the tower, in the order they are stacked."""
    block = _BLOCK_ENTRY.match(key)
    if block is None:
        return [_HUGGING_FACE_NAMES[key]]
    index, part, kind = block.groups()
    return [f"vision_model.encoder.layers.{index}.{name}{kind}" for name in _HUGGING_FACE_PARTS[part]]
