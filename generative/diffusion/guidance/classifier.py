"""Towards a class by the gradient of a classifier of noised images (arXiv 2105.05233, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.core.errors import UserError
from generative.core.guidance import GuidanceInterval, is_inside, is_interval
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Condition, DenoiserOutput, Predict
from generative.diffusion.formulations.base import Formulation, over_image

NoisedClassifier = Callable[[Tensor, Tensor], Tensor]
"""``(sample (B, C, h, w) and time (B,) as a denoiser is told them) -> logits (B, K)``."""


@dataclass(frozen=True, kw_only=True)
class ClassifierGradient:
    """Adds scale x the gradient of log p(y | x_t) to the score; goes on top of any other guidance.

    The gradient is handed on in ``DenoiserOutput.gradient``: the ancestral sampler moves its mean by variance x gradient
    (algorithm 1), DDIM the noise (algorithm 2), others the score.

    Attributes:
        classifier: Of noised samples, trained under the same formulation.
        scale: Factor on the gradient; 0 is none and runs no classifier.
        interval: Noise levels at which it acts; None for all.

    Raises:
        UserError: If the scale is negative or the interval not within [0, 1].
    """

    classifier: NoisedClassifier
    scale: float = 1.0
    interval: GuidanceInterval | None = None

    def __post_init__(self) -> None:
        if self.interval is not None and not is_interval(self.interval):
            raise UserError(f"classifier_interval must be two numbers with 0 <= low < high <= 1, got {self.interval!r}")
        if not 0 <= self.scale < float("inf"):
            raise UserError(f"classifier_scale must be 0 or more, got {self.scale}")

    def wrap(self, predict: Predict, condition: Condition, formulation: Formulation) -> Predict:
        """A prediction whose output carries the gradient."""

        def guided(state: SampleState, time: Tensor) -> DenoiserOutput:
            output = predict(state, time)
            scale = self.scale_at(time, formulation, state.sample)
            if not isinstance(scale, Tensor) and scale == 0:
                return output
            gradient = scale * log_probability_gradient(self.classifier, state.sample, time, condition.class_labels, formulation)
            return replace(output, gradient=gradient if output.gradient is None else output.gradient + gradient)

        return guided

    def scale_at(self, time: Tensor, formulation: Formulation, like: Tensor) -> float | Tensor:
        """Scale at a time, as ``Extrapolation.scale_at``; 0 where it does not act."""
        if self.interval is None or self.scale == 0:
            return self.scale
        levels = formulation.noise_level(time.reshape(-1).double()).tolist()
        scales = [self.scale if is_inside(self.interval, level) else 0.0 for level in levels]
        return scales[0] if len(set(scales)) == 1 else over_image(torch.tensor(scales), like)


def log_probability_gradient(
    classifier: NoisedClassifier, sample: Tensor, time: Tensor, class_labels: Tensor, formulation: Formulation
) -> Tensor:
    """Gradient of log p(class_labels | sample) by the sample, each image's by itself alone.

    Args:
        classifier: Runs in its own precision; the softmax and the gradient are float32.
        sample: (B, C, h, w) x_t, before the formulation scales it for a network.
        time: One element, or (B,), in the formulation's unit.
        class_labels: (B,) int64.
        formulation: What the classifier was trained under.

    Returns:
        (B, C, h, w) of the sample's dtype.
    """
    dtype = getattr(classifier, "dtype", torch.float32)
    with torch.enable_grad():
        at = sample.detach().float().requires_grad_()
        scaled, told = formulation.network_input(at, time)
        told = told.to(sample.device, non_blocking=sample.is_cuda).reshape(-1).expand(len(sample))
        logits = classifier(scaled.to(dtype), told)
        chosen = F.log_softmax(logits.float(), dim=-1).gather(1, class_labels[:, None])
        (gradient,) = torch.autograd.grad(chosen.sum(), at)
    return gradient.to(sample.dtype)
