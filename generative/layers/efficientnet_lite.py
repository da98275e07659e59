"""EfficientNet-Lite0 (arXiv 1905.11946, Lite variant) as a frozen pyramid of four feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.checkpointing import BlockSequence

BATCH_NORM_EPS = 1e-3  # of TensorFlow's EfficientNets
TENSORS_PER_CONV = 6  # weight, and scale, shift, mean, variance and counter of its batch norm
STEM_CHANNELS = 32


class Stage(NamedTuple):
    """One row of the network's table: ``repeats`` blocks, the first of which has the stride."""

    kernel_size: int
    stride: int
    expansion: int
    channels: int
    repeats: int


# EfficientNet-B0's table (arXiv 1905.11946, table 1), which the Lite variant keeps, without squeeze-and-excitation.
STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
# Projected GAN reads the maps after these stages: at 1/4, 1/8, 1/16 and 1/32 of the image's size.
TAPPED_STAGES = (1, 2, 4, 6)
PYRAMID_CHANNELS = tuple(STAGES[index].channels for index in TAPPED_STAGES)
TOTAL_STRIDE = 32


class FrozenConv2d(nn.Module):
    """Convolution that never trains: weight and bias are buffers, which no optimizer and no phase of training can reach.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Odd height and width of the kernel.
        stride: Step of the kernel. Beyond 1, zeros lie around the map as TensorFlow's "SAME" has them: fewer before, more after.
        groups: Number of channel groups.
    """

    has_frozen_buffers = True  # the trainer leaves them alone: see generative.core.step.average_buffers
    weight: Tensor
    bias: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        start = nn.Conv2d(in_channels, out_channels, kernel_size, groups=groups)  # a convolution's default initialisation
        assert start.bias is not None
        self.register_buffer("weight", start.weight.detach().clone())
        self.register_buffer("bias", start.bias.detach().clone())
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = groups

    def forward(self, sample: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        padding = self.kernel_size // 2
        if self.stride > 1:
            edges = []
            for size in (sample.shape[3], sample.shape[2]):  # F.pad starts at the last axis
                total = max((-(-size // self.stride) - 1) * self.stride + self.kernel_size - size, 0)
                edges += [total // 2, total - total // 2]
            sample, padding = F.pad(sample, edges), 0
        if self.groups > 1 and self.stride > 1 and sample.device.type == "cpu":
            # oneDNN's bfloat16 gradient of a strided filter of single channels is 10 to 25 times slower than its float32 one.
            with torch.autocast("cpu", enabled=False):
                filtered = F.conv2d(sample.float(), self.weight, self.bias, self.stride, padding, groups=self.groups)
            return filtered.to(sample.dtype)
        return F.conv2d(sample, self.weight, self.bias, self.stride, padding, groups=self.groups)

    def extra_repr(self) -> str:
        """Show the shape."""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, groups={self.groups}"


class LiteBlock(nn.Module):
    """Inverted residual: widen (1x1), filter each channel, narrow (1x1); a shortcut where the shape allows.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Of the filter.
        stride: Of the filter.
        expansion: Widening factor; 1 leaves the first convolution out.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        convs = [FrozenConv2d(in_channels, width)] if expansion > 1 else []
        convs += [FrozenConv2d(width, width, kernel_size, stride, groups=width), FrozenConv2d(width, out_channels)]
        self.convs = nn.ModuleList(convs)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        hidden = sample
        for conv in self.convs[:-1]:
            hidden = F.relu6(conv(hidden))
        hidden = self.convs[-1](hidden)
        return hidden + sample if self.has_shortcut else hidden


class EfficientNetLite0Pyramid(nn.Module):
    """EfficientNet-Lite0 without its classifier, batch norms folded into the convolutions, every weight a buffer.

    It starts with random weights; ``load_backbone`` fills it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = FrozenConv2d(3, STEM_CHANNELS, 3, stride=2)
        stages, width = [], STEM_CHANNELS
        for stage in STAGES:
            blocks = []
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                blocks.append(LiteBlock(width, stage.channels, stage.kernel_size, stride, stage.expansion))
                width = stage.channels
            stages.append(BlockSequence(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the pyramid.

        Args:
            images: (B, 3, H, W) in [-1, 1], which is what the network was trained on.

        Returns:
            Four maps (B, C, H / S, W / S) for S = 4, 8, 16, 32, of 24, 40, 112 and 320 channels.
        """
        hidden = F.relu6(self.stem(images.contiguous(memory_format=torch.channels_last)))  # (B, 32, H/2, W/2)
        maps = []
        for index, stage in enumerate(self.stages):
            hidden = stage(hidden)
            if index in TAPPED_STAGES:
                maps.append(hidden)
        return maps

    def conv_names(self) -> list[str]:
        """Names of its convolutions in the order in which they run."""
        return [name for name, module in self.named_modules() if isinstance(module, FrozenConv2d)]


def fold_tensors(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Fold batch norms into the convolutions before them.

    Args:
        names: Our names of N convolutions.
        tensors: 6 N tensors: for each convolution its weight, then scale, shift, mean, variance and step counter of its norm.

    Returns:
        Weights and biases by our names.
    """
    from metrics.extractors.base import fold_batch_norm

    folded = {}
    for index, name in enumerate(names):
        first = index * TENSORS_PER_CONV
        weight, gamma, beta, mean, variance = tensors[first : first + TENSORS_PER_CONV - 1]
        folded[f"{name}.weight"], folded[f"{name}.bias"] = fold_batch_norm(weight, gamma, beta, mean, variance, BATCH_NORM_EPS)
    return folded


def load_backbone(backbone: EfficientNetLite0Pyramid, state: Mapping[str, Tensor]) -> None:
    """Fill the network with the weights of an EfficientNet-Lite0 classifier.

    Args:
        backbone: Changed in place.
        state: Tensors in the order of timm's ``tf_efficientnet_lite0`` under any names; the classifier's at the end are left out.

    Raises:
        UserError: If they are another network's.
    """
    names, tensors = backbone.conv_names(), list(state.values())
    num_needed = len(names) * TENSORS_PER_CONV
    if len(tensors) < num_needed:
        raise UserError(f"backbone weights hold {len(tensors)} tensors, efficientnet-lite0 has at least {num_needed}")
    ours = backbone.state_dict()
    for index, name in enumerate(names):
        expected, shape = ours[f"{name}.weight"].shape, tensors[index * TENSORS_PER_CONV].shape
        if shape != expected:
            raise UserError(
                f"backbone weights have shape {tuple(shape)} where efficientnet-lite0 needs {tuple(expected)} ({name})"
            )
    backbone.load_state_dict(fold_tensors(names, tensors))
