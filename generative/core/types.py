"""Names for what flows through the core, and the legend of dimensions used in every shape comment.

Dimension legend: B batch, C channels, H W pixels, h w latent height and width, L tokens, V codes (vocabulary), Z noise width,
D features, K guidance branches (conditional, null, ...), N M samples, T diffusion timesteps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor, nn


class Batch(TypedDict, total=False):
    """One micro-batch of training data on the accelerator's device.

    Attributes:
        images: (B, 3, H, W) float32 in [-1, 1]; of a data set uint8, until ``generative.data.finish.finish_batch``.
        mirrored: (B,) bool, which of a data set's uint8 images are still to be mirrored; objectives never see it.
        latents: (B, C, h, w) floating point, cached; replaces ``images``, or stands beside those of the same views.
        latent_std: (B, C, h, w) likewise: ``latents`` are means then, and this is their standard deviation.
        tokens: (B, L) int64, cached likewise.
        representations: (B, D) float32 of the images, cached, beside any of these.
        class_labels: (B,) int64 in [0, num_classes).
        sizes: (B, 2) int64 height and width in tokens, where images are of several sizes: ``images`` is then (B, 3, N, q^2).
        packing: (R, L) int64, how those share rows of tokens.
    """

    images: Tensor
    mirrored: Tensor
    latents: Tensor
    latent_std: Tensor
    tokens: Tensor
    representations: Tensor
    class_labels: Tensor
    sizes: Tensor
    packing: Tensor


Losses = dict[str, Tensor]
"""Scalar tensors by name. ``"loss"`` is differentiated; all are logged as ``phase/name``. With the optional key
``"denominator"`` (number of masked tokens, say) ``"loss"`` is a SUM over that many terms, and the trainer divides gradients by
denominators summed over micro-batches and processes, so that a masked mean accumulates exactly."""

Networks = Mapping[str, nn.Module]
"""The networks of an objective by name, for example ``{"generator": ..., "discriminator": ...}``."""


@dataclass(frozen=True)
class StepContext:
    """Where a run is and what it draws from, for the loss of one phase on one micro-batch.

    Attributes:
        step: Training steps done before this one.
        images_seen: Training images drawn before this step.
        generator: On the batch's device; keyed by (seed, step, phase, repeat, slot): no draw depends on how a batch is split.
        cache: Lives for one micro-batch of one step and is shared by its phases (a tokenizer reconstructs once for all).
    """

    step: int
    images_seen: int
    generator: torch.Generator
    cache: dict[str, Any] = field(default_factory=dict)
