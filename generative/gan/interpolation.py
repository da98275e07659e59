"""Paths between points of a generator's input: noise along a great circle or a line, classes along mixtures."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.core.errors import UserError

InterpolationPath = Literal["spherical", "linear"]

MIN_SINE = 1e-6
"""Below this sine of the angle between two vectors their great circle is not determined, or its formula divides by almost
nothing: the straight line is taken, which for equal directions is its limit."""


def frame_weights(num_frames: int) -> Tensor:
    """Positions of frames on a path, both ends among them.

    Args:
        num_frames: F, at least 2.

    Returns:
        (F,) float64, from 0 to 1 in equal steps.

    Raises:
        UserError: If there are fewer than two frames.
    """
    if num_frames < 2:
        raise UserError(f"an interpolation has at least 2 frames, its two ends, got {num_frames}")
    return torch.linspace(0, 1, num_frames, dtype=torch.float64)


def linear(start: Tensor, end: Tensor, weights: Tensor) -> Tensor:
    """Straight line (1 - w) start + w end.

    Args:
        start: (B, ...) floating point.
        end: The same shape.
        weights: (F,) in [0, 1].

    Returns:
        (B, F, ...) in the dtype of ``start``.
    """
    steps = weights.double().to(start.device).reshape(-1, *[1] * (start.ndim - 1))  # (F, 1, ...)
    return ((1 - steps) * start[:, None].double() + steps * end[:, None].double()).to(start.dtype)  # (B, F, ...)


def spherical(start: Tensor, end: Tensor, weights: Tensor) -> Tensor:
    """Great circle sin((1 - w) a) / sin(a) start + sin(w a) / sin(a) end, a being the angle between the two (arXiv 1609.04468).

    Normal noise of many dimensions lies close to a sphere, and a straight line cuts through its inside, where a generator was
    never trained. The ends are kept as they are, whatever their lengths.

    Args:
        start: (B, ...) floating point; each item is one vector.
        end: The same shape.
        weights: (F,) in [0, 1].

    Returns:
        (B, F, ...) in the dtype of ``start``.
    """
    first, last = start.flatten(1).double(), end.flatten(1).double()  # (B, D)
    angle = torch.acos(F.cosine_similarity(first, last).clamp(-1, 1))[:, None]  # (B, 1)
    steps = weights.double().to(start.device)[None]  # (1, F)
    sine = torch.sin(angle)
    shares = torch.sin((1 - steps) * angle) / sine, torch.sin(steps * angle) / sine  # (B, F)
    circle = shares[0][:, :, None] * first[:, None] + shares[1][:, :, None] * last[:, None]  # (B, F, D)
    line = linear(first, last, weights)
    path = torch.where((sine > MIN_SINE)[:, :, None], circle, line)  # (B, F, D)
    return path.unflatten(2, start.shape[1:]).to(start.dtype)


def interpolate(start: Tensor, end: Tensor, weights: Tensor, path: InterpolationPath = "spherical") -> Tensor:
    """Points between two tensors along a path named; see ``spherical`` and ``linear``.

    Raises:
        UserError: If there is no such path.
    """
    if path not in get_args(InterpolationPath):
        raise UserError(f"path must be one of {', '.join(get_args(InterpolationPath))}, got {path!r}")
    return (spherical if path == "spherical" else linear)(start, end, weights)


def class_weights(class_labels: Tensor, num_classes: int) -> Tensor:
    """Class labels as weights of a mixture.

    Args:
        class_labels: (B,) int64 labels, or (B, num_classes) weights, which are returned as they are.
        num_classes: Number of classes.

    Returns:
        (B, num_classes) floating point, rows summing to 1.
    """
    return class_labels if class_labels.is_floating_point() else F.one_hot(class_labels, num_classes).float()


def mix_classes(start: Tensor, end: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Mixtures between two classes.

    Args:
        start: (B,) int64 labels, or (B, num_classes) weights.
        end: Likewise.
        weights: (F,) in [0, 1], the share of the end.

    Returns:
        (B, F, num_classes) floating point, rows summing to 1.
    """
    return linear(class_weights(start, num_classes), class_weights(end, num_classes), weights)
