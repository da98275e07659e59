"""U-ViT of Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models" (arXiv 2209.12152).

The time, the class and the patches of a sample are all tokens of one transformer, whose shallow blocks are joined to its deep
ones by long skip connections (section 3): a block after the middle reads what the block opposite it put out.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.networks.arguments import check_arguments
from generative.layers.attention import MLP, SelfAttention
from generative.layers.checkpointing import run_block
from generative.layers.conditioned_network import ConditionedNetwork
from generative.layers.embeddings import timestep_embedding

# Constructor arguments of the published sizes (arXiv 2209.12152, table 1, and the official configurations). S is of CIFAR-10
# (patch_size 2) and CelebA (4), M and L of ImageNet 64 (4), L and H of latents of ImageNet at 256 (2) and 512 (4).
UVIT_SIZES = MappingProxyType(
    {
        "S": MappingProxyType({"hidden_size": 512, "depth": 12, "num_heads": 8}),
        "M": MappingProxyType({"hidden_size": 768, "depth": 16, "num_heads": 12}),
        "L": MappingProxyType({"hidden_size": 1024, "depth": 20, "num_heads": 16}),
        "H": MappingProxyType({"hidden_size": 1152, "depth": 28, "num_heads": 16, "final_conv": False}),
    }
)
INIT_STD = 0.02  # of linear maps and positions, official implementation


class TimeMLP(nn.Module):
    """Two layers on the sinusoid of the time, as wide as itself.

    Args:
        hidden_size: Width D.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, 4 * hidden_size)
        self.linear_2 = nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return self.linear_2(F.silu(self.linear_1(embedding)))


