"""The tokenizer of Open-MAGVIT2: lookup-free quantisation with up to 2^18 codes."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.tokenizers.convolutional import ConvolutionalTokenizer
from generative.tokenizers.lookup_free_quantizer import LookupFreeQuantizer
from generative.tokenizers.magvit2_network import Decoder, Encoder
from generative.tokenizers.vqgan_network import latent_stride

SMALLEST_GRID = 2
"""Vectors along an axis: the decoder asks for an unbiased variance over the grid, which one vector has not."""


# ModelMixin is named again because diffusers looks for it in the module of a component, not among the bases, when it loads one.
class LFQTokenizer(ConvolutionalTokenizer, ModelMixin):
    """Open-MAGVIT2 (arXiv 2409.04410): a convolutional autoencoder whose code is the sign of each latent channel.

    Bit k of an id is the sign of channel k. A generator may take an id apart into sub-codebooks, ``split_ids`` of
    ``generative.tokenizers.lookup_free_quantizer``: id = pre + 2^bits[0] * post.

    Args:
        image_size: Height and width, in pixels; the network takes others that its stride divides, by ``encode_latents``.
        num_bits: Bits of a code, and channels of the latents; there are 2^num_bits codes.
        ch: Channels that ``ch_mult`` multiplies.
        ch_mult: Channels of each level over ``ch``, finest first; every level but the last halves the image.
        num_res_blocks: Residual blocks per level, and in the middle.
        norm_groups: Groups of the group norms.
        sample_entropy_weight: Weight of the mean entropy of a token's code in the loss ``entropy``.
        codebook_entropy_weight: Weight of the entropy of the mean code probabilities, which is subtracted.
        entropy_temperature: Temperature of the softmax over codes in both.
    """

    quantizer: LookupFreeQuantizer

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        num_bits: int = 18,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 4,
        norm_groups: int = 32,
        sample_entropy_weight: float = 1.0,
        codebook_entropy_weight: float = 1.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        stride = latent_stride(image_size, ch_mult)
        if image_size < SMALLEST_GRID * stride:
            raise UserError(f"image_size must be at least {SMALLEST_GRID * stride}, two vectors along an axis, got {image_size}")
        self.quantizer = LookupFreeQuantizer(num_bits, sample_entropy_weight, codebook_entropy_weight, entropy_temperature)
        self.encoder = Encoder(3, ch, ch_mult, num_res_blocks, num_bits, norm_groups)
        self.decoder = Decoder(3, ch, ch_mult, num_res_blocks, num_bits, norm_groups)

    @property
    def num_bits(self) -> int:
        """Bits of a code."""
        return self.config.num_bits

    @property
    def num_codes(self) -> int:
        """2^num_bits."""
        return 2**self.config.num_bits

    def latents_to_ids(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, h w) int64."""
        return self.quantizer.to_ids(latents.movedim(1, -1)).flatten(1)

    def ids_to_latents(self, ids: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """(B, h w) int64 -> (B, D, h, w) float32 of -1 and +1."""
        return self.quantizer.ids_to_codes(ids).unflatten(1, grid_size).movedim(-1, 1)
