"""Diffusion transformer: DiT of Peebles and Xie, "Scalable Diffusion Models with Transformers" (arXiv 2212.09748).

An image or latent is cut into patches, each patch is a token, and the timestep and class steer every block through adaptive layer
norm whose gates start at zero (adaLN-Zero, section 3.2).
"""

from __future__ import annotations

import math
from types import MappingProxyType

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
from generative.layers.embeddings import TimestepEmbedder, sincos_positions_2d

# Constructor arguments of the published sizes (arXiv 2212.09748, table 1); combine with patch_size 2, 4 or 8.
DIT_SIZES = MappingProxyType(
    {
        "S": MappingProxyType({"hidden_size": 384, "depth": 12, "num_heads": 6}),
        "B": MappingProxyType({"hidden_size": 768, "depth": 12, "num_heads": 12}),
        "L": MappingProxyType({"hidden_size": 1024, "depth": 24, "num_heads": 16}),
        "XL": MappingProxyType({"hidden_size": 1152, "depth": 28, "num_heads": 16}),
    }
)
LAYER_NORM_EPS = 1e-6  # the official implementation's
EMBEDDING_INIT_STD = 0.02  # of the label table and the timestep MLP, official implementation


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens (B, L, D) by one vector (B, D) per image: ``tokens * (1 + scale) + shift``."""
    return tokens * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """Self-attention and MLP, each between a modulated layer norm and a gate (adaLN-Zero).

    Args:
        hidden_size: Width D.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP over D.
        mlp_norm_eps: Added to the variance in the norm before the MLP.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, mlp_norm_eps: float = LAYER_NORM_EPS) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.attention = SelfAttention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=mlp_norm_eps, elementwise_affine=False)
        self.mlp = MLP(hidden_size, int(hidden_size * mlp_ratio))
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Transform tokens (B, L, D) under a condition (B, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition)).chunk(6, dim=1)  # each (B, D)
        tokens = tokens + gate1[:, None] * self.attention(modulate(self.norm1(tokens), shift1, scale1))
        return tokens + gate2[:, None] * self.mlp(modulate(self.norm2(tokens), shift2, scale2))


