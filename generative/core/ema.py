"""Exponential moving averages of networks, buffers included, with the decay profiles of the field."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from generative.core.errors import UserError
from generative.core.tensor_parts import local_part

DEFAULT_EXPONENT = 6.94
MAX_STD = math.sqrt(1 / 12)
"""Relative standard deviation of the flat profile, exponent 0: longer than the mean of all weights there is none."""


class EMAProfile(abc.ABC):
    """Decay of an average: how much of the old average a step keeps."""

    @abc.abstractmethod
    def decay(self, images_seen: int, batch_size: int) -> float:
        """Decay of the step that ends at ``images_seen`` images (its own batch counted).

        Returns:
            beta in [0, 1] of ``average = beta * average + (1 - beta) * weights``; 0 copies.
        """

    @property
    def label(self) -> str:
        """What tells it from other profiles of a network, in a folder's name: ``std-0.05``."""
        return type(self).__name__.lower()


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

    @property
    def label(self) -> str:
        """The half-life in images."""
        return f"halflife-{self.halflife_images:.12g}"


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

    @property
    def label(self) -> str:
        """The rate."""
        return f"rate-{self.rate:.12g}"


class PowerEMA(EMAProfile):
    """Power-function average of EDM2 (arXiv 2312.02696, eq. 121 and 123): its length is a share of the training so far.

    Two of them, kept as snapshots, let averages of any length be made after training (``generative.core.posthoc_ema``).

    Args:
        exponent: gamma of the profile ``t ** gamma``; 16.97 is a relative standard deviation of 0.05.
        std: Relative standard deviation sigma_rel of the profile, in (0, 0.2887), in the exponent's place (EDM2: 0.05 and 0.10).
            With neither, the exponent is 6.94.

    Raises:
        UserError: If both are given, or one is out of range.
    """

    def __init__(self, exponent: float | None = None, std: float | None = None) -> None:
        if exponent is not None and std is not None:
            raise UserError(f"PowerEMA takes an exponent or a std, got exponent {exponent} and std {std}; give one of them")
        if exponent is not None and not 0 < exponent < math.inf:
            raise UserError(f"PowerEMA exponent must be positive, got {exponent}")
        if std is not None:
            self.exponent = std_to_exponent(std)
        else:
            self.exponent = DEFAULT_EXPONENT if exponent is None else exponent
        self.std = exponent_to_std(self.exponent) if std is None else std

    def decay(self, images_seen: int, batch_size: int) -> float:
        """(1 - batch / t) ** (gamma + 1), t the images seen with this batch."""
        return float((1 - batch_size / images_seen) ** (self.exponent + 1))

    @property
    def label(self) -> str:
        """The relative standard deviation."""
        return f"std-{self.std:.4g}"


def exponent_to_std(exponent: float) -> float:
    """Relative standard deviation of a power-function profile (arXiv 2312.02696, eq. 126).

    Args:
        exponent: gamma, 0 or more.
    """
    return math.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3)))


def std_to_exponent(std: float) -> float:
    """Exponent of the power-function profile of a relative standard deviation: the largest root of a cubic (eq. 127).

    Args:
        std: sigma_rel.

    Raises:
        UserError: If no profile that grows with time has it.
    """
    if not 0 < std < MAX_STD:
        raise UserError(f"the std of a power-function average must be above 0 and below {MAX_STD:.4f}, got {std}")
    inverse = std**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


EMAProfiles = EMAProfile | list[EMAProfile]
"""One average of a network or several, of which the first is the one that samples; in YAML a class, or a list of them."""


@dataclass(frozen=True)
class EMASpec:
    """One average of one network.

    Attributes:
        network: Name of the network it follows.
        profile: Its decay profile.
        buffers: ``copy`` takes the network's buffers as they are; ``average`` averages the floating-point ones too (BigGAN: batch
            norm statistics and spectral vectors). Integer buffers are always copied.
    """

    network: str
    profile: EMAProfile
    buffers: Literal["copy", "average"] = "copy"


def average_specs(network: str, profiles: EMAProfiles | None, buffers: Literal["copy", "average"] = "copy") -> dict[str, EMASpec]:
    """Averages of one network by name.

    The first, which samples, is named like the network; others by their profile as well, ``denoiser-std-0.1``.

    Args:
        network: Name of the network.
        profiles: Its averages; None for none.
        buffers: See ``EMASpec``.

    Raises:
        UserError: If two are of the same profile, or a list is empty.
    """
    if profiles is None:
        return {}
    several: Sequence[EMAProfile] = profiles if isinstance(profiles, Sequence) else [profiles]
    labels = [profile.label for profile in several]
    if not several:
        raise UserError(f"ema of '{network}' is an empty list; name the averages to keep, or give null for none")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"ema of '{network}' lists {twice[0]} twice; name each average once")
    names = [network, *(f"{network}-{label}" for label in labels[1:])]
    return {name: EMASpec(network, profile, buffers) for name, profile in zip(names, several, strict=True)}


def start_average(network: nn.Module) -> nn.Module:
    """Copy a network as the start of its average: same weights, frozen, eval mode."""
    average = copy.deepcopy(network)
    average.requires_grad_(False)
    return average.eval()


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, beta: float, buffers: Literal["copy", "average"]) -> None:
    """Move an average towards its network: ``average = beta * average + (1 - beta) * network``."""
    ours, theirs = ([local_part(p.data) for p in each.parameters()] for each in (average, network))
    for mine, current in zip(average.buffers(), network.buffers(), strict=True):
        if buffers == "average" and mine.is_floating_point():
            ours.append(mine)
            theirs.append(current)
        else:
            mine.copy_(current)
    if ours:
        torch._foreach_lerp_(ours, theirs, 1 - beta)
