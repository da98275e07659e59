"""ADM's U-Net (Dhariwal and Nichol, arXiv 2105.05233) as EDM builds and trains it (arXiv 2206.00364, appendix F)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.networks.edm_unet import EDMUNet, LabelEmbedding
from generative.layers.edm_unet import MIN_GROUP_CHANNELS, MapAttention, UNetBlock
from generative.layers.embeddings import timestep_embedding
from generative.layers.group_norm import group_norm
from generative.layers.resampling import Resampling
from generative.layers.unet_blocks import activate

NORM_EPS = 1e-5


class DhariwalUNet(EDMUNet):
    """ADM at 64 pixels, with a row of zeros as null condition and the class added behind the noise level's MLP.

    Args:
        sample_size: Height and width of the samples, to be halved ``len(channel_mult) - 1`` times.
        in_channels: Channels C of the samples.
        num_classes: Number of classes; the label ``num_classes`` is the null condition, a row of zeros.
        class_conditional: Whether labels have any effect.
        class_dropout_prob: Share of the labels that training replaces by the null condition, for classifier-free guidance. At 0
            the network is trained without. The network itself drops nothing: the training objective does.
        augment_dim: Width of the labels of augmentation, see ``EDMAugment``; 0 for none.
        model_channels: Base width.
        channel_mult: Width of each level over the base width, highest resolution first.
        channel_mult_emb: Width of the embedding over the base width.
        num_blocks: Residual blocks of a level of the encoder; the decoder's have one more.
        attn_resolutions: Sizes of maps with attention.
        dropout: Share of hidden values dropped in training.
        channels_per_head: Channels of an attention head, at least; maps of fewer channels have no attention.
        representation_dim: Numbers D' of representations that take the place of the class (RCG, arXiv 2312.03701); None for
            classes. Labels then only tell where the null representation, zeros, stands, which is the label ``num_classes``.

    Raises:
        UserError: If an option is out of range, or widths do not divide.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        num_classes: int = 1000,
        class_conditional: bool = True,
        class_dropout_prob: float = 0.0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.1,
        channels_per_head: int = 64,
        representation_dim: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "sample_size": sample_size,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "model_channels": model_channels,
            "channel_mult_emb": channel_mult_emb,
            "num_blocks": num_blocks,
            "channels_per_head": channels_per_head,
        }
        self.check(sizes, {"dropout": dropout, "class_dropout_prob": class_dropout_prob}, channel_mult, class_conditional)
        if model_channels % 2:
            raise UserError(f"DhariwalUNet: model_channels must be even, got {model_channels}")
        embedding_channels = model_channels * channel_mult_emb
        self.label_embedding = LabelEmbedding(num_classes, embedding_channels) if self.takes_classes else None
        without_bias = functools.partial(nn.Linear, bias=False)
        self.vector_embedding = self.make_vector_embedding(embedding_channels, zero_null=True, make_linear=without_bias)
        self.augment_embedding = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.linear_1 = nn.Linear(model_channels, embedding_channels)
        self.linear_2 = nn.Linear(embedding_channels, embedding_channels)

        def make_block(before: int, after: int, resampling: Resampling | None = None, attends: bool = False) -> UNetBlock:
            return UNetBlock(
                before,
                after,
                embedding_channels=embedding_channels,
                resampling=resampling,
                num_heads=after // channels_per_head if attends else 0,
                dropout=dropout,
                eps=NORM_EPS,
            )

        widths = [model_channels * mult for mult in channel_mult]
        self.build_levels(
            in_channels, widths[0], widths, sample_size, num_blocks, attn_resolutions, make_block, attends_last_only=False
        )
        self.out_norm = group_norm(widths[0], NORM_EPS, MIN_GROUP_CHANNELS)
        self.out_conv = nn.Conv2d(widths[0], in_channels, 3, padding=1)
        self._initialize()

    def _initialize(self) -> None:
        """Zero what ends a branch, as the official implementation; all else starts as torch starts it, which is the same."""
        ends: list[nn.Module] = [self.out_conv]
        for module in self.modules():
            if isinstance(module, UNetBlock):
                ends.append(module.conv2)
            if isinstance(module, MapAttention):
                ends.append(module.out)
        if self.augment_embedding is not None:
            ends.append(self.augment_embedding)
        if self.vector_embedding is not None:  # of unit variance behind it, as the rows of classes
            nn.init.normal_(self.vector_embedding.linear.weight, std=self.vector_embedding.dim**-0.5)
        for module in ends:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def embed(
        self, timestep: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None, vector: Tensor | None
    ) -> Tensor:
        """Embed the conditions; see the base class."""
        dtype = self.linear_1.weight.dtype
        embedding = timestep_embedding(timestep, self.config.model_channels).to(dtype)  # (B, N)
        if self.augment_embedding is not None and augment_labels is not None:
            embedding = embedding + self.augment_embedding(augment_labels.to(dtype))
        embedding = self.linear_2(F.silu(self.linear_1(embedding)))  # (B, E)
        embedded = self.embed_labels(class_labels, len(timestep), vector)
        return F.silu(embedding if embedded is None else embedding + embedded)

    def decode(self, hidden: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Predictions; see the base class."""
        for level in self.decoder:
            hidden = self.decode_level(level, hidden, skips, embedding)
        prediction: Tensor = self.out_conv(activate(self.out_norm(hidden)))
        return prediction
