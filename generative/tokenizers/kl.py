"""The KL autoencoder of latent diffusion (arXiv 2112.10752), with a forward pass that can be trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, ModelMixin  # noqa: F401 - diffusers looks here for a component's loading methods
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.tokenizers.base import Reconstruction


@dataclass
class LatentReconstruction(Reconstruction):
    """A reconstruction from continuous latents.

    Attributes:
        latents: (B, C, h, w) float32, detached and unscaled: their spread sets the autoencoder's ``scaling_factor``.
    """

    latents: Tensor | None = None


class KLAutoencoder(AutoencoderKL, ModelMixin):
    """diffusers' ``AutoencoderKL`` whose forward is a training step; its folders load with either class.

    Constructor arguments are those of ``AutoencoderKL``. Latents are ``sample_size / 2 ** (levels - 1)`` pixels wide.

    Args:
        in_channels: 3.
        out_channels: 3.
        down_block_types: For each level ``DownEncoderBlock2D``, or ``AttnDownEncoderBlock2D`` with self-attention.
        up_block_types: For each level, the smallest first, ``UpDecoderBlock2D`` or ``AttnUpDecoderBlock2D``.
        block_out_channels: Channels of each level, the largest map first.
        layers_per_block: Residual blocks of an encoder level; the decoder has one more.
        act_fn: Activation.
        latent_channels: C.
        norm_num_groups: Groups of the group norms.
        sample_size: Height and width of the images, in pixels.
        scaling_factor: 1 / standard deviation of the latents; training measures it and sets it when it exports.
        shift_factor: Mean that is subtracted before scaling; None for none.
        latents_mean: Mean of each channel that is subtracted before scaling, of an autoencoder trained elsewhere; None for none.
        latents_std: Deviation of each channel by which latents are divided beside ``scaling_factor``; likewise.
        force_upcast: Kept for diffusers' configurations.
        use_quant_conv: 1x1 convolution behind the encoder.
        use_post_quant_conv: 1x1 convolution before the decoder.
        mid_block_add_attention: Self-attention at the smallest map.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        levels = len(block_out_channels)
        for name, types in (("down_block_types", down_block_types), ("up_block_types", up_block_types)):
            if len(types) != levels:
                raise UserError(f"{name} must name {levels} blocks, one for each of block_out_channels, got {len(types)}")
        if sample_size % 2 ** (levels - 1):
            raise UserError(f"sample_size {sample_size} does not divide by {2 ** (levels - 1)}, the stride of {levels} levels")
        wrong = [width for width in block_out_channels if width % norm_num_groups]
        if wrong:
            raise UserError(f"block_out_channels {wrong[0]} does not divide by norm_num_groups {norm_num_groups}")
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            latents_mean=latents_mean,
            latents_std=latents_std,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return int(self.config.sample_size)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution, see ``TrainableTokenizer``."""
        return self.decoder.conv_out.weight

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> LatentReconstruction:
        """Encode, draw latents, and decode.

        Args:
            images: (B, 3, H, W) float32 in [-1, 1].
            generator: Source of the latents' randomness; None draws from torch's own.

        Returns:
            Unclamped reconstructions, latents, and the loss ``kl``: the divergence of each image's latents from N(0, 1) in nats,
            summed over its latents and divided by its 3 H W values. Where latent diffusion's code sums the errors of an image's
            values and adds 1e-6 times its divergence, a mean over values and 1e-6 times this differ by a constant factor only.
        """
        posterior = self.encode(images).latent_dist
        # Exponentials and the sum over latents keep no digits in half precision.
        mean, logvar = posterior.mean.float(), posterior.logvar.float()  # (B, C, h, w); logvar in [-30, 20]
        device = images.device if generator is None else generator.device
        noise = torch.randn(mean.shape, generator=generator, device=device).to(images.device)
        latents = mean + (0.5 * logvar).exp() * noise
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)  # (B,)
        decoded = self.decode(latents.to(posterior.mean.dtype)).sample  # (B, 3, H, W)
        return LatentReconstruction(decoded, {"kl": divergence.mean() / images[0].numel()}, latents=latents.detach())
