"""Is a GAN still healthy? A few numbers measured while it trains, and the rules that turn their history into warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from generative.core.seeding import keyed_generator
from generative.core.types import Batch, Losses
from generative.gan.sampling import draw_z
from generative.layers.spectral_norm import SpectralNorm

SATURATION_LEVEL = 0.99
"""A pixel whose absolute value, of 1 at most, is above this counts as saturated (half a step of 8 bits is 0.004)."""

LEAST_SPREAD = 1 / 255
"""Half a step of 8 bits in [-1, 1]: real images of a class that differ by less are one image, with which nothing compares."""

# The rules below look at log entries. Their numbers are this project's own.
RECENT = 5
"""Log entries that a condition must hold for: one entry alone is noise."""
BEFORE = 10
"""Log entries that must lie before those: the first of a run are not yet representative of it."""
LEAST_DIVERSITY = 0.2
"""Collapse: the share of the real images' spread within a class below which generated images are almost one image."""
GAP_GROWTH = 1.5
"""The discriminator wins: growth of the gap between its real and fake logits over the median of earlier entries."""
LEAST_GAP = 0.5
"""... and above this, in logits: a gap that grows from nothing to little wins nothing."""
GRADIENT_DECAY = 0.1
"""... while the generator's gradient falls to this share of its earlier median (or the discriminator's, where it has died)."""
SPECTRAL_GROWTH = 2.0
"""Spectral explosion: growth of the largest singular value over its median in the ``BEFORE`` entries before the recent ones."""
EXCESS_SATURATION = 0.3
"""Saturation: excess of the generated images' share of saturated pixels over the real ones'."""


def diagnose(generator: nn.Module, discriminator: nn.Module, z_dim: int, real: Batch) -> Losses:
    """Measure both networks, in eval mode and without gradients.

    Args:
        generator: ``(z, class_labels) -> images``.
        discriminator: Only its spectral norms are read.
        z_dim: Z.
        real: Some real images, several of each class.

    Returns:
        Scalars, those that can be measured: ``<network>_largest_singular_value`` and ``_smallest_`` over the layers with spectral
        norm, of the last training forward; ``diversity``, the spread of generated images within a class divided by the real
        ones' (1 is as diverse, 0 one image per class); ``saturation`` and ``real_saturation``, shares of pixels in [0, 1].
    """
    values: Losses = {}
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        norms = [module.singular_values[0] for module in network.modules() if isinstance(module, SpectralNorm)]
        if norms:
            values[f"{name}_largest_singular_value"] = torch.stack(norms).max()
            values[f"{name}_smallest_singular_value"] = torch.stack(norms).min()
    images, labels = real["images"], real["class_labels"]
    z = draw_z(len(labels), z_dim, keyed_generator("diagnosis", device=labels.device))  # the same at every entry
    fake = generator(z, labels).float()  # (B, 3, H, W)
    real_spread = spread_within_classes(images, labels)
    if real_spread > LEAST_SPREAD:
        values["diversity"] = spread_within_classes(fake, labels) / real_spread
    values["saturation"] = (fake.abs() > SATURATION_LEVEL).float().mean()
    values["real_saturation"] = (images.abs() > SATURATION_LEVEL).float().mean()
    return values


def spread_within_classes(images: Tensor, class_labels: Tensor) -> Tensor:
    """Root mean square distance of pixels from their mean over the images of one class.

    Args:
        images: (B, 3, H, W).
        class_labels: (B,).

    Returns:
        A scalar; 0 if no class has two images. Equal to the root of half the mean squared distance of two images of a class.
    """
    variances, degrees = images.new_zeros(()), 0
    for label in class_labels.unique():
        members = images[class_labels == label]  # (b, 3, H, W)
        variances = variances + (members - members.mean(0)).square().mean((1, 2, 3)).sum()
        degrees += len(members) - 1
    return (variances / max(degrees, 1)).sqrt()


