"""Exponential moving averages of networks, buffers included, with the decay laws of the field."""

from __future__ import annotations

import abc
import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from generative.core.errors import UserError


class EMAProfile(abc.ABC):
    """Decay of an average: how much of the old average a step keeps."""

    @abc.abstractmethod
    def decay(self, images_seen: int, batch_size: int) -> float:
        """Decay of the step that ends at ``images_seen`` images (its own batch counted).

        Returns:
            beta in [0, 1] of ``average = beta * average + (1 - beta) * weights``; 0 copies.
        """


class HalfLifeEMA(EMAProfile):
    """Half-life counted in images, shorter at first (StyleGAN, EDM, Projected GAN).

    Args:
        halflife_images: Images after which a weight's share in the average has halved.
        rampup_ratio: Warm-up: the half-life is at most this share of the images seen. None for no warm-up.
    """

    def __init__(self, halflife_images: float, rampup_ratio: float | None = 0.05) -> None:
        if halflife_images <= 0:
            raise UserError(f"halflife_images must be positive, got {halflife_images}")
        if rampup_ratio is not None and rampup_ratio <= 0:
            raise UserError(f"rampup_ratio must be positive, or null for no warm-up, got {rampup_ratio}")
        self.halflife_images = halflife_images
        self.rampup_ratio = rampup_ratio

    def decay(self, images_seen: int, batch_size: int) -> float:
        """0.5 ** (batch / half-life)."""
        halflife = self.halflife_images
        if self.rampup_ratio is not None:
            halflife = min(halflife, images_seen * self.rampup_ratio)
        return 0.5 ** (batch_size / max(halflife, 1e-8))


class ConstantEMA(EMAProfile):
    """Constant decay per step (DiT, ADM, BigGAN).

    Args:
        rate: Decay per step, 0.9999 in most papers.
        start_images: Plain copy until so many images were seen (BigGAN: 2,000 or 20,000 steps).
        warmup: Limit the decay to (1 + n) / (10 + n) after n steps (TensorFlow, RCG).
    """

    def __init__(self, rate: float = 0.9999, start_images: int = 0, warmup: bool = True) -> None:
        if not 0 <= rate < 1:
            raise UserError(f"EMA rate must be in [0, 1), got {rate}")
        self.rate = rate
        self.start_images = start_images
        self.warmup = warmup

    def decay(self, images_seen: int, batch_size: int) -> float:
        """The rate, 0 before the start, less during warm-up."""
        if images_seen <= self.start_images:
            return 0.0
        steps = (images_seen - self.start_images) / batch_size
        return min(self.rate, (1 + steps) / (10 + steps)) if self.warmup else self.rate


class PowerEMA(EMAProfile):
    """Power-function average of EDM2 (arXiv 2312.02696, eq. 121 and 123).

    Args:
        exponent: gamma; 16.97 is a relative standard deviation of 0.05, 6.94 one of 0.10.
    """

    def __init__(self, exponent: float = 6.94) -> None:
        if exponent <= 0:
            raise UserError(f"PowerEMA exponent must be positive, got {exponent}")
        self.exponent = exponent

    def decay(self, images_seen: int, batch_size: int) -> float:
        """(1 - batch / t) ** (gamma + 1), t the images seen with this batch."""
        return (1 - batch_size / images_seen) ** (self.exponent + 1)


@dataclass(frozen=True)
class EMASpec:
    """One average of one network.

    Attributes:
        network: Name of the network it follows.
        profile: Its decay law.
        buffers: ``copy`` takes the network's buffers as they are; ``average`` averages the floating-point ones too (BigGAN: batch
            norm statistics and spectral vectors). Integer buffers are always copied.
    """

    network: str
    profile: EMAProfile
    buffers: Literal["copy", "average"] = "copy"


def start_average(network: nn.Module) -> nn.Module:
    """Copy a network as the start of its average: same weights, frozen, eval mode."""
    average = copy.deepcopy(network)
    average.requires_grad_(False)
    return average.eval()


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, beta: float, buffers: Literal["copy", "average"]) -> None:
    """Move an average towards its network: ``average = beta * average + (1 - beta) * network``."""
    ours, theirs = [p.data for p in average.parameters()], [p.data for p in network.parameters()]
    for mine, current in zip(average.buffers(), network.buffers(), strict=True):
        if buffers == "average" and mine.is_floating_point():
            ours.append(mine)
            theirs.append(current)
        else:
            mine.copy_(current)
    if ours:
        torch._foreach_lerp_(ours, theirs, 1 - beta)
