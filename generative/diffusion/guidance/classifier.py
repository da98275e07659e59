"""Towards a class by the gradient of a classifier of noised images (arXiv 2105.05233, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.core.errors import UserError
from generative.core.guidance import GuidanceInterval, check_guidance, is_inside
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Condition, DenoiserOutput, Predict
from generative.diffusion.formulations.base import Formulation

NoisedClassifier = Callable[[Tensor, Tensor], Tensor]
"""``(sample (B, C, h, w), what a network is told of time (B,)) -> logits (B, K)``."""


@dataclass(frozen=True, kw_only=True)
class ClassifierGradient:
    """Adds scale x the gradient of log p(y | x_t) to the score; goes on top of any other guidance.

    The gradient is handed on in ``DenoiserOutput.gradient``: the ancestral sampler moves its mean by variance x gradient
    (algorithm 1), DDIM the noise (algorithm 2), others the score.

    Attributes:
        classifier: Of noised samples, trained under the same formulation.
        scale: Factor on the gradient; 0 is none and runs no classifier.
        interval: Noise levels at which it acts; None for all.
    """

    classifier: NoisedClassifier
    scale: float = 1.0
    interval: GuidanceInterval | None = None

    def __post_init__(self) -> None:
        check_guidance(1.0, interval=self.interval)
        if not self.scale >= 0:
            raise UserError(f"classifier_scale must be 0 or more, got {self.scale}")

    def wrap(self, predict: Predict, condition: Condition, formulation: Formulation) -> Predict:
        """A prediction whose output carries the gradient."""

        def guided(state: SampleState, time: Tensor) -> DenoiserOutput:
            output = predict(state, time)
            level = float(formulation.noise_level(time.reshape(-1)[0].double())) if self.interval else 0.0
            if self.scale == 0 or not is_inside(self.interval, level):
                return output
            told = formulation.network_time(time).to(state.sample.device).reshape(-1).expand(len(state.sample))
            gradient = self.scale * log_probability_gradient(self.classifier, state.sample, told, condition.class_labels)
            return replace(output, gradient=gradient if output.gradient is None else output.gradient + gradient)

        return guided


def log_probability_gradient(classifier: NoisedClassifier, sample: Tensor, told: Tensor, class_labels: Tensor) -> Tensor:
    """Gradient of log p(class_labels | sample) by the sample, (B, C, h, w) of the sample's dtype."""
    with torch.enable_grad():
        at = sample.detach().float().requires_grad_()
        chosen = F.log_softmax(classifier(at, told).float(), dim=-1).gather(1, class_labels[:, None])
        (gradient,) = torch.autograd.grad(chosen.sum(), at)
    return gradient.to(sample.dtype)
