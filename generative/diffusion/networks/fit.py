"""Diffusion transformer for images of any size: FiT (arXiv 2402.12376) and FiTv2 (2410.13925).

A DiT whose tokens know their row and column by rotary positions, so that images of any height and width are sequences of one
kind: several sizes are trained in one batch, and sizes are sampled that were never trained on.
"""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.networks.arguments import check_arguments
from generative.diffusion.networks.fit_blocks import (
    FiTAttention,
    FiTBlock,
    FiTFinalLayer,
    Modulation,
    ModulationKind,
    NormKind,
)
from generative.layers.attention import MLP
from generative.layers.checkpointing import run_block
from generative.layers.conditioned_network import ConditionedNetwork
from generative.layers.embeddings import TimestepEmbedder
from generative.layers.packing import pack, to_images, to_patches, unpack, valid_tokens
from generative.layers.scaled_rope import FrequencyScaling, ScaledAxialRotary
from generative.layers.swiglu import SwiGLU

# Constructor arguments of the published networks besides those that they have in common (official configurations).
_V2 = {"use_swiglu": True, "q_norm": "layernorm", "k_norm": "layernorm", "adaln_type": "lora"}
FIT_SIZES = MappingProxyType(
    {
        "FiT-XL": MappingProxyType(
            {"hidden_size": 1152, "depth": 28, "num_heads": 16, "use_swiglu": True, "use_swiglu_large": True, "learn_sigma": True}
        ),
        "FiTv2-XL": MappingProxyType({**_V2, "hidden_size": 1152, "depth": 36, "num_heads": 16, "adaln_lora_dim": 288}),
        "FiTv2-3B": MappingProxyType({**_V2, "hidden_size": 2304, "depth": 40, "num_heads": 24, "adaln_lora_dim": 576}),
    }
)
EMBEDDING_INIT_STD = 0.02  # of the label table and the timestep MLP, official code


