"""A tokenizer of residual vector quantisation, as ResGen and RQ-VAE use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.tokenizers.base import CodeUse
from generative.tokenizers.convolutional import ConvolutionalTokenizer
from generative.tokenizers.residual_quantizer import ResidualQuantizer
from generative.tokenizers.vqgan_network import Decoder, Encoder, latent_stride


# ModelMixin is named again because diffusers looks for it in the module of a component, not among the bases, when it loads one.
class RVQTokenizer(ConvolutionalTokenizer, ModelMixin):
    """A convolutional autoencoder with several codes per vector of its grid (arXiv 2412.10208; 2203.01941).

    An image has L = h * w * depth ids in [0, codebook_size): those of a vector follow each other, the coarsest first.

    Args:
        image_size: Height and width, in pixels.
        depth: Codes per vector.
        codebook_size: Codes of each codebook.
        z_channels: D, width of a code and channels of the latents.
        shared_codebook: One codebook for all depths, not one for each.
        quantizer_dropout: Probability that an image is quantised to fewer depths in training.
        ch: Channels that ``ch_mult`` multiplies.
        ch_mult: Channels of each level over ``ch``, finest first; every level but the last halves the image.
        num_res_blocks: Residual blocks per level; the decoder has one more.
        norm_groups: Groups of the group norms.
        using_sa: Attention after each block of the lowest resolution.
        using_mid_sa: Attention in the middle.
        dropout: Of the residual blocks.
    """

    quantizer: ResidualQuantizer

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        depth: int = 16,
        codebook_size: int = 16384,
        z_channels: int = 256,
        shared_codebook: bool = False,
        quantizer_dropout: float = 0.0,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        norm_groups: int = 32,
        using_sa: bool = True,
        using_mid_sa: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        latent_stride(image_size, ch_mult)
        quantizer = ResidualQuantizer(depth, codebook_size, z_channels, shared_codebook, quantizer_dropout)
        sizes = (3, z_channels, ch, ch_mult, num_res_blocks, norm_groups, using_sa, using_mid_sa, dropout)
        self.encoder = Encoder(*sizes)  # the first module: diffusers takes its type for the model's
        self.quantizer = quantizer
        self.decoder = Decoder(*sizes)

    @property
    def depth(self) -> int:
        """Codes per vector."""
        return self.config.depth

    @property
    def num_codes(self) -> int:
        """Codes of each codebook."""
        return self.config.codebook_size

    @property
    def sequence_length(self) -> int:
        """h * w * depth."""
        height, width = self.grid_size
        return height * width * self.depth

    @property
    def codebooks(self) -> dict[str, nn.Parameter]:
        """Codebooks (V, D): ``codebook``, or ``codebook_0`` and so on by depth."""
        return self.quantizer.codebooks

    @property
    def codebooks_tensor(self) -> Tensor:
        """(depth, V, D) float32; a shared codebook is repeated."""
        return self.quantizer.codebooks_tensor

    def embed(self, ids: Tensor) -> Tensor:
        """Sum the codes of (B, h w, depths) ids, all depths or the first ones; returns (B, h w, D) float32."""
        return self.quantizer.embed(ids)

    @torch.no_grad()
    def quantize(self, vectors: Tensor) -> Tensor:
        """Codes (N, depth) int64 of vectors (N, D)."""
        return self.quantizer.quantize(vectors).ids

    def quantize_latents(
        self, latents: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, CodeUse]]:
        """Quantise for training; see ``ConvolutionalTokenizer.quantize_latents``."""
        quantized = self.quantizer(latents, generator)
        return quantized.latents, quantized.losses, quantized.codes

    def latents_to_ids(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, h w depth) int64, depth fastest."""
        ids = self.quantize(latents.movedim(1, -1).flatten(0, 2))  # (B h w, depth)
        return ids.reshape(len(latents), -1)

    def ids_to_latents(self, ids: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """(B, h w depth) int64 -> (B, D, h, w) float32."""
        return self.embed(ids.unflatten(1, (*grid_size, self.depth))).movedim(-1, 1)