class FinalLayer(nn.Module):
    """Modulated layer norm and a linear map to the values of a patch.

    Args:
        hidden_size: Width D.
        patch_values: Values per patch, patch height * patch width * channels.
    """

    def __init__(self, hidden_size: int, patch_values: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.linear = nn.Linear(hidden_size, patch_values)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Map tokens (B, L, D) under a condition (B, D) to patch values (B, L, patch_values)."""
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=1)  # each (B, D)
        return self.linear(modulate(self.norm(tokens), shift, scale))


class DiT(ModelMixin, ConfigMixin, ConditionedNetwork):
    """Class-conditional diffusion transformer.

    The published models are ``DiT(sample_size=32, patch_size=2, learn_sigma=True, **DIT_SIZES["XL"])`` and so on.

    Args:
        sample_size: Height and width of the samples (pixels or latents).
        patch_size: Height and width of a patch; divides ``sample_size``.
        in_channels: Channels C of the samples.
        hidden_size: Width D of the tokens; a multiple of 4 and of ``num_heads``.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        mlp_ratio: Width of the MLPs over D.
        num_classes: Number of classes; the label ``num_classes`` is the null condition.
        class_dropout_prob: Share of the labels that training replaces by the null condition, for classifier-free guidance. At 0
            the network has no null condition. The network itself drops nothing: the training objective does.
        learn_sigma: Predict 2C channels: the noise, then where the log variance lies between its bounds (arXiv 2102.09672).
        frequency_embedding_size: Width of the timestep sinusoid.
        frequency_shift: Of its frequencies: 0 officially, 1 in diffusers, see ``timestep_embedding``.
        mlp_norm_eps: Added to the variance in the norm before the MLP: 1e-6 officially, 1e-5 in diffusers.
        representation_dim: Numbers D' of representations that take the place of the class (RCG, arXiv 2312.03701); None for
            classes. Labels then only tell where the null representation stands, which is the label ``num_classes``.

    Raises:
        UserError: If a size is below 1, or sizes do not divide one another.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock"]

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
        frequency_embedding_size: int = 256,
        frequency_shift: int = 0,
        mlp_norm_eps: float = LAYER_NORM_EPS,
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
        check_arguments("DiT", sizes, {"class_dropout_prob": class_dropout_prob})
        if sample_size % patch_size:
            raise UserError(f"DiT: patch_size must divide sample_size {sample_size}, got {patch_size}")
        if hidden_size % 4 or hidden_size % num_heads:
            raise UserError(f"DiT: hidden_size must be a multiple of 4 and of num_heads {num_heads}, got {hidden_size}")
        if not 0 < mlp_norm_eps < math.inf:
            raise UserError(f"DiT: mlp_norm_eps must be a positive number, got {mlp_norm_eps}")
        self.gradient_checkpointing = False
        self.grid_size = sample_size // patch_size
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.patch_embedding = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.timestep_embedder = TimestepEmbedder(hidden_size, frequency_embedding_size, frequency_shift)
        self.label_embedding, self.vector_embedding = self.make_embeddings(hidden_size)
        self.position_embedding: Tensor
        self.register_buffer("position_embedding", sincos_positions_2d(hidden_size, self.grid_size, self.grid_size)[None])
        self.blocks = nn.ModuleList([DiTBlock(hidden_size, num_heads, mlp_ratio, mlp_norm_eps) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels)
        self._initialize()

    def _initialize(self) -> None:
        """Initialise as the official implementation: Xavier-uniform maps, zero modulation, gates and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))  # the patch embedding as a linear map
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        embedder = self.timestep_embedder
        tables = [] if self.label_embedding is None else [self.label_embedding.weight]
        for weight in (*tables, embedder.linear_1.weight, embedder.linear_2.weight):
            nn.init.normal_(weight, std=EMBEDDING_INIT_STD)
        for module in self.modules():
            if isinstance(module, (DiTBlock, FinalLayer)):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def embed_patches(self, sample: Tensor) -> Tensor:
        """Cut samples (B, C, H, W) into tokens (B, L, D), positions added."""
        return self.patch_embedding(sample).flatten(2).transpose(1, 2) + self.position_embedding

    def assemble_patches(self, patches: Tensor) -> Tensor:
        """Put patch values (B, L, patch * patch * C) together as (B, C, H, W); channels vary fastest."""
        grid, patch = self.grid_size, self.config.patch_size
        patches = patches.reshape(-1, grid, grid, patch, patch, self.out_channels)  # (B, row, column, p, q, C)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.out_channels, grid * patch, grid * patch)  # (B, C, H, W)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, vector: Tensor | None = None
    ) -> DenoiserOutput:
        """Predict what the formulation of training asks for (noise, velocity, ...).

        Args:
            sample: (B, C, H, W) float, noised samples.
            timestep: (B,) or scalar, int or float: the formulation's ``network_time``.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition.
            vector: (B, D') representations, of a network that has a ``representation_dim``.

        Returns:
            Predictions (B, C, H, W), with variances of the same shape if ``learn_sigma``.
        """
        batch_size = sample.shape[0]
        tokens = self.embed_patches(sample)  # (B, L, D)
        condition = self.timestep_embedder(timestep.reshape(-1).expand(batch_size))  # (B, D)
        embedded = self.embed_labels(class_labels, batch_size, vector)
        assert embedded is not None
        condition = condition + embedded
        for block in self.blocks:
            tokens = run_block(self, block, tokens, condition)
        values = self.assemble_patches(self.final_layer(tokens, condition))  # (B, C or 2C, H, W)
        if not self.config.learn_sigma:
            return DenoiserOutput(values)
        prediction, variance = values.chunk(2, dim=1)
        return DenoiserOutput(prediction, variance)
