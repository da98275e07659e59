"""DiMR of Liu et al., "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models" (arXiv 2406.09416).

A branch for each resolution, the lowest first: each sees the sample at its own resolution and what all blocks of the branch below
put out, and predicts at its own resolution; the last one at the sample's (section 3.2). Time comes in through the parameters of
the norms alone (section 3.3).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, get_args

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.networks.arguments import check_arguments
from generative.diffusion.networks.dimr_blocks import PositionType
from generative.diffusion.networks.dimr_stage import INIT_STD, BlockType, Stage, StageOptions
from generative.layers.conditioned_network import ConditionedNetwork
from generative.layers.time_dependent import AdaptiveRMSNorm, NormType

TIME_DIVISOR = 4.0  # of the log-SNR-like times that the network is told, -4 to 4
# Constructor arguments of the published models at 256 pixels (official configurations).
DIMR_SIZES = MappingProxyType(
    {
        "XL/2R": MappingProxyType({"hidden_sizes": (960, 480), "mlp_sizes": (1920, 960), "num_blocks": (39, 20)}),
        "G/2R": MappingProxyType({"hidden_sizes": (1152, 576), "mlp_sizes": (2304, 1152), "num_blocks": (57, 29)}),
    }
)


class DiMR(ModelMixin, ConfigMixin, ConditionedNetwork):
    """Multi-resolution network with time-dependent layer norm.

    The published models at 256 pixels are ``DiMR(**DIMR_SIZES["XL/2R"])`` and ``DiMR(**DIMR_SIZES["G/2R"])``. Arguments that are
    lists have one value for each branch, the lowest resolution first.

    Args:
        sample_size: Height and width of the samples (pixels or latents).
        in_channels: Channels C of the samples.
        num_classes: Number of classes; the label ``num_classes`` is the null condition.
        class_conditional: Whether each branch of transformers has a class token; without, labels have no effect.
        class_dropout_prob: Share of the labels that training replaces by the null condition, for classifier-free guidance. At 0
            the network has no null condition. The network itself drops nothing: the training objective does.
        block_types: ``transformer`` or ``convnext``.
        hidden_sizes: Width of the blocks; of transformers a multiple of their ``num_heads``.
        mlp_sizes: Width between the layers of their MLPs.
        num_blocks: Blocks besides the middle one: half before it, half after.
        num_heads: Attention heads; read by transformers.
        kernel_sizes: Odd size of the depthwise convolutions; read by ConvNeXt.
        downsamplings: The sample is brought down by so much first, by averaging.
        patch_sizes: Height and width of a patch of that.
        final_kernel_sizes: Odd size of the convolution that ends a branch.
        dropouts: Share of what is added in a block dropped in training.
        norm: Of the blocks: ``td_rms_norm`` and ``td_layer_norm`` depend on the time; ``rms_norm`` and ``ada_rms_norm``, whose
            scale is a function of the class token, do not.
        positions: ``learned`` vectors, or ``axial_rope`` in the attention of transformers that have no class token.
        detach_lower: Keep the gradients of a branch from the branch below.
        representation_dim: Numbers D' of representations that take the place of the class (RCG, arXiv 2312.03701); None for
            classes. Labels then only tell where the null representation stands, which is the label ``num_classes``.

    Raises:
        UserError: If a size is out of range, lists are of different lengths, or sizes do not divide one another.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock", "ConvNeXtBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 4,
        num_classes: int = 1000,
        class_conditional: bool = True,
        class_dropout_prob: float = 0.1,
        block_types: Sequence[BlockType] = ("transformer", "convnext"),
        hidden_sizes: Sequence[int] = (960, 480),
        mlp_sizes: Sequence[int] = (1920, 960),
        num_blocks: Sequence[int] = (39, 20),
        num_heads: Sequence[int] = (16, 16),
        kernel_sizes: Sequence[int] = (7, 7),
        downsamplings: Sequence[int] = (1, 1),
        patch_sizes: Sequence[int] = (2, 1),
        final_kernel_sizes: Sequence[int] = (3, 3),
        dropouts: Sequence[float] = (0.0, 0.0),
        norm: NormType = "td_rms_norm",
        positions: PositionType = "learned",
        detach_lower: bool = False,
        representation_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_arguments(
            "DiMR",
            {"sample_size": sample_size, "in_channels": in_channels, "num_classes": num_classes},
            {"class_dropout_prob": class_dropout_prob},
            class_conditional,
        )
        if norm not in get_args(NormType) or positions not in get_args(PositionType):
            known = f"{', '.join(get_args(NormType))} and {', '.join(get_args(PositionType))}"
            raise UserError(f"DiMR: norm and positions must be one each of {known}, got {norm!r} and {positions!r}")
        lists: tuple[Sequence[Any], ...] = (
            block_types,
            hidden_sizes,
            mlp_sizes,
            num_blocks,
            num_heads,
            kernel_sizes,
            downsamplings,
            patch_sizes,
            final_kernel_sizes,
            dropouts,
        )
        if len({len(values) for values in lists}) > 1 or not block_types:
            counts = ", ".join(str(len(values)) for values in lists)
            raise UserError(f"DiMR: block_types, hidden_sizes, ... must have one value for each branch, got {counts} values")
        branches = [StageOptions(*values) for values in zip(*lists, strict=True)]
        if self.is_conditioned and "transformer" not in block_types:
            raise UserError(
                "DiMR: classes and representations come in as tokens of transformers, and there are none; set class_conditional "
                "to false and representation_dim to null"
            )
        if self.is_conditioned and positions == "axial_rope":
            raise UserError("DiMR: axial_rope has no place for a class token; take learned positions, or no classes")
        self.gradient_checkpointing = False
        self.stages = nn.ModuleList()
        lower: tuple[int, int] | None = None
        for options, size in zip(branches, grid_sizes(sample_size, branches), strict=True):
            stage = Stage(options, in_channels, size, norm, positions, self.make_embeddings, lower)
            self.stages.append(stage)
            lower = (stage.width, size)
        self._initialize()

    def _initialize(self) -> None:
        """Initialise as the official implementation: truncated normal linear maps and tables, the rest as torch does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, AdaptiveRMSNorm):
                nn.init.zeros_(module.linear.weight)

    @property
    def pyramid_levels(self) -> int:
        """Number of predictions, the one at the sample's own size among them."""
        return len(self.stages)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, vector: Tensor | None = None
    ) -> DenoiserOutput:
        """Predict what the formulation of training asks for, at all resolutions; officially the noise.

        Args:
            sample: (B, C, H, W) float, noised samples.
            timestep: (B,) or scalar, int or float: the formulation's ``network_time``, officially n / 1000 * 8 - 4 of the step n.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition. Ignored where the network
                is not ``class_conditional``.
            vector: (B, D') representations, of a network that has a ``representation_dim``.

        Returns:
            Predictions (B, C, H, W), with those of the lower branches in ``pyramid``.

        Raises:
            UserError: If the null condition is asked of a network that has none, or representations do not fit the network.
        """
        batch_size = len(sample)
        time = timestep.reshape(-1).expand(batch_size).to(self.dtype) / TIME_DIVISOR
        self.refuse_vector(vector)
        if self.takes_classes:
            class_labels = self.told_labels(class_labels, batch_size, sample.device)
        predictions: list[Tensor] = []
        lower: Tensor | None = None
        for stage in self.stages:
            prediction, states = stage(sample, time, class_labels, vector, lower)
            predictions.append(prediction)
            if len(predictions) < len(self.stages):
                lower = torch.cat(states, dim=-1)
                lower = lower.detach() if self.config.detach_lower else lower
        return DenoiserOutput(predictions[-1], pyramid=tuple(predictions[:-1]))


def grid_sizes(sample_size: int, branches: Sequence[StageOptions]) -> list[int]:
    """Heights and widths of the grids of all branches.

    Args:
        sample_size: Height and width of the samples.
        branches: The lowest resolution first.

    Raises:
        UserError: If the sample is not to be divided so, a grid is no multiple of the one below, or the last is not the sample's.
    """
    sizes: list[int] = []
    for branch in branches:
        reduced = branch.downsampling * branch.patch_size
        if sample_size % reduced:
            raise UserError(f"DiMR: downsamplings * patch_sizes must divide sample_size {sample_size}, got {reduced}")
        sizes.append(sample_size // reduced)
    if any(size % below for below, size in itertools.pairwise(sizes)) or sizes[-1] != sample_size:
        told = ", ".join(map(str, sizes))
        raise UserError(
            f"DiMR: sample_size / (downsamplings * patch_sizes) must grow by whole factors to {sample_size}, got {told}"
        )
    return sizes
