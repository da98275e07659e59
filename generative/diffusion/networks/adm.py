"""ADM's U-Net: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv 2105.05233), and its upsampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.networks.arguments import check_arguments
from generative.diffusion.networks.skips import SkipNetwork
from generative.layers.checkpointing import run_block
from generative.layers.conditioned_network import ConditionedNetwork
from generative.layers.embeddings import TimestepEmbedder
from generative.layers.group_norm import group_norm
from generative.layers.unet_blocks import activate, zero_initialized
from generative.layers.unet_encoder import UNetBlocks


class ADMUNet(ModelMixin, ConfigMixin, SkipNetwork, ConditionedNetwork):
    """U-Net with attention at several resolutions, steered by time and class through its norms.

    The published ImageNet models are those of ``configs/imagenet``; as an upsampler it also reads an image of lower resolution,
    which is resized bilinearly and put behind the sample along the channels (section 6.4).

    Args:
        sample_size: Height and width of the samples.
        in_channels: Channels C of the samples.
        model_channels: Width that ``channel_mult`` multiplies; every width is a multiple of 32.
        channel_mult: Multiplier of each resolution, highest first.
        num_res_blocks: Residual blocks of each resolution.
        attention_resolutions: Heights, in pixels, at which attention follows each residual block (32, 16 and 8 in the paper). The
            official constructor counts them as factors of downsampling, its scripts in pixels as here.
        dropout: Of the residual blocks.
        num_classes: Number of classes K of the data.
        class_conditional: Whether the class has an effect; else labels are ignored.
        class_dropout_prob: Share of the labels that training replaces by the null condition, the label K; 0, as officially, is
            a network without one. The network itself drops nothing: the training objective does.
        num_heads: Heads of attention, where ``num_head_channels`` is None.
        num_head_channels: Channels of each head.
        num_heads_upsample: Heads in the decoder, where they differ from ``num_heads``.
        use_scale_shift_norm: Time and class scale and shift the norms (AdaGN); else they are added.
        resblock_updown: Change the resolution within residual blocks, as BigGAN does; else between them.
        conv_resample: With convolutions where ``resblock_updown`` is false.
        use_new_attention_order: Layout of the attention's projection, see ``generative.layers.unet_blocks.split_heads``.
        learn_sigma: Predict 2C channels: the noise, then where the log variance lies between its bounds (arXiv 2102.09672).
        low_resolution_size: Height and width of the images of C channels that an upsampler is for; None for no upsampler.
        representation_dim: Numbers D' of representations that take the place of the class (RCG, arXiv 2312.03701); None for
            classes. Labels then only tell where the null representation stands, which is the label K.

    Raises:
        UserError: If numbers are out of range or do not fit one another.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        model_channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        num_res_blocks: int = 3,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.0,
        num_classes: int = 1000,
        class_conditional: bool = True,
        class_dropout_prob: float = 0.0,
        num_heads: int = 4,
        num_head_channels: int | None = 64,
        num_heads_upsample: int | None = None,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        conv_resample: bool = True,
        use_new_attention_order: bool = False,
        learn_sigma: bool = True,
        low_resolution_size: int | None = None,
        representation_dim: int | None = None,
    ) -> None:
        super().__init__()
        self._check(in_channels, num_classes, class_conditional, class_dropout_prob, sample_size, low_resolution_size)
        blocks = UNetBlocks(
            sample_size=sample_size,
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            conv_resample=conv_resample,
            use_new_attention_order=use_new_attention_order,
        )
        self.gradient_checkpointing = False
        widths = blocks.widths
        # Deepest first; a level's first concatenation still has the width of the level below.
        self.decoder_widths = tuple(dict.fromkeys(reversed(widths)))
        read_channels = in_channels if low_resolution_size is None else 2 * in_channels
        self.timestep_embedder = TimestepEmbedder(blocks.embedding_dim, model_channels)
        self.label_embedding, self.vector_embedding = self.make_embeddings(blocks.embedding_dim)
        if self.vector_embedding is not None:
            zero_initialized(self.vector_embedding.linear)  # official implementation
        self.conv_in = nn.Conv2d(read_channels, widths[0], 3, padding=1)
        self.encoder, skips = blocks.encoder()
        self.middle = blocks.middle()
        self.decoder = blocks.decoder(skips, num_heads_upsample)
        self.norm_out = group_norm(widths[0])
        out_channels = 2 * in_channels if learn_sigma else in_channels
        self.conv_out = zero_initialized(nn.Conv2d(widths[0], out_channels, 3, padding=1))

    @staticmethod
    def _check(
        in_channels: int,
        num_classes: int,
        class_conditional: bool,
        class_dropout_prob: float,
        sample_size: int,
        low_resolution_size: int | None,
    ) -> None:
        """Refuse what the blocks do not refuse themselves."""
        sizes = {"in_channels": in_channels, "num_classes": num_classes}
        check_arguments("ADMUNet", sizes, {"class_dropout_prob": class_dropout_prob}, class_conditional)
        if low_resolution_size is not None and not 1 <= low_resolution_size <= sample_size:
            raise UserError(f"ADMUNet: low_resolution_size must be in 1..{sample_size}, got {low_resolution_size}")

    def embed(self, timestep: Tensor, class_labels: Tensor | None, batch_size: int, vector: Tensor | None = None) -> Tensor:
        """Embed timesteps (B,) and labels (B,), or representations (B, D') in their place, as (B, D); None is the null condition.

        Raises:
            UserError: If the null condition is asked of a network that has none, or representations do not fit the network.
        """
        embedding = self.timestep_embedder(timestep.reshape(-1).expand(batch_size))  # (B, D)
        embedded = self.embed_labels(class_labels, batch_size, vector)
        return embedding if embedded is None else embedding + embedded

    def read(self, sample: Tensor, low_resolution: Tensor | None) -> Tensor:
        """What the first convolution reads: the sample, and an upsampler's image behind it, resized bilinearly.

        Raises:
            UserError: If an upsampler is given no image, or another network one.
        """
        if (low_resolution is None) != (self.config.low_resolution_size is None):
            problem = "needs low_resolution images" if low_resolution is None else "takes no low_resolution images"
            kind = "an upsampler" if low_resolution is None else "no upsampler (low_resolution_size is not set)"
            raise UserError(f"this ADMUNet is {kind} and {problem}")
        if low_resolution is None:
            return sample
        resized = F.interpolate(low_resolution.to(sample.dtype), sample.shape[2:], mode="bilinear")
        return torch.cat([sample, resized], dim=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        low_resolution: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> DenoiserOutput:
        """Predict what the formulation of training asks for.

        Args:
            sample: (B, C, H, W) float, noised samples.
            timestep: (B,) or scalar, int or float: the formulation's ``network_time``.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition. Ignored where the network
                is not class-conditional.
            low_resolution: (B, C, H', W') images in [-1, 1], of an upsampler.
            vector: (B, D') representations, of a network that has a ``representation_dim``.

        Returns:
            Predictions (B, C, H, W), with variances of the same shape if ``learn_sigma``.
        """
        embedding = F.silu(self.embed(timestep, class_labels, len(sample), vector))  # (B, D)
        hidden = self.conv_in(self.read(sample, low_resolution))
        skips = [hidden]
        for stage in self.encoder:
            hidden = run_block(self, stage, hidden, embedding)
            skips.append(hidden)
        hidden = run_block(self, self.middle, hidden, embedding)
        for stage in self.decoder:
            hidden = run_block(self, stage, torch.cat(self.join(hidden, skips.pop()), dim=1), embedding)
        values = self.conv_out(activate(self.norm_out(hidden)))  # (B, C or 2C, H, W)
        if not self.config.learn_sigma:
            return DenoiserOutput(values)
        prediction, variance = values.chunk(2, dim=1)
        return DenoiserOutput(prediction, variance)
