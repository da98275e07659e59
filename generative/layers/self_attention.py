"""Self-attention over the positions of a feature map, as GANs use it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError

# Channels of keys and of values as a share of the input's, from the SAGAN authors' released code (the paper prints C/8 for both).
KEY_DIVISOR = 8
VALUE_DIVISOR = 2


class ConvLayer(Protocol):
    """Makes a convolution that keeps the size; plain or spectrally normalised."""

    def __call__(self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True) -> nn.Module:
        """Make it."""


class SelfAttention2d(nn.Module):
    """Non-local block of SAGAN (arXiv 1805.08318, eq. 1-3, with the pooling of the authors' code).

    Queries at every position attend to keys and values max-pooled 2x2, without a 1/sqrt(d) scale. The result is added with a
    learned weight that starts at 0.

    Args:
        num_channels: C, at least 8.
        conv_layer: Makes its 1x1 convolutions.
    """

    def __init__(self, num_channels: int, conv_layer: ConvLayer) -> None:
        super().__init__()
        if num_channels < KEY_DIVISOR:
            raise UserError(
                f"self-attention needs at least {KEY_DIVISOR} channels, got {num_channels}; "
                "raise channels or move attention_resolutions"
            )
        self.query = conv_layer(num_channels, num_channels // KEY_DIVISOR, kernel_size=1, bias=False)
        self.key = conv_layer(num_channels, num_channels // KEY_DIVISOR, kernel_size=1, bias=False)
        self.value = conv_layer(num_channels, num_channels // VALUE_DIVISOR, kernel_size=1, bias=False)
        self.out = conv_layer(num_channels // VALUE_DIVISOR, num_channels, kernel_size=1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, sample: Tensor) -> Tensor:
        """Attend.

        Args:
            sample: (B, C, H, W), H and W at least 2.

        Returns:
            (B, C, H, W).
        """
        height, width = sample.shape[2:]
        query = self.query(sample).flatten(2)  # (B, C/8, HW)
        key = F.max_pool2d(self.key(sample), 2).flatten(2)  # (B, C/8, HW/4)
        value = F.max_pool2d(self.value(sample), 2).flatten(2)  # (B, C/2, HW/4)
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)  # (B, HW, HW/4)
        # Positions before channels: gradients of the large map of weights then come in its own layout, and the result is
        # channels-last memory.
        attended = (weights.to(value.dtype) @ value.transpose(1, 2)).transpose(1, 2)  # (B, C/2, HW)
        out = self.out(attended.unflatten(2, (height, width)))  # (B, C, H, W)
        return torch.addcmul(sample, self.gamma.to(out.dtype), out)


def attention_after(
    stages: Sequence[int], widths: Sequence[int], attention_resolutions: Collection[int], conv_layer: ConvLayer
) -> nn.ModuleDict:
    """Self-attention layers of a network, each to run after one of its blocks.

    Args:
        stages: Height and width of the map that each block puts out, in pixels.
        widths: Channels that each block puts out, as many numbers as ``stages``.
        attention_resolutions: Sizes out of ``stages`` that are attended to, after every block that puts one out.
        conv_layer: Makes their 1x1 convolutions.

    Returns:
        Layers by the number of their block, from "0", in the blocks' order.

    Raises:
        UserError: If there are too few channels.
    """
    return nn.ModuleDict(
        {
            str(index): SelfAttention2d(width, conv_layer)
            for index, (size, width) in enumerate(zip(stages, widths, strict=True))
            if size in attention_resolutions
        }
    )