class UViTBlock(nn.Module):
    """Pre-norm self-attention and MLP; after the middle, first a linear map of the tokens beside those of the opposite block.

    Args:
        hidden_size: Width D.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP over D.
        qkv_bias: Whether queries, keys and values have biases.
        joins: Whether it reads a long skip connection.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, joins: bool = False) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * hidden_size, hidden_size) if joins else None
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attention = SelfAttention(hidden_size, num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = MLP(hidden_size, int(hidden_size * mlp_ratio), "none")

    def forward(self, tokens: Tensor, skip: Tensor | None = None) -> Tensor:
        """Transform tokens (B, L, D); ``skip`` is of the same shape, and read by a block that joins."""
        if self.skip_linear is not None:
            assert skip is not None
            tokens = self.skip_linear(torch.cat([tokens, skip], dim=2))
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class UViT(ModelMixin, ConfigMixin, ConditionedNetwork):
    """Transformer with long skip connections, on pixels or latents.

    The published models are ``UViT(sample_size=32, patch_size=2, in_channels=4, **UVIT_SIZES["L"])`` and so on.

    Args:
        sample_size: Height and width of the samples (pixels or latents).
        patch_size: Height and width of a patch; divides ``sample_size``.
        in_channels: Channels C of the samples.
        hidden_size: Width D of the tokens, a multiple of ``num_heads``.
        depth: Blocks besides the middle one: half before it, half after; the odd one of an odd number is left out.
        num_heads: Attention heads per block.
        mlp_ratio: Width of the MLPs over D.
        num_classes: Number of classes; the label ``num_classes`` is the null condition.
        class_conditional: Whether the class is a token; without, labels have no effect.
        class_dropout_prob: Share of the labels that training replaces by the null condition, for classifier-free guidance. At 0
            the network has no null condition. The network itself drops nothing: the training objective does.
        qkv_bias: Whether queries, keys and values have biases.
        time_mlp: Put the sinusoid of the time through an MLP; without, it is the token itself.
        final_conv: End in a 3x3 convolution (appendix A, figure 2 (d)); the published H has none.
        skip_connections: Whether the blocks after the middle read those before.
        representation_dim: Numbers D' of representations that take the place of the class (RCG, arXiv 2312.03701); None for
            classes. Labels then only tell where the null representation stands, which is the label ``num_classes``.

    Raises:
        UserError: If a size is below 1, sizes do not divide one another, or classes contradict.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["UViTBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_conditional: bool = True,
        class_dropout_prob: float = 0.1,
        qkv_bias: bool = False,
        time_mlp: bool = False,
        final_conv: bool = True,
        skip_connections: bool = True,
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
        check_arguments("UViT", sizes, {"class_dropout_prob": class_dropout_prob}, class_conditional)
        if sample_size % patch_size:
            raise UserError(f"UViT: patch_size must divide sample_size {sample_size}, got {patch_size}")
        if hidden_size % num_heads:
            raise UserError(f"UViT: hidden_size must be a multiple of num_heads {num_heads}, got {hidden_size}")
        if not mlp_ratio * hidden_size >= 1:
            raise UserError(f"UViT: mlp_ratio must be positive, got {mlp_ratio}")
        self.gradient_checkpointing = False
        self.num_extras = 1 + self.is_conditioned  # tokens that are no patches
        num_tokens = self.num_extras + (sample_size // patch_size) ** 2

        def make_block(joins: bool = False) -> UViTBlock:
            return UViTBlock(hidden_size, num_heads, mlp_ratio, qkv_bias, joins)

        self.patch_embedding = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.time_embedding = TimeMLP(hidden_size) if time_mlp else None
        self.label_embedding, self.vector_embedding = self.make_embeddings(hidden_size)
        self.position_embedding = nn.Parameter(torch.empty(1, num_tokens, hidden_size))
        self.in_blocks = nn.ModuleList([make_block() for _ in range(depth // 2)])
        self.mid_block = make_block()
        self.out_blocks = nn.ModuleList([make_block(skip_connections) for _ in range(depth // 2)])
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, patch_size**2 * in_channels)
        self.conv_out = nn.Conv2d(in_channels, in_channels, 3, padding=1) if final_conv else None
        self._initialize()

    def _initialize(self) -> None:
        """Initialise as the official implementation: truncated normal linear maps and positions, the rest as torch does."""
        nn.init.trunc_normal_(self.position_embedding, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None, vector: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D) with their positions: the class (or representation) if there is one, the time, the patches by row."""
        patches = self.patch_embedding(sample).flatten(2).transpose(1, 2)  # (B, L - 1 or 2, D)
        batch_size, _, dim = patches.shape
        time = timestep_embedding(timestep.reshape(-1).expand(batch_size), dim).to(self.position_embedding.dtype)
        if self.time_embedding is not None:
            time = self.time_embedding(time)
        extras = [time]
        embedded = self.embed_labels(class_labels, batch_size, vector)
        if embedded is not None:
            extras.insert(0, embedded)
        return torch.cat([torch.stack(extras, dim=1).to(patches.dtype), patches], dim=1) + self.position_embedding

    def assemble_patches(self, patches: Tensor) -> Tensor:
        """Put patch values (B, L, patch * patch * C) together as (B, C, H, W); channels vary fastest."""
        patch, channels = self.config.patch_size, self.config.in_channels
        grid = self.config.sample_size // patch
        patches = patches.reshape(-1, grid, grid, patch, patch, channels)  # (B, row, column, p, q, C)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, grid * patch, grid * patch)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, vector: Tensor | None = None
    ) -> DenoiserOutput:
        """Predict what the formulation of training asks for; officially the noise.

        Args:
            sample: (B, C, H, W) float, noised samples.
            timestep: (B,) or scalar, int or float: the formulation's ``network_time``. Officially 1 to 1000 on latents, 999 t of
                the continuous time t on pixels.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition. Ignored where the network
                is not ``class_conditional``.
            vector: (B, D') representations, of a network that has a ``representation_dim``.

        Returns:
            Predictions (B, C, H, W).

        Raises:
            UserError: If the null condition is asked of a network that has none, or representations do not fit the network.
        """
        tokens = self.embed(sample, timestep, class_labels, vector)
        skips = []
        for block in self.in_blocks:
            tokens = run_block(self, block, tokens)
            skips.append(tokens)
        tokens = run_block(self, self.mid_block, tokens)
        for block in self.out_blocks:
            tokens = run_block(self, block, tokens, skips.pop())
        values = self.assemble_patches(self.head(self.norm(tokens[:, self.num_extras :])))
        return DenoiserOutput(values if self.conv_out is None else self.conv_out(values))
