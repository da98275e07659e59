"""The VQGAN of MaskGIT (arXiv 2202.04200), whose PyTorch weights MAGE and RCG use: no attention, no biases within blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.layers.checkpointing import BlockSequence, run_block
from generative.tokenizers.convolutional import ConvolutionalTokenizer
from generative.tokenizers.vector_quantizer import VectorQuantizer
from generative.tokenizers.vqgan_network import Upsample, activate, check_widths, group_norm, latent_stride


class Block(nn.Module):
    """Norm, SiLU, convolution without bias, twice, added to the input.

    Where the width changes, what comes out is added to a 1x1 convolution of itself instead (official implementation).

    Args:
        in_channels: C.
        out_channels: C'.
        norm_groups: Groups of both norms.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(out_channels, norm_groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None if in_channels == out_channels else nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        hidden = self.conv2(activate(self.norm2(self.conv1(activate(self.norm1(sample))))))
        return hidden + (sample if self.shortcut is None else self.shortcut(hidden))


def blocks(in_channels: int, out_channels: int, count: int, norm_groups: int) -> BlockSequence:
    """Some blocks, the first of which changes the width."""
    widths = [in_channels] + [out_channels] * count
    return BlockSequence(*(Block(before, after, norm_groups) for before, after in zip(widths[:-1], widths[1:], strict=True)))


class MaskGITEncoder(nn.Module):
    """Images to latents; a resolution is halved by averages of 2x2.

    Args:
        z_channels: Channels of the latents.
        ch: Base width.
        ch_mult: Width of each resolution as a multiple of ``ch``, the images' own first.
        num_res_blocks: Blocks of each resolution, and of the last one more time.
        norm_groups: Groups of every norm.
    """

    def __init__(self, z_channels: int, ch: int, ch_mult: Sequence[int], num_res_blocks: int, norm_groups: int) -> None:
        super().__init__()
        widths = [ch * factor for factor in ch_mult]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1, bias=False)
        self.levels = nn.ModuleList(
            blocks(before, width, num_res_blocks, norm_groups) for before, width in zip([ch, *widths[:-1]], widths, strict=True)
        )
        self.mid = blocks(widths[-1], widths[-1], 2, norm_groups)
        self.norm_out = group_norm(widths[-1], norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to latents (B, z_channels, h, w)."""
        hidden = self.conv_in(images)
        for index, level in enumerate(self.levels):
            hidden = level(hidden)
            if index < len(self.levels) - 1:
                hidden = F.avg_pool2d(hidden, 2)
        return self.conv_out(activate(self.norm_out(self.mid(hidden))))


class MaskGITDecoder(nn.Module):
    """Latents to images; a resolution is doubled by nearest neighbours and a convolution. Arguments as the encoder's."""

    def __init__(self, z_channels: int, ch: int, ch_mult: Sequence[int], num_res_blocks: int, norm_groups: int) -> None:
        super().__init__()
        widths = [ch * factor for factor in reversed(ch_mult)]  # lowest resolution first
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.mid = blocks(widths[0], widths[0], 2, norm_groups)
        self.levels = nn.ModuleList(
            blocks(before, width, num_res_blocks, norm_groups)
            for before, width in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.upsamples = nn.ModuleList(Upsample(width) for width in widths[:-1])
        self.norm_out = group_norm(widths[-1], norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)
        self.gradient_checkpointing = False

    def finish(self, hidden: Tensor) -> Tensor:
        """Norm and SiLU of (B, C, H, W), before the last convolution: losses read its weight, so that it is never run twice."""
        return activate(self.norm_out(hidden))

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (B, z_channels, h, w) to images (B, 3, H, W)."""
        hidden = self.mid(self.conv_in(latents))
        for index, level in enumerate(self.levels):
            hidden = level(hidden)
            if index < len(self.upsamples):
                hidden = run_block(self, self.upsamples[index], hidden)
        return self.conv_out(run_block(self, self.finish, hidden))


# ModelMixin is named again because diffusers looks for it in the module of a component, not among the bases, when it loads one.
class MaskGITVQTokenizer(ConvolutionalTokenizer, ModelMixin):
    """Images to a grid of codes, and back: the published one has 1,024 codes of 256 numbers, 16x16 of them for 256 pixels.

    Its networks work on images in [0, 1], as officially; those that it takes and gives are in [-1, 1], as everywhere here.

    Args:
        image_size: Height and width of the images, in pixels.
        num_codes: V.
        code_dim: D, width of a code and channels of the latents.
        ch: Base width of encoder and decoder.
        ch_mult: Width of each resolution as a multiple of ``ch``, the images' own first.
        num_res_blocks: Blocks of each resolution.
        norm_groups: Groups of every group norm.

    Raises:
        UserError: If an argument is impossible.
    """

    quantizer: VectorQuantizer

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        num_codes: int = 1024,
        code_dim: int = 256,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        latent_stride(image_size, ch_mult)
        check_widths(ch, ch_mult, num_res_blocks)
        self.quantizer = VectorQuantizer(num_codes, code_dim)
        self.encoder = MaskGITEncoder(code_dim, ch, ch_mult, num_res_blocks, norm_groups)
        self.decoder = MaskGITDecoder(code_dim, ch, ch_mult, num_res_blocks, norm_groups)

    @property
    def num_codes(self) -> int:
        """V."""
        return self.config.num_codes

    @property
    def codebooks(self) -> dict[str, nn.Parameter]:
        """The one codebook."""
        return {"codebook": self.quantizer.codebook}

    def encode_latents(self, images: Tensor) -> Tensor:
        """Latents (B, D, h, w) float32 before quantisation; see ``ConvolutionalTokenizer.encode_latents``."""
        return super().encode_latents((images + 1) / 2)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Decoded images (B, 3, H, W) float32, about in [-1, 1], of quantised latents (B, D, h, w)."""
        return super().reconstruct(latents) * 2 - 1

    def latents_to_ids(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) float32 -> (B, L) int64; see ``ConvolutionalTokenizer``."""
        return self.quantizer.encode(latents)

    def ids_to_latents(self, ids: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """(B, L) int64 -> (B, D, h, w) float32; see ``ConvolutionalTokenizer``."""
        return self.quantizer.codes[ids].unflatten(1, grid_size).permute(0, 3, 1, 2)