class FiT(ModelMixin, ConfigMixin, ConditionedNetwork):
    """Class-conditional transformer over images of any height and width.

    The published FiTv2 is ``FiT(sample_size=32, patch_size=2, **FIT_SIZES["FiTv2-XL"])`` under the velocity of straight paths.

    Args:
        sample_size: Height and width of the samples (pixels or latents) that are made where no size is asked for.
        patch_size: Height and width of a patch; divides ``sample_size``.
        in_channels: Channels C of the samples.
        hidden_size: Width D of the tokens; a multiple of ``num_heads``.
        depth: Number of blocks.
        num_heads: Attention heads per block; their width is a multiple of 4.
        mlp_ratio: Width of the feed-forward layers over D; of SwiGLU ones two thirds of it.
        num_classes: Number of classes; the label ``num_classes`` is the null condition.
        class_dropout_prob: Share of the labels that training replaces by the null condition. At 0 the network has none.
        learn_sigma: Predict 2C channels, the second half where the log variance lies between its bounds (FiT).
        context_size: Tokens of the longest sequence that is trained; None for those of ``sample_size``.
        use_swiglu: SwiGLU in the place of the two-layer MLP.
        use_swiglu_large: Of the whole width that ``mlp_ratio`` says.
        rotates: Whether tokens know their place at all.
        norm_type: Norm of the blocks and the last layer.
        q_norm: Norm of queries, before they are rotated.
        k_norm: Norm of keys.
        qkv_bias: Whether queries, keys and values have biases.
        ffn_bias: Whether the feed-forward layers have.
        adaln_bias: Whether the modulations have.
        adaln_type: Modulation of the blocks: ``normal`` DiT's; ``lora`` of low rank, added to one for all blocks; ``swiglu``.
        adaln_lora_dim: Rank of ``lora``; a quarter of D in the published networks.
        rope_theta: Base of the frequencies.
        custom_freqs: How frequencies are scaled for longer sides than those of training, see ``ScaledAxialRotary``. Sides of up
            to ``ori_max_pe_len`` change nothing, so that a network may train with any of them.
        max_pe_len_h: Side in tokens that is scaled for; None with ``online_rope``.
        max_pe_len_w: Likewise.
        decouple: Scale rows by the height and columns by the width; else both by the longer side.
        ori_max_pe_len: Side in tokens that was trained with; 16 in the published networks.
        online_rope: Scale for the size of each image.
        add_rel_pe_to_v: Rotate values too.
        time_shifting: s: the network is told s t / (1 + (s - 1) t) of a time t in [0, 1]; 1 tells it t.
        frequency_embedding_size: Width of the timestep sinusoid.
        representation_dim: Numbers D' of representations that take the place of the class (RCG, arXiv 2312.03701); None for
            classes. Labels then only tell where the null representation stands, which is the label ``num_classes``.

    Raises:
        UserError: If an argument is out of range, or arguments contradict one another.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["FiTBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = False,
        context_size: int | None = None,
        use_swiglu: bool = True,
        use_swiglu_large: bool = False,
        rotates: bool = True,
        norm_type: NormKind = "layernorm",
        q_norm: NormKind = "none",
        k_norm: NormKind = "none",
        qkv_bias: bool = True,
        ffn_bias: bool = True,
        adaln_bias: bool = True,
        adaln_type: ModulationKind = "normal",
        adaln_lora_dim: int | None = None,
        rope_theta: float = 10000.0,
        custom_freqs: FrequencyScaling = "normal",
        max_pe_len_h: int | None = None,
        max_pe_len_w: int | None = None,
        decouple: bool = False,
        ori_max_pe_len: int | None = None,
        online_rope: bool = False,
        add_rel_pe_to_v: bool = False,
        time_shifting: float = 1,
        frequency_embedding_size: int = 256,
        representation_dim: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "sample_size": sample_size,
            "patch_size": patch_size,
            "in_channels": in_channels,
            "hidden_size": hidden_size,
            "depth": depth,
            "num_heads": num_heads,
            "num_classes": num_classes,
        }
        if context_size is not None:
            sizes["context_size"] = context_size
        check_arguments("FiT", sizes, {"class_dropout_prob": class_dropout_prob})
        if sample_size % patch_size:
            raise UserError(f"FiT: patch_size must divide sample_size {sample_size}, got {patch_size}")
        if hidden_size % num_heads:
            raise UserError(f"FiT: hidden_size must be a multiple of num_heads {num_heads}, got {hidden_size}")
        if (adaln_type == "lora") != (adaln_lora_dim is not None):
            raise UserError(f"FiT: adaln_lora_dim is the rank of adaln_type lora, got {adaln_lora_dim} with {adaln_type}")
        if not (time_shifting > 0 and math.isfinite(time_shifting)):
            raise UserError(f"FiT: time_shifting must be a positive number, got {time_shifting}")
        self.gradient_checkpointing = False
        self.context_size = (sample_size // patch_size) ** 2 if context_size is None else context_size
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.patch_embedding = nn.Linear(in_channels * patch_size**2, hidden_size)
        self.timestep_embedder = TimestepEmbedder(hidden_size, frequency_embedding_size)
        self.label_embedding, self.vector_embedding = self.make_embeddings(hidden_size)
        self.rotary = ScaledAxialRotary(
            hidden_size // num_heads,
            rope_theta,
            custom_freqs,
            max_pe_len_h,
            max_pe_len_w,
            ori_max_pe_len,
            decouple,
            online_rope,
        )
        is_lora = adaln_type == "lora"
        self.shared_modulation = Modulation("normal", hidden_size, 6, bias=adaln_bias) if is_lora else None
        self.blocks = nn.ModuleList(self._make_block() for _ in range(depth))
        last = Modulation("swiglu" if adaln_type == "swiglu" else "normal", hidden_size, 2, 0, hidden_size // 2, adaln_bias)
        self.final_layer = FiTFinalLayer(hidden_size, patch_size**2 * self.out_channels, last, norm_type)
        self._initialize()

    def _make_block(self) -> FiTBlock:
        config = self.config
        width, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        feed_forward: MLP | SwiGLU
        if config.use_swiglu:
            feed_forward = SwiGLU(width, inner if config.use_swiglu_large else inner * 2 // 3, bias=config.ffn_bias)
        else:
            feed_forward = MLP(width, inner, bias=config.ffn_bias)
        return FiTBlock(
            width,
            FiTAttention(width, config.num_heads, config.q_norm, config.k_norm, config.qkv_bias, config.add_rel_pe_to_v),
            feed_forward,
            Modulation(config.adaln_type, width, 6, config.adaln_lora_dim or 0, width // 4 * 3, config.adaln_bias),
            config.norm_type,
        )

    def _initialize(self) -> None:
        """Initialise as the official implementation: Xavier-uniform maps, zero modulation, gates and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, SwiGLU):
                for weight in module.gate_up_proj.weight.chunk(2):  # one layer here is two maps
                    nn.init.xavier_uniform_(weight)
        embedder = self.timestep_embedder
        tables = [] if self.label_embedding is None else [self.label_embedding.weight]
        for weight in (*tables, embedder.linear_1.weight, embedder.linear_2.weight):
            nn.init.normal_(weight, std=EMBEDDING_INIT_STD)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.last.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    @property
    def size_multiple(self) -> int:
        """Heights and widths of samples are multiples of this: the network takes any others than ``sample_size``."""
        multiple: int = self.config.patch_size
        return multiple

    def shifted(self, timestep: Tensor) -> Tensor:
        """What the embedder is told of times, see ``time_shifting``."""
        shift = self.config.time_shifting
        return timestep if shift == 1 else (shift * timestep / (1 + (shift - 1) * timestep)).clamp(max=1.0)

    def rotations(self, sizes: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each (B, N, d / 2) float32, of N padded places of images of (B, 2) sizes in tokens."""
        places = torch.arange(length, device=sizes.device) * valid_tokens(sizes, length)  # (B, N), padding at the origin
        widths = sizes[:, 1:]
        return self.rotary(places // widths, places % widths, sizes)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        sizes: Tensor | None = None,
        packing: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> DenoiserOutput:
        """Predict what the formulation of training asks for (velocity, noise, ...).

        Args:
            sample: (B, C, H, W) float, noised samples of one size, multiples of the patch; with ``sizes`` their patches
                (B, C, N, p^2), padded to N, see ``generative.layers.packing``.
            timestep: (B,) or scalar, int or float: the formulation's ``network_time``.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition.
            sizes: (B, 2) int64 height and width of each image in tokens; None for images of one size.
            packing: (R, L) int64 from ``pack_rows``: work on packed rows, with the same result; None on padded sequences.
            vector: (B, D') representations, one an image, of a network that has a ``representation_dim``.

        Returns:
            Predictions of the shape of the sample, zero in the padding, with variances likewise if ``learn_sigma``.

        Raises:
            UserError: If a size is no multiple of the patch, or the condition does not fit the network.
        """
        batch_size, patch = len(sample), self.config.patch_size
        patches = to_patches(sample, patch) if sizes is None else sample  # (B, C, N, p^2)
        length = patches.shape[2]
        tokens = patches.transpose(1, 2).flatten(2)  # (B, N, C p^2)
        cos, sin = self.rotations(one_size(sample, patch) if sizes is None else sizes, length)
        mask = image_of = None
        if sizes is not None and packing is None:
            mask = valid_tokens(sizes, length)[:, None, None]  # (B, 1, 1, N): what stands in the padding is cut off at the end
        elif sizes is not None and packing is not None:
            tokens, cos, sin = pack(tokens, packing), pack(cos, packing), pack(sin, packing)
            image_of = packing.div(length, rounding_mode="floor")  # (R, L), -1 in the padding
            mask = (image_of[:, :, None] == image_of[:, None, :])[:, None]  # (R, 1, L, L)
            image_of = image_of.clamp(min=0)
        condition = self.timestep_embedder(self.shifted(timestep).reshape(-1).expand(batch_size))  # (B, D)
        embedded = self.embed_labels(class_labels, batch_size, vector)
        assert embedded is not None
        condition = condition + embedded
        shared = None if self.shared_modulation is None else self.shared_modulation(condition)
        angles = (cos[:, None], sin[:, None]) if self.config.rotates else (None, None)
        tokens = self.patch_embedding(tokens)
        for block in self.blocks:
            tokens = run_block(self, block, tokens, condition, shared, *angles, mask, image_of)
        values = self.final_layer(tokens, condition, image_of)  # (B, N, C_out p^2), or of rows
        if packing is not None:
            values = unpack(values, packing, batch_size, length)
        elif sizes is not None:
            values = values * valid_tokens(sizes, length)[..., None]
        values = values.unflatten(2, (self.out_channels, -1)).transpose(1, 2)  # (B, C_out, N, p^2)
        if sizes is None:
            values = to_images(values, sample.shape[2] // patch, sample.shape[3] // patch, patch)
        if not self.config.learn_sigma:
            return DenoiserOutput(values)
        prediction, variance = values.chunk(2, dim=1)
        return DenoiserOutput(prediction, variance)


def one_size(sample: Tensor, patch_size: int) -> Tensor:
    """(1, 2) int64 height and width in tokens of samples (B, C, H, W)."""
    sides = [torch.full((1,), side // patch_size, device=sample.device) for side in sample.shape[2:]]
    return torch.stack(sides, dim=1)
