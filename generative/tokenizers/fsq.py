"""A tokenizer of finite scalar quantisation."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.tokenizers.convolutional import ConvolutionalTokenizer
from generative.tokenizers.finite_scalar_quantizer import FiniteScalarQuantizer
from generative.tokenizers.vqgan_network import Decoder, Encoder, latent_stride


# ModelMixin is named again because diffusers looks for it in the module of a component, not among the bases, when it loads one.
class FSQTokenizer(ConvolutionalTokenizer, ModelMixin):
    """A convolutional autoencoder whose few latent channels are rounded (arXiv 2309.15505).

    Args:
        image_size: Height and width, in pixels.
        levels: Levels of each latent channel, at least 5 each being advised (section 4.1); their product is the number of codes.
        ch: Channels that ``ch_mult`` multiplies.
        ch_mult: Channels of each level over ``ch``, finest first; every level but the last halves the image.
        num_res_blocks: Residual blocks per level; the decoder has one more.
        norm_groups: Groups of the group norms.
        using_sa: Attention after each block of the lowest resolution.
        using_mid_sa: Attention in the middle.
        dropout: Of the residual blocks.
    """

    quantizer: FiniteScalarQuantizer

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        levels: Sequence[int] = (8, 5, 5, 5),
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        norm_groups: int = 32,
        using_sa: bool = True,
        using_mid_sa: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        latent_stride(image_size, ch_mult)
        self.quantizer = FiniteScalarQuantizer(levels)
        sizes = (3, len(levels), ch, ch_mult, num_res_blocks, norm_groups, using_sa, using_mid_sa, dropout)
        self.encoder = Encoder(*sizes)
        self.decoder = Decoder(*sizes)

    @property
    def num_codes(self) -> int:
        """Product of the levels."""
        return self.quantizer.num_codes

    def latents_to_ids(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, h w) int64."""
        return self.quantizer.to_ids(latents.movedim(1, -1)).flatten(1)

    def ids_to_latents(self, ids: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """(B, h w) int64 -> (B, D, h, w) float32."""
        return self.quantizer.ids_to_codes(ids).unflatten(1, grid_size).movedim(-1, 1)
