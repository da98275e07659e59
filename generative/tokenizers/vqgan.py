"""What tokenizers of the VQGAN line share beside the networks: a convolution on each side of the quantiser, and one codebook."""

from __future__ import annotations

from torch import Tensor, nn

from generative.tokenizers.convolutional import ConvolutionalTokenizer


class VQGANTokenizer(ConvolutionalTokenizer):
    """A convolutional tokenizer with one learned codebook between two more convolutions (arXiv 2012.09841, official code).

    Attributes:
        quant_conv: The encoder's channels to those of the codes.
        post_quant_conv: Back to those of the decoder.
    """

    quant_conv: nn.Conv2d
    post_quant_conv: nn.Conv2d

    @property
    def num_codes(self) -> int:
        """V."""
        return self.config.num_codes

    @property
    def codebooks(self) -> dict[str, nn.Parameter]:
        """The one codebook."""
        return {"codebook": self.quantizer.get_parameter("codebook")}

    def encode_latents(self, images: Tensor) -> Tensor:
        """Latents (B, D, h, w) float32 before quantisation; see ``ConvolutionalTokenizer.encode_latents``."""
        return self.quant_conv(super().encode_latents(images).to(self.dtype)).float()

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Decoded images (B, 3, H, W) float32, not clamped, of quantised latents (B, D, h, w)."""
        return super().reconstruct(self.post_quant_conv(latents.to(self.dtype)))