def find_warnings(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Apply the rules to the newest log entries.

    Args:
        history: Entries of metrics.jsonl, oldest first.

    Returns:
        One sentence by rule, of the rules that apply now.
    """
    rules: dict[str, Callable[[Sequence[Mapping[str, Any]]], str | None]] = {
        "discriminator_wins": discriminator_wins,
        "discriminator_died": discriminator_died,
        "mode_collapse": mode_collapse,
        "generator_spectral_explosion": lambda entries: spectral_explosion(entries, "generator"),
        "discriminator_spectral_explosion": lambda entries: spectral_explosion(entries, "discriminator"),
        "saturation": saturation,
    }
    found = {name: rule(history) for name, rule in rules.items()}
    return {name: sentence for name, sentence in found.items() if sentence is not None}


def split_series(history: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> tuple[list[float], ...]:
    """Values of the entries that have them: the earlier ones and the ``RECENT`` last; both empty while they are too few."""
    series = []
    for entry in history:
        try:
            series.append(value(entry))
        except KeyError:
            continue  # an evaluation's entry, or a warning's
    return (series[:-RECENT], series[-RECENT:]) if len(series) >= BEFORE + RECENT else ([], [])


def logit_gap(entry: Mapping[str, Any]) -> float:
    """By how much a log entry's real logits are above its generated ones, on average."""
    gap: float = entry["discriminator/real_logits"] - entry["discriminator/fake_logits"]
    return gap


def discriminator_wins(history: Sequence[Mapping[str, Any]]) -> str | None:
    """The gap between real and fake logits grew while the generator's gradient vanished."""
    gaps, new_gaps = split_series(history, logit_gap)
    norms, new_norms = split_series(history, lambda entry: entry["generator/grad_norm"])
    if not gaps or not norms:
        return None
    gap, new_gap, norm, new_norm = median(gaps), median(new_gaps), median(norms), median(new_norms)
    if not (new_gap > max(GAP_GROWTH * gap, LEAST_GAP) and new_norm < GRADIENT_DECAY * norm):
        return None
    return (
        f"the discriminator is winning: its gap between real and fake logits rose from {gap:.3g} to {new_gap:.3g} while the "
        f"generator's gradient norm fell from {norm:.3g} to {new_norm:.3g}; lower the discriminator's learning rate"
    )


def discriminator_died(history: Sequence[Mapping[str, Any]]) -> str | None:
    """The discriminator tells nothing apart and its gradient has gone (dead relus before its last layer)."""
    _, gaps = split_series(history, logit_gap)
    norms, new_norms = split_series(history, lambda entry: entry["discriminator/grad_norm"])
    if not gaps or not norms:
        return None
    norm, new_norm = median(norms), median(new_norms)
    if not (max(abs(gap) for gap in gaps) < LEAST_GAP and new_norm < GRADIENT_DECAY * norm):
        return None
    return (
        f"the discriminator no longer learns: it tells real from generated images by {median(gaps):.2g} in its logits, and its "
        f"gradient norm fell from {norm:.3g} to {new_norm:.3g}; go back to an earlier checkpoint and lower its learning rate"
    )


def mode_collapse(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Generated images of a class differ far less than real ones do."""
    _, shares = split_series(history, lambda entry: entry["diagnosis/diversity"])
    if not shares or not max(shares) < LEAST_DIVERSITY:
        return None
    return (
        f"mode collapse: images generated for one class vary {shares[-1]:.2g} times as much as real ones, and less than "
        f"{LEAST_DIVERSITY} times for {RECENT} log entries; go back to an earlier checkpoint or change the learning rates"
    )


def spectral_explosion(history: Sequence[Mapping[str, Any]], network: str) -> str | None:
    """A network's largest singular value doubled, as just before BigGAN's collapses (arXiv 1809.11096, section 4.1)."""
    before, after = split_series(history, lambda entry: entry[f"diagnosis/{network}_largest_singular_value"])
    if not before or not min(after) > SPECTRAL_GROWTH * median(before[-BEFORE:]):
        return None
    return (
        f"spectral explosion: the {network}'s largest singular value rose from {median(before[-BEFORE:]):.3g} to {after[-1]:.3g} "
        f"within {RECENT + BEFORE} log entries, as before a collapse; lower the learning rates or stop at the best evaluation"
    )


def saturation(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Far more of the generated pixels are black or white than of the real ones."""
    _, excess = split_series(history, lambda entry: entry["diagnosis/saturation"] - entry["diagnosis/real_saturation"])
    if not excess or not min(excess) > EXCESS_SATURATION:
        return None
    return (
        f"saturated pixels: the share of generated pixels that are black or white is {excess[-1]:.0%} above the real images' for "
        f"{RECENT} log entries; the generator's output layer has run into its bounds, lower its learning rate"
    )
