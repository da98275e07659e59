"""What every tokenizer does: images to ids and back."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from generative.core.checkpoint import fingerprint_network
from generative.core.errors import UserError


def fingerprint(network: ModelMixin) -> str:
    """sha256 of a network's class, config and weights.

    A cache of ids or latents carries that of its tokenizer or autoencoder, so that it is never read with another one.

    Args:
        network: A tokenizer, or a diffusers autoencoder.
    """
    return fingerprint_network(network)


@dataclass
class CodeUse:
    """Which codes of one codebook a batch used.

    Attributes:
        ids: (N,) int64 in [0, num_codes).
        num_codes: V of this codebook (2^bits for one that is not stored).
        vectors: (N, D) float32 detached encoder vectors that were quantised with it, from which dead codes may be revived; None
            where the codebook is not learned (lookup-free and finite scalar quantisation).
    """

    ids: Tensor
    num_codes: int
    vectors: Tensor | None = None


@dataclass
class Reconstruction:
    """What a tokenizer or an autoencoder in training returns for a batch of images.

    Attributes:
        images: (B, 3, H, W) decoded images, not clamped.
        losses: Scalar regularisers of its bottleneck by name, each unweighted and differentiable: ``codebook``, ``commitment``,
            ``entropy``, ``kl``, ...; the objective weights and adds them.
        codes: Use of codes by codebook name (``codebook`` where there is one, ``codebook_0``, ... where there are several);
            empty for continuous latents.
    """

    images: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    codes: dict[str, CodeUse] = field(default_factory=dict)


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
        """sha256 of class, config and weights, see ``fingerprint``: caches of ids carry it."""
        return fingerprint(self)

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


class TrainableTokenizer(ImageTokenizer):
    """A tokenizer that ``generative.tokenizers.objective.TokenizerObjective`` trains."""

    @abc.abstractmethod
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """Encode, quantise with straight-through gradients, and decode.

        Args:
            images: (B, 3, H, W) float32 in [-1, 1].
            generator: Source of randomness, for tokenizers that draw (quantiser dropout); None draws from torch's own.

        Returns:
            Unclamped reconstructions with losses and use of codes.
        """

    @property
    def codebooks(self) -> dict[str, nn.Parameter]:
        """Learned codebooks (V, D) by the names that ``Reconstruction.codes`` uses; dead rows may be overwritten."""
        return {}

    @property
    @abc.abstractmethod
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution: the adaptive adversarial weight compares gradients there (arXiv 2012.09841, eq. 7)."""


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
