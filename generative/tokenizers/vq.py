"""VQ tokenizer of the VQGAN line: VQ-16 and VQ-8 of LlamaGen (arXiv 2406.06525), and VQGAN itself (arXiv 2012.09841)."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.tokenizers.vector_quantizer import VectorQuantizer
from generative.tokenizers.vqgan import VQGANTokenizer
from generative.tokenizers.vqgan_network import Decoder, Encoder, latent_stride


# ModelMixin is named again because diffusers looks for it in the module of a component, not among the bases, when it loads one.
class VQTokenizer(VQGANTokenizer, ModelMixin):
    """Images to a grid of codes, and back. The defaults are LlamaGen's VQ-16; VQ-8 has ``ch_mult`` (1, 2, 2, 4).

    A plain VQGAN is ``l2_norm=False`` with ``code_dim`` equal to ``z_channels``.

    Args:
        image_size: Height and width of the images, in pixels; the networks are convolutional, so that any multiple of the stride
            will do.
        num_codes: V.
        code_dim: D, width of a code.
        ch: Base width of encoder and decoder.
        ch_mult: Width of each resolution as a multiple of ``ch``, the images' own first.
        decoder_ch_mult: The decoder's, if it differs.
        num_res_blocks: Residual blocks of each resolution (the decoder has one more).
        z_channels: Channels between the networks and the 1x1 convolutions around the quantiser.
        norm_groups: Groups of every group norm.
        using_sa: Whether there is attention at the lowest resolution.
        using_mid_sa: Whether there is attention in the middle.
        dropout: Of every residual block.
        l2_norm: Whether vectors and codes are normalised, see ``VectorQuantizer``.
        entropy: Whether the entropy loss is computed in training.

    Raises:
        UserError: If an argument is impossible.
    """

    quantizer: VectorQuantizer

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        num_codes: int = 16384,
        code_dim: int = 8,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        decoder_ch_mult: Sequence[int] | None = None,
        num_res_blocks: int = 2,
        z_channels: int = 256,
        norm_groups: int = 32,
        using_sa: bool = True,
        using_mid_sa: bool = True,
        dropout: float = 0.0,
        l2_norm: bool = True,
        entropy: bool = False,
    ) -> None:
        super().__init__()
        latent_stride(image_size, ch_mult)
        decoder_ch_mult = ch_mult if decoder_ch_mult is None else decoder_ch_mult
        if len(decoder_ch_mult) != len(ch_mult):
            raise UserError(
                f"decoder_ch_mult must have as many resolutions as ch_mult {list(ch_mult)}, or images would change size, "
                f"got {list(decoder_ch_mult)}"
            )
        rest = (num_res_blocks, norm_groups, using_sa, using_mid_sa, dropout)
        quantizer = VectorQuantizer(num_codes, code_dim, l2_norm, entropy)  # first of all: it checks its sizes
        self.encoder = Encoder(3, z_channels, ch, ch_mult, *rest)
        self.quant_conv = nn.Conv2d(z_channels, code_dim, 1)
        self.quantizer = quantizer
        self.post_quant_conv = nn.Conv2d(code_dim, z_channels, 1)
        self.decoder = Decoder(3, z_channels, ch, decoder_ch_mult, *rest)

    def embed(self, ids: Tensor) -> Tensor:
        """Quantised vectors (B, n, D) float32 of ids (B, n)."""
        return self.quantizer.codes[ids]

    def latents_to_ids(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) float32 -> (B, L) int64; see ``ConvolutionalTokenizer``."""
        return self.quantizer.encode(latents)

    def ids_to_latents(self, ids: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """(B, L) int64 -> (B, D, h, w) float32; see ``ConvolutionalTokenizer``."""
        return self.embed(ids).unflatten(1, grid_size).permute(0, 3, 1, 2)
