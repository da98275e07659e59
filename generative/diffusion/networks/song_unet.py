"""DDPM++ and NCSN++ (Song et al., arXiv 2011.13456) as EDM trains them (Karras et al., arXiv 2206.00364, appendix F)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.networks.edm_unet import EDMUNet, LabelEmbedding, scale_weight
from generative.layers.edm_unet import MIN_GROUP_CHANNELS, MapAttention, Resampler, UNetBlock
from generative.layers.embeddings import MAX_PERIOD, timestep_embedding
from generative.layers.group_norm import group_norm
from generative.layers.resampling import Resampling
from generative.layers.unet_blocks import activate

EmbeddingType = Literal["positional", "fourier"]
EncoderType = Literal["standard", "residual", "skip"]
DecoderType = Literal["standard", "skip"]

NORM_EPS = 1e-6
FOURIER_STD = 16.0  # of random frequencies
# Xavier-uniform everywhere; the last layer of a branch starts near zero, and attention's queries, keys and values small.
LAST_INIT, ATTENTION_INIT = 1e-5, math.sqrt(0.2)


class SongUNet(EDMUNet):
    """U-Net of score-based SDEs, its residual sums scaled by sqrt(1/2), one attention head.

    Defaults are DDPM++ as EDM trains it on CIFAR-10; NCSN++ has ``embedding_type`` fourier, ``channel_mult_noise`` 2,
    ``encoder_type`` residual and ``resample_filter`` (1, 3, 3, 1). At 64 pixels both have ``channel_mult`` (1, 2, 2, 2).

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
        channel_mult_noise: Width of the noise level's embedding over the base width.
        num_blocks: Residual blocks of a level of the encoder; the decoder's have one more.
        attn_resolutions: Sizes of maps with attention.
        dropout: Share of hidden values dropped in training.
        embedding_type: Of the noise level: sinusoids of geometric (``positional``) or random (``fourier``) frequencies.
        encoder_type: What lower levels get besides: nothing (``standard``), the map before, halved (``residual``), or the sample,
            halved (``skip``).
        decoder_type: Whether the image is made at the highest level (``standard``) or summed up over all (``skip``).
        resample_filter: Filter of halving and doubling along one axis.
        representation_dim: Numbers D' of representations that take the place of the class (RCG, arXiv 2312.03701); None for
            classes. Labels then only tell where the null representation, zeros, stands, which is the label ``num_classes``.

    Raises:
        UserError: If an option is out of range, or widths do not divide.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        num_classes: int = 10,
        class_conditional: bool = True,
        class_dropout_prob: float = 0.0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        channel_mult_emb: int = 4,
        channel_mult_noise: int = 1,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding_type: EmbeddingType = "positional",
        encoder_type: EncoderType = "standard",
        decoder_type: DecoderType = "standard",
        resample_filter: Sequence[float] = (1.0, 1.0),
        representation_dim: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "sample_size": sample_size,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "model_channels": model_channels,
            "channel_mult_emb": channel_mult_emb,
            "channel_mult_noise": channel_mult_noise,
            "num_blocks": num_blocks,
        }
        self.check(sizes, {"dropout": dropout, "class_dropout_prob": class_dropout_prob}, channel_mult, class_conditional)
        noise_channels, embedding_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        if noise_channels % 2 or noise_channels < 4:
            raise UserError(f"SongUNet: model_channels * channel_mult_noise must be even and at least 4, got {noise_channels}")
        for name, value, known in (
            ("embedding_type", embedding_type, ("positional", "fourier")),
            ("encoder_type", encoder_type, ("standard", "residual", "skip")),
            ("decoder_type", decoder_type, ("standard", "skip")),
        ):
            if value not in known:
                raise UserError(f"SongUNet: {name} must be one of {', '.join(known)}, got {value!r}")
        self.noise_channels = noise_channels
        self.frequencies: Tensor | None
        is_random = embedding_type == "fourier"
        self.register_buffer("frequencies", torch.randn(noise_channels // 2) * FOURIER_STD if is_random else None)
        self.label_embedding = LabelEmbedding(num_classes, noise_channels) if self.takes_classes else None
        self.label_bias = nn.Parameter(torch.zeros(noise_channels)) if self.takes_classes else None
        self.vector_embedding = self.make_vector_embedding(noise_channels, zero_null=True)
        self.augment_embedding = nn.Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.linear_1 = nn.Linear(noise_channels, embedding_channels)
        self.linear_2 = nn.Linear(embedding_channels, embedding_channels)

        def make_block(before: int, after: int, resampling: Resampling | None = None, attends: bool = False) -> UNetBlock:
            return UNetBlock(
                before,
                after,
                embedding_channels=embedding_channels,
                resampling=resampling,
                num_heads=int(attends),
                dropout=dropout,
                residual_scale=math.sqrt(0.5),
                eps=NORM_EPS,
                resample_filter=resample_filter,
                projects_resampled=True,
                adaptive_scale=False,
            )

        widths = [model_channels * mult for mult in channel_mult]
        self.build_levels(
            in_channels, model_channels, widths, sample_size, num_blocks, attn_resolutions, make_block, attends_last_only=True
        )
        self.side_convs = nn.ModuleList(self._side_convs(in_channels, widths, encoder_type))
        self.side_resamplers = nn.ModuleList(Resampler(resample_filter) for _ in self.side_convs)
        self.out_norms, self.out_convs = nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths) if decoder_type == "skip" else widths[:1]:
            self.out_norms.append(group_norm(width, NORM_EPS, MIN_GROUP_CHANNELS))
            self.out_convs.append(nn.Conv2d(width, in_channels, 3, padding=1))
        self.out_resamplers = nn.ModuleList(Resampler(resample_filter) for _ in self.out_convs[1:])
        self._initialize()

    def _side_convs(self, in_channels: int, widths: list[int], encoder_type: str) -> list[nn.Conv2d]:
        """Convolutions of the encoder's second path, one a level but the first."""
        arriving = widths[:-1]  # the block that halves a map keeps its width
        if encoder_type == "skip":
            return [nn.Conv2d(in_channels, width, 1) for width in arriving]
        if encoder_type == "residual":
            return [
                nn.Conv2d(before, width, 3, padding=1)
                for before, width in zip([in_channels, *arriving[:-1]], arriving, strict=True)
            ]
        return []

    def _initialize(self) -> None:
        """Initialise as the official implementation."""
        xavier = nn.init.xavier_uniform_
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                scale_weight(module, xavier, 1.0)
        for module in self.modules():
            if isinstance(module, UNetBlock):
                scale_weight(module.conv2, xavier, LAST_INIT)
            if isinstance(module, MapAttention):
                scale_weight(module.qkv, xavier, ATTENTION_INIT)
                scale_weight(module.out, xavier, LAST_INIT)
        for conv in self.out_convs:
            scale_weight(conv, xavier, LAST_INIT)
        if self.label_embedding is not None:
            xavier(self.label_embedding.weight)

    def embed(
        self, timestep: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None, vector: Tensor | None
    ) -> Tensor:
        """Embed the conditions, see the base class; labels and noise level are summed up before the MLP."""
        dtype = self.linear_1.weight.dtype
        embedding = self.embed_noise(timestep).to(dtype)  # (B, N)
        embedded = self.embed_labels(class_labels, len(timestep), vector)
        if embedded is not None:
            embedding = embedding + embedded
        if self.augment_embedding is not None and augment_labels is not None:
            embedding = embedding + self.augment_embedding(augment_labels.to(dtype))
        return F.silu(self.linear_2(F.silu(self.linear_1(embedding))))

    def embed_classes(self, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """A linear map of one-hot vectors of unit magnitude; see the base class."""
        assert self.label_bias is not None
        return math.sqrt(self.config.num_classes) * super().embed_classes(class_labels, batch_size) + self.label_bias

    def embed_noise(self, timestep: Tensor) -> Tensor:
        """Sines, then cosines, of times (B,), as (B, N) float32."""
        half = self.noise_channels // 2
        if self.frequencies is None:
            # The last frequency is that of the longest wavelength, not the one before it.
            embedding = timestep_embedding(timestep, self.noise_channels, MAX_PERIOD ** (half / (half - 1)))
        else:
            angles = timestep.float().outer(2 * math.pi * self.frequencies.float())
            embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
        return embedding.roll(half, dims=1)

    def join_side(self, level: int, hidden: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Add the second path of the encoder; see the base class."""
        if self.config.encoder_type == "standard":
            return hidden, side
        resampler, conv = self.side_resamplers[level - 1], self.side_convs[level - 1]
        assert isinstance(resampler, Resampler) and isinstance(conv, nn.Conv2d)
        if self.config.encoder_type == "skip":
            side = resampler.down(side)
            return hidden + conv(side), side
        hidden = (hidden + resampler.conv_down(side, conv)) * math.sqrt(0.5)
        return hidden, hidden

    def decode(self, hidden: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Predictions; see the base class."""
        image: Tensor | None = None
        outs = list(zip(self.out_norms, self.out_convs, strict=True))
        for index, level in enumerate(self.decoder):
            hidden = self.decode_level(level, hidden, skips, embedding)
            if image is not None:
                resampler = self.out_resamplers[index - 1]
                assert isinstance(resampler, Resampler)
                image = resampler.up(image)
            place = index + len(outs) - len(self.decoder)
            if place >= 0:
                norm, conv = outs[place]
                part = conv(activate(norm(hidden)))
                image = part if image is None else image + part
        assert image is not None
        return image
