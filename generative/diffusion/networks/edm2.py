"""The magnitude-preserving U-Net of EDM2 (Karras et al., arXiv 2312.02696, config G), with its estimate of uncertainty.

It is the raw network F of EDM: ``generative.diffusion.formulations.edm`` scales what goes in and out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.networks.arguments import check_arguments
from generative.diffusion.networks.edm2_blocks import EDM2Block, MPVectorLinear, decoder_places, encoder_places
from generative.diffusion.networks.skips import SkipNetwork
from generative.layers.checkpointing import run_block
from generative.layers.conditioned_network import ConditionedNetwork
from generative.layers.magnitude_preserving import (
    MPConv2d,
    MPFourier,
    MPLinear,
    force_norms,
    mp_cat,
    mp_silu,
    mp_sum,
)
from generative.layers.resampling import check_resample_filter

# model_channels of the published sizes (arXiv 2312.02696, table 2; XXS is of the official presets only).
EDM2_SIZES = MappingProxyType({"XXS": 64, "XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448})


class EDM2UNet(ModelMixin, ConfigMixin, SkipNetwork, ConditionedNetwork):
    """Class-conditional magnitude-preserving U-Net.

    The published models are ``EDM2UNet(sample_size=64, model_channels=EDM2_SIZES["S"])`` and so on, on 64 x 64 latents of 4
    channels or pixels of 3. In training mode every forward pass overwrites the weights by their normalised selves (eq. 66).

    Args:
        sample_size: Height and width of the samples (pixels or latents), a multiple of 2^(levels - 1).
        in_channels: Channels C of the samples.
        num_classes: Number of classes; the label ``num_classes`` is the null condition, which adds nothing.
        class_conditional: Whether the class has an effect; else labels are ignored.
        class_dropout_prob: Share of the labels that training replaces by the null condition, for classifier-free guidance. At 0,
            as published, the network is not trained to do without. The network itself drops nothing: the training objective does.
        model_channels: Width that the multipliers multiply.
        channel_mult: Width of each level, the largest map first.
        channel_mult_noise: Fourier features of the noise level; None for the first level's width.
        channel_mult_emb: Width of the condition; None for the widest level's.
        num_blocks: Residual blocks of an encoder level; the decoder has one more.
        attention_resolutions: Sizes of maps whose blocks attend; the innermost decoder block does so always.
        label_balance: Share of the class in the condition, noise level and class.
        concat_balance: Share of the skips in concatenations.
        resample_filter: Taps of the filter that halves and doubles maps.
        channels_per_head: Channels of an attention head; a level with less has no attention.
        dropout: Within residual branches.
        residual_balance: Share of the residual branch in sums.
        attention_balance: Share of the attention in sums.
        clip_act: Blocks clip their outputs to plus and minus this; None for no clipping.
        logvar_channels: Fourier features of the estimate of uncertainty (eq. 21).
        representation_dim: Numbers D' of representations that take the place of the class (RCG, arXiv 2312.03701); None for
            classes. Labels then only tell where the null representation, zeros, stands, which is the label ``num_classes``.

    Raises:
        UserError: If an option is out of range, or sizes do not divide one another.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["EDM2Block"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 4,
        num_classes: int = 1000,
        class_conditional: bool = True,
        class_dropout_prob: float = 0.0,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attention_resolutions: tuple[int, ...] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        resample_filter: tuple[float, ...] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        residual_balance: float = 0.3,
        attention_balance: float = 0.3,
        clip_act: float | None = 256.0,
        logvar_channels: int = 128,
        representation_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_options(self.config)
        self.gradient_checkpointing = False
        widths = [model_channels * multiplier for multiplier in channel_mult]
        self.decoder_widths = tuple(dict.fromkeys(reversed(widths)))
        noise_channels = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        embedding_channels = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        block_options: dict[str, Any] = {
            "embedding_channels": embedding_channels,
            "resample_filter": resample_filter,
            "channels_per_head": channels_per_head,
            "dropout": dropout,
            "residual_balance": residual_balance,
            "attention_balance": attention_balance,
            "clip_act": clip_act,
        }
        attended = [sample_size >> level in attention_resolutions for level in range(len(widths))]
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPLinear(noise_channels, embedding_channels)
        self.emb_label = MPLinear(num_classes, embedding_channels) if self.takes_classes else None
        self.vector_embedding = self.make_vector_embedding(embedding_channels, zero_null=True, make_linear=MPVectorLinear)
        # A channel of ones takes the place of biases.
        self.conv_in = MPConv2d(in_channels + 1, widths[0])
        self.encoder = nn.ModuleList(
            [EDM2Block(place, **block_options) for place in encoder_places(widths, num_blocks, attended)]
        )
        places = decoder_places(widths, num_blocks, attended)
        self.reads_skip = [place.reads_skip for place in places]
        self.decoder = nn.ModuleList([EDM2Block(place, **block_options) for place in places])
        self.conv_out = MPConv2d(widths[0], in_channels)
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPLinear(logvar_channels, 1)

    def embed(self, timestep: Tensor, class_labels: Tensor | None, vector: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Condition (B, D) and uncertainty (B,), both float32, of ln(sigma) / 4 (B,) and labels or vectors; see ``forward``."""
        with torch.autocast(timestep.device.type, enabled=False):
            embedding = self.emb_noise(self.emb_fourier(timestep))  # (B, D)
            embedded = self.embed_labels(class_labels, len(timestep), vector)
            if embedded is not None:
                embedding = mp_sum(embedding, embedded, self.config.label_balance)
            return mp_silu(embedding), self.logvar_linear(self.logvar_fourier(timestep)).flatten()

    def embed_classes(self, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """A linear map (B, D) of one-hot vectors of unit magnitude, in float32; see the base class."""
        assert self.emb_label is not None
        weights = self.class_weights(class_labels, batch_size, self.emb_label.weight.device)
        return self.emb_label(weights * self.config.num_classes**0.5)

    def class_weights(self, class_labels: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
        """(B, K) float32: a one for the class of each sample, none for the null condition."""
        if class_labels is None:
            return torch.zeros(batch_size, self.config.num_classes, device=device)
        if class_labels.is_floating_point():
            return class_labels.float()
        return (class_labels[:, None] == torch.arange(self.config.num_classes, device=class_labels.device)).float()

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, vector: Tensor | None = None
    ) -> DenoiserOutput:
        """Predict F, of which EDM's preconditioning makes the denoised sample.

        Args:
            sample: (B, C, H, W) float, noised samples times c_in.
            timestep: (B,) or one element: c_noise = ln(sigma) / 4.
            class_labels: (B,) int64 in [0, num_classes], or (B, K) float weights of the classes; ``num_classes`` or None is the
                null condition.
            vector: (B, D') representations, of a network that has a ``representation_dim``.

        Returns:
            F (B, C, H, W), with the uncertainty u(sigma) (B,) float32 as ``log_variance``.
        """
        if self.training:
            force_norms(self)
        times = timestep.to(sample.device).float().reshape(-1).expand(len(sample))
        embedding, log_variance = self.embed(times, class_labels, vector)
        hidden = torch.cat([sample, torch.ones_like(sample[:, :1])], dim=1).contiguous(memory_format=torch.channels_last)
        hidden = self.conv_in(hidden)  # (B, C_0, H, W)
        skips = [hidden]
        for block in self.encoder:
            hidden = run_block(self, block, hidden, embedding)
            skips.append(hidden)
        for block, reads_skip in zip(self.decoder, self.reads_skip, strict=True):
            if reads_skip:
                hidden = mp_cat(*self.join(hidden, skips.pop()), self.config.concat_balance)
            hidden = run_block(self, block, hidden, embedding)
        return DenoiserOutput(self.conv_out(hidden, self.out_gain), log_variance=log_variance)


def check_options(config: Mapping[str, Any]) -> None:
    """Refuse options of ``EDM2UNet`` that no network can be built from.

    Raises:
        UserError: Naming the option.
    """
    sizes = (
        "sample_size",
        "in_channels",
        "num_classes",
        "model_channels",
        "num_blocks",
        "channels_per_head",
        "logvar_channels",
    )
    shares = {name: config[name] for name in ("class_dropout_prob", "dropout")}
    check_arguments("EDM2UNet", {name: config[name] for name in sizes}, shares, config["class_conditional"])
    multipliers = {name: config[name] for name in ("channel_mult_noise", "channel_mult_emb") if config[name] is not None}
    multipliers["channel_mult"] = min(config["channel_mult"], default=0)
    for name, value in multipliers.items():
        if value < 1:
            raise UserError(f"EDM2UNet: {name} must be 1 or more, got {config[name]}")
    stride = 2 ** (len(config["channel_mult"]) - 1)
    if config["sample_size"] % stride:
        raise UserError(f"EDM2UNet: sample_size must be a multiple of {stride}, for channel_mult, got {config['sample_size']}")
    for name in ("label_balance", "concat_balance", "residual_balance", "attention_balance"):
        if not 0 <= config[name] <= 1:
            raise UserError(f"EDM2UNet: {name} must be in [0, 1], got {config[name]}")
    if config["clip_act"] is not None and not config["clip_act"] > 0:
        raise UserError(f"EDM2UNet: clip_act must be above 0, or null for no clipping, got {config['clip_act']}")
    check_resample_filter(config["resample_filter"])
    for level, multiplier in enumerate(config["channel_mult"]):
        attends = config["sample_size"] >> level in config["attention_resolutions"] or 2**level == stride
        width = config["model_channels"] * multiplier
        num_heads = max(width // config["channels_per_head"], 1)
        if attends and width % num_heads:
            raise UserError(
                f"EDM2UNet: a level of {width} channels does not divide into {num_heads} heads, which channels_per_head "
                f"{config['channels_per_head']} asks for; change it or model_channels"
            )
