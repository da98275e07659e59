"""What every tokenizer does: images to ids and back."""

from __future__ import annotations

import abc
import hashlib
import json

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from generative.core.errors import UserError


class ImageTokenizer(ModelMixin, ConfigMixin, abc.ABC):
    """Images (B, 3, H, W) to a grid of L token ids in raster order, and back.

    A subclass is a diffusers model: constructor arguments are its config, and it must own at least one persistent tensor, because
    diffusers writes no weight file for a model without one and then cannot load it. Its module must import ``ModelMixin``:
    diffusers looks there for the methods that load a component.
    """

    @property
    @abc.abstractmethod
    def num_codes(self) -> int:
        """V, number of ids; ids are in [0, V)."""

    @property
    @abc.abstractmethod
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""

    @property
    @abc.abstractmethod
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""

    @property
    def sequence_length(self) -> int:
        """L, number of tokens of an image."""
        height, width = self.grid_size
        return height * width

    @property
    def fingerprint(self) -> str:
        """sha256 of class, config and weights: caches of ids carry it, so that ids are never read with another tokenizer."""
        config = {key: value for key, value in self.config.items() if not key.startswith("_")}
        digest = hashlib.sha256(json.dumps([type(self).__name__, config], sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Turn images into ids.

        Args:
            images: (B, 3, H, W) float32 in [-1, 1].

        Returns:
            (B, L) int64 in [0, num_codes).

        Raises:
            UserError: If the images have another size.
        """

    @abc.abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Turn ids into images.

        Args:
            tokens: (B, L) int64 in [0, num_codes).

        Returns:
            (B, 3, H, W) float32 in [-1, 1].

        Raises:
            UserError: If there are not L ids per image, or one is out of range.
        """

    def check_images(self, images: Tensor) -> None:
        """Refuse images of another shape than (B, 3, image_size, image_size)."""
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise UserError(
                f"this tokenizer takes images (B, 3, {size}, {size}), got {tuple(images.shape)}; resize them or change image_size"
            )

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse ids of another count or out of range (waits for the device: for boundaries, not for training steps)."""
        if tokens.ndim != 2 or tokens.shape[1] != self.sequence_length:
            raise UserError(f"this tokenizer takes ids (B, {self.sequence_length}), got {tuple(tokens.shape)}")
        if tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise UserError(f"token ids must be integers, got {tokens.dtype}")
        wrong = tokens[(tokens < 0) | (tokens >= self.num_codes)]
        if wrong.numel():
            raise UserError(
                f"token id {int(wrong[0])} is outside 0..{self.num_codes - 1}, the {self.num_codes} codes of this tokenizer"
            )


def check_match(transformer: ModelMixin, tokenizer: ImageTokenizer) -> None:
    """Refuse a transformer and a tokenizer that do not speak of the same tokens.

    Raises:
        UserError: If the number of codes or the grid differs.
    """
    num_codes, grid_size = transformer.config.num_codes, tuple(transformer.config.grid_size)
    if num_codes != tokenizer.num_codes:
        raise UserError(f"the transformer has num_codes={num_codes} but the tokenizer has {tokenizer.num_codes} codes")
    if grid_size != tuple(tokenizer.grid_size):
        raise UserError(f"the transformer has grid_size={grid_size} but the tokenizer's grid is {tuple(tokenizer.grid_size)}")
