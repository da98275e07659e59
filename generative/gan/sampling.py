"""Noise for generators, and batch-norm statistics under it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.seeding import ImageNoise
from generative.layers.batch_norm import BatchNorm2d, recompute_statistics

TruncationLaw = Literal["truncated", "scaled_truncated", "scaled"]
"""What a truncation t does to standard normal noise. Without one (None) the noise is standard normal under each distribution.

- ``truncated``: normal numbers, those beyond +-t drawn again (arXiv 1809.11096, section 3.1).
- ``scaled_truncated``: t times normal numbers truncated at +-2, the distribution of BigGAN's TF-Hub modules and of
  pytorch-pretrained-biggan's ``truncated_noise_sample``.
- ``scaled``: t times normal numbers, ``z_var`` of BigGAN-PyTorch, which is a standard deviation whatever its name says.
"""

TF_HUB_THRESHOLD = 2.0
"""Where TF-Hub's BigGAN truncates before it scales, in standard deviations."""


def check_truncation(truncation: float | None) -> None:
    """Raise ``UserError`` unless a truncation threshold is None or positive."""
    if truncation is not None and not (isinstance(truncation, (int, float)) and truncation > 0):
        raise UserError(f"truncation must be a positive threshold, or None for no truncation, got {truncation!r}")


def truncated_normal(uniform: Tensor, threshold: float) -> Tensor:
    """Standard normal numbers truncated to [-threshold, threshold], by inverse CDF.

    Equal in distribution to redrawing every value beyond the threshold (the truncation trick, arXiv 1809.11096, section 3.1), but
    each number costs exactly one draw.

    Args:
        uniform: Uniform numbers in [0, 1), any shape.
        threshold: Positive.

    Returns:
        The same shape and dtype.
    """
    reach = math.erf(threshold / math.sqrt(2))  # probability of |z| <= threshold
    values = math.sqrt(2) * torch.erfinv((2 * uniform.double() - 1) * reach)
    return values.clamp(-threshold, threshold).to(uniform.dtype)  # a uniform of exactly 0 may reach infinity


def check_truncation_law(law: str) -> None:
    """Raise ``UserError`` unless a name is one of ``TruncationLaw``."""
    if law not in get_args(TruncationLaw):
        raise UserError(f"truncation_law must be one of {', '.join(get_args(TruncationLaw))}, got {law!r}")


def _draw(
    randn: Callable[[], Tensor], rand: Callable[[], Tensor], truncation: float | None, distribution: TruncationLaw
) -> Tensor:
    """Draw float32 noise from whichever source, normal or uniform, the distribution takes."""
    if truncation is None:
        return randn()
    if distribution == "scaled":
        return truncation * randn()
    if distribution == "scaled_truncated":
        return truncation * truncated_normal(rand(), TF_HUB_THRESHOLD)
    return truncated_normal(rand(), truncation)


def draw_z(
    batch_size: int,
    z_dim: int,
    generator: torch.Generator,
    truncation: float | None = None,
    law: TruncationLaw = "truncated",
) -> Tensor:
    """Noise of a training batch, from one stream.

    Args:
        batch_size: B.
        z_dim: Z.
        generator: Its device is the result's.
        truncation: Threshold or scale, or None.
        law: Distribution of the truncated noise.

    Returns:
        (B, Z) float32.
    """
    options: dict[str, Any] = {"size": (batch_size, z_dim), "generator": generator, "device": generator.device}
    return _draw(lambda: torch.randn(**options), lambda: torch.rand(**options), truncation, law)


def image_z(noise: ImageNoise, z_dim: int, truncation: float | None = None, law: TruncationLaw = "truncated") -> Tensor:
    """Noise of images to sample, each row from its image's own stream.

    Args:
        noise: One stream per image.
        z_dim: Z.
        truncation: Threshold or scale, or None.
        law: Distribution of the truncated noise.

    Returns:
        (B, Z) float32.
    """
    return _draw(lambda: noise.randn(z_dim), lambda: noise.rand(z_dim), truncation, law)


def noise_shapes(network: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Shapes of the noise maps that a generator injects into one image; none for most generators."""
    return tuple(tuple(shape) for shape in getattr(network, "noise_shapes", ()))


def has_truncated_statistics(network: nn.Module) -> bool:
    """Whether a generator keeps batch-norm statistics for several truncations, and must be told which it samples under."""
    return int(getattr(network, "num_statistics", 1)) > 1


def generator_options(network: nn.Module, noise: Sequence[Tensor], truncation: float | None) -> dict[str, Any]:
    """Keyword arguments of a generator beyond noise vector and classes: those that this one takes.

    Args:
        network: The generator.
        noise: Its noise maps, each (B, 1, h, w); empty for a generator that injects none.
        truncation: What the noise vector was drawn with.
    """
    options: dict[str, Any] = {}
    if noise_shapes(network):
        options["noise"] = list(noise)
    if has_truncated_statistics(network):
        options["truncation"] = truncation
    return options


def take_standing_statistics(
    network: nn.Module,
    num_batches: int,
    batch_size: int,
    generator: torch.Generator,
    truncation: float | None = None,
    law: TruncationLaw = "truncated",
) -> None:
    """Take a generator's batch-norm statistics anew under the noise that it is to sample with (arXiv 1809.11096, appendix).

    Classes are drawn uniformly.

    Args:
        network: The generator, changed in place; ends in eval mode.
        num_batches: Batches to average over; the paper takes 100.
        batch_size: Images in each.
        generator: Source of all draws.
        truncation: Threshold or scale of the noise, or None.
        law: Distribution of the truncated noise.

    Raises:
        UserError: If the network has no batch norm, or keeps statistics for several truncations already.
    """
    if has_truncated_statistics(network):
        raise UserError(
            f"{type(network).__name__} brings batch-norm statistics for each truncation, none are to be taken anew; "
            "leave standing statistics out"
        )
    if not any(isinstance(module, BatchNorm2d) for module in network.modules()):
        raise UserError(f"{type(network).__name__} has no batch norm to take statistics of; leave standing statistics out")
    device = next(network.parameters()).device

    def forward() -> None:
        z = draw_z(batch_size, network.z_dim, generator, truncation, law)  # type: ignore[arg-type]
        place = generator.device
        labels = torch.randint(network.num_classes, (batch_size,), generator=generator, device=place)  # type: ignore[call-overload]
        shapes = [(batch_size, *shape) for shape in noise_shapes(network)]
        maps = [torch.randn(shape, generator=generator, device=place).to(device) for shape in shapes]
        network(z.to(device), labels.to(device), **generator_options(network, maps, truncation))

    recompute_statistics(network, forward, num_batches)
