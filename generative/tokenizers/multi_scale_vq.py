"""Multi-scale residual VQ tokenizer of VAR (arXiv 2404.02905)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.tokenizers.multi_scale_quantizer import MultiScaleQuantizer
from generative.tokenizers.vqgan import VQGANTokenizer
from generative.tokenizers.vqgan_network import Decoder, Encoder, latent_stride


# ModelMixin is named again because diffusers looks for it in the module of a component, not among the bases, when it loads one.
class MultiScaleVQTokenizer(VQGANTokenizer, ModelMixin):
    """Images to token maps of growing resolution, and back.

    The ids of all scales are concatenated, small to large and in raster order within each. The defaults are the published
    tokenizer's, except that its ``ch`` is 160.

    Args:
        image_size: Height and width of the images, in pixels.
        num_codes: V.
        latent_channels: C, channels of the map and width of a code.
        patch_nums: Height and width of each scale's token map; the last is image_size / 2^(resolutions - 1).
        ch: Base width of encoder and decoder.
        ch_mult: Width of each resolution as a multiple of ``ch``, the images' own first.
        num_res_blocks: Residual blocks of each resolution (the decoder has one more).
        norm_groups: Groups of every group norm.
        using_sa: Whether there is attention at the lowest resolution.
        using_mid_sa: Whether there is attention in the middle.
        dropout: Of every residual block.
        quant_conv_ks: Kernel size of the convolutions before and after quantisation.
        quant_resi: Ratio of the convolution in phi, see ``MultiScaleQuantizer``.
        share_quant_resi: Number of phis that scales share, 0 for one of each scale's own.
        default_qresi_counts: Number of phis where they are not shared; 0 is the number of scales.
        using_znorm: Whether vectors and codes are normalised before they are compared.

    Raises:
        UserError: If an argument is impossible, or patch_nums does not end at the size of the map.
    """

    quantizer: MultiScaleQuantizer

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        num_codes: int = 4096,
        latent_channels: int = 32,
        patch_nums: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        norm_groups: int = 32,
        using_sa: bool = True,
        using_mid_sa: bool = True,
        dropout: float = 0.0,
        quant_conv_ks: int = 3,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        default_qresi_counts: int = 0,
        using_znorm: bool = False,
    ) -> None:
        super().__init__()
        stride = latent_stride(image_size, ch_mult)
        if not patch_nums or patch_nums[-1] != image_size // stride or max(patch_nums) > patch_nums[-1]:
            raise UserError(
                f"patch_nums must grow to {image_size // stride}, the size of the latent map ({image_size} pixels in steps of "
                f"{stride}), got {list(patch_nums)}"
            )
        if quant_conv_ks < 1 or quant_conv_ks % 2 == 0:
            raise UserError(f"quant_conv_ks must be odd, so that the map keeps its size, got {quant_conv_ks}")
        sizes = (3, latent_channels, ch, ch_mult, num_res_blocks, norm_groups, using_sa, using_mid_sa, dropout)
        quantizer = MultiScaleQuantizer(
            num_codes, latent_channels, patch_nums, quant_resi, share_quant_resi, default_qresi_counts, using_znorm
        )
        self.encoder = Encoder(*sizes)
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, quant_conv_ks, padding=quant_conv_ks // 2)
        self.quantizer = quantizer
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, quant_conv_ks, padding=quant_conv_ks // 2)
        self.decoder = Decoder(*sizes)

    @property
    def latent_channels(self) -> int:
        """C, channels of the map."""
        return self.config.latent_channels

    @property
    def patch_nums(self) -> tuple[int, ...]:
        """Height and width of each scale's token map."""
        return self.quantizer.patch_nums

    @property
    def sequence_length(self) -> int:
        """L, number of tokens of all scales."""
        return sum(patches**2 for patches in self.patch_nums)

    @property
    def codebook(self) -> Tensor:
        """(V, C) codes that all scales share."""
        return self.quantizer.codebook

    def latents_to_ids(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float32 -> (B, L) int64, all scales; see ``ConvolutionalTokenizer``."""
        return self.quantizer.encode(latents)

    def ids_to_latents(self, ids: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """(B, L) int64 -> (B, C, h, w) float32, the sum of all scales; see ``ConvolutionalTokenizer``."""
        return self.accumulate(ids)[-1]

    def zero_map(self, batch: int) -> Tensor:
        """The map before the first scale: (B, C, h, w) float32 zeros."""
        height, width = self.grid_size
        return torch.zeros(batch, self.latent_channels, height, width, device=self.device)

    def add_scale(self, accumulated: Tensor, codes: Tensor, scale: int) -> Tensor:
        """Add a scale to a map.

        Args:
            accumulated: (B, C, h, w) float32 sum of the scales before.
            codes: (B, n_k^2) ids, or (B, n_k^2, C) codes (or mixtures of codes).
            scale: k, from 0.

        Returns:
            (B, C, h, w) float32.
        """
        vectors = codes if codes.is_floating_point() else self.quantizer.embed(codes)
        return accumulated + self.quantizer.expand(vectors, scale)

    def next_input(self, accumulated: Tensor, scale: int) -> Tensor:
        """What a generator sees when it predicts the scale after one: the map, brought to that scale's size by area.

        Args:
            accumulated: (B, C, h, w) float32 sum of scales up to ``scale``.
            scale: k, from 0, not the last.

        Returns:
            (B, n_{k+1}^2, C) float32.
        """
        with torch.autocast(accumulated.device.type, enabled=False):
            return self.quantizer.shrink(accumulated, scale + 1)

    @torch.no_grad()
    def accumulate(self, tokens: Tensor) -> list[Tensor]:
        """The map (B, C, h, w) after each scale, of ids (B, L) of all scales."""
        maps, accumulated = [], self.zero_map(len(tokens))
        for scale, ids in enumerate(self.quantizer.split(tokens)):
            accumulated = self.add_scale(accumulated, ids, scale)
            maps.append(accumulated)
        return maps

    @torch.no_grad()
    def teacher_inputs(self, tokens: Tensor) -> Tensor:
        """Inputs of a generator in training: ``next_input`` of every scale but the last, of the true ids.

        Args:
            tokens: (B, L) ids of all scales. Their range is not checked here: that waits for the device.

        Returns:
            (B, L - n_0^2, C) float32.

        Raises:
            UserError: If there are not L ids per image.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.sequence_length:
            raise UserError(f"this tokenizer takes ids (B, {self.sequence_length}), got {tuple(tokens.shape)}")
        accumulated = self.zero_map(len(tokens))
        inputs = [accumulated.new_empty(len(tokens), 0, self.latent_channels)]
        for scale, ids in enumerate(self.quantizer.split(tokens)[:-1]):
            accumulated = self.add_scale(accumulated, ids, scale)
            inputs.append(self.next_input(accumulated, scale))
        return torch.cat(inputs, dim=1)
