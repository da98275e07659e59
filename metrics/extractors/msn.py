"""Masked Siamese Networks (Assran et al., arXiv:2204.07141), whose features dual pseudo training (arXiv:2302.10586) classifies.

Weight files: the official ``vits16_800ep.pth.tar`` and its like, whose ``target_encoder`` is read, with positions for 224 px.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metrics.extractors.vit import OfficialViT, VisionTransformer, ViTSize
from metrics.extractors.weights import WeightReader

_WRAPPER = "module."  # Of torch's DistributedDataParallel, in whose hands they were trained.
#: Projection and prediction heads, which only the training needs.
_HEADS = ("fc.", "pred.")
_BASE_URL = "https://dl.fbaipublicfiles.com/msn"


class MSN(OfficialViT):
    """An MSN image encoder.

    Features: ``last_block``, the class token as the last block leaves it, which the authors' low-shot classifiers and those of
    dual pseudo training read; and ``cls``, the same after the last norm, which the training compared.

    Args:
        state: Tensors of an official file.
        weights_sha256: sha256 of the file they came from.
    """

    entry = "target_encoder"
    embedding = "last_block"

    def __init__(self, state: Mapping[str, Tensor], weights_sha256: str) -> None:
        super().__init__(state, weights_sha256)
        self.feature_dims = {"last_block": self.size.width, "cls": self.size.width}
        with torch.device("meta"):  # No time is spent on initial weights: the file's take their place.
            self.network = VisionTransformer(self.size)
        reader = WeightReader({key.removeprefix(_WRAPPER): value for key, value in state.items()}, self.name)
        expected = self.network.state_dict()
        filled = {key: reader.check_shape(key, reader.take(key), value.shape) for key, value in expected.items()}
        reader.finish(*_HEADS)
        self.network.load_state_dict(filled, assign=True)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute both features of images, float32 (B, 3, 224, 224) around [0, 255]."""
        token = self.network.class_token(self.normalize(images))
        return {"last_block": token, "cls": self.network.norm(token)}


class MSNViTS16(MSN):
    """MSN ViT-S/16: 384-d."""

    name = "msn-vit-s-16"
    size = ViTSize(width=384, layers=12, heads=6)
    address = f"{_BASE_URL}/vits16_800ep.pth.tar"


class MSNViTB16(MSN):
    """MSN ViT-B/16: 768-d."""

    name = "msn-vit-b-16"
    size = ViTSize(width=768, layers=12, heads=12)
    address = f"{_BASE_URL}/vitb16_600ep.pth.tar"


class MSNViTL16(MSN):
    """MSN ViT-L/16: 1024-d."""

    name = "msn-vit-l-16"
    size = ViTSize(width=1024, layers=24, heads=16)
    address = f"{_BASE_URL}/vitl16_600ep.pth.tar"


class MSNViTB4(MSN):
    """MSN ViT-B/4: 768-d, of 3,136 patches."""

    name = "msn-vit-b-4"
    size = ViTSize(width=768, layers=12, heads=12, patch_size=4)
    address = f"{_BASE_URL}/vitb4_300ep.pth.tar"


class MSNViTL7(MSN):
    """MSN ViT-L/7: 1024-d, of 1,024 patches."""

    name = "msn-vit-l-7"
    size = ViTSize(width=1024, layers=24, heads=16, patch_size=7)
    address = f"{_BASE_URL}/vitl7_200ep.pth.tar"
