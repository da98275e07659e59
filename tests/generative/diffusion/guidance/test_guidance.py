"""Guidance of denoisers: away from something weaker, and towards a class."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Condition, DenoiserOutput, evaluator
from generative.diffusion.formulations.base import Formulation, over_image
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.guidance.classifier import ClassifierGradient, log_probability_gradient
from generative.diffusion.guidance.extrapolation import Extrapolation
from generative.diffusion.samplers.adaptive import AdaptiveODESampler
from generative.diffusion.samplers.ancestral import AncestralSampler
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.ddim import DDIMSampler
from generative.diffusion.samplers.heun import HeunSampler
from generative.diffusion.samplers.ode import ODESampler
from generative.diffusion.samplers.sde import SDESampler

sys.path.append(str(Path(__file__).parents[1]))
from exact import MEAN, STD, exact_output, noise_state  # noqa: E402

LABELS = torch.tensor([0, 2, 1])
NULL = 3


class Toy(nn.Module):
    """Predicts ``factor`` x (label + 1) x sample, and says how many rows it was asked for."""

    dtype = torch.float32

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.rows: list[int] = []

    def forward(self, sample: Tensor, time: Tensor, class_labels: Tensor) -> DenoiserOutput:
        self.rows.append(len(sample))
        return DenoiserOutput(self.factor * (class_labels + 1.0)[:, None, None, None] * sample, variance=sample)


def predict(network: Toy, guidance: Extrapolation, level: float = 0.5) -> tuple[Tensor, DenoiserOutput]:
    """The sample of ones, and what is predicted for it."""
    formulation = Interpolant()
    state = SampleState(torch.ones(3, 2, 1, 1))
    bound = guidance.bind(evaluator(network, formulation), Condition(LABELS), formulation)
    return state.sample, bound(state, torch.tensor(level, dtype=torch.float64))


def test_classifier_free_guidance_is_one_forward_pass_of_both_branches() -> None:
    network = Toy(1.0)
    sample, output = predict(network, Extrapolation(scale=3.0, null_label=NULL))
    strong, weak = (LABELS + 1.0), torch.full((3,), NULL + 1.0)
    assert network.rows == [6]
    torch.testing.assert_close(output.prediction[:, 0, 0, 0], weak + 3 * (strong - weak))
    assert output.variance is not None and torch.equal(output.variance, sample)


def test_autoguidance_asks_another_network_under_the_same_condition() -> None:
    network, guide = Toy(1.0), Toy(0.5)
    _, output = predict(network, Extrapolation(scale=2.0, weak=guide))
    assert (network.rows, guide.rows) == ([3], [3])
    torch.testing.assert_close(output.prediction[:, 0, 0, 0], (0.5 + 2 * (1.0 - 0.5)) * (LABELS + 1.0))


def test_self_improvement_is_extrapolation_by_one_more() -> None:
    """(1 + w) base - w auxiliary (arXiv 2408.16333), s = 1 + w."""
    w = 0.7
    _, output = predict(Toy(1.0), Extrapolation(scale=1 + w, weak=Toy(0.2)))
    torch.testing.assert_close(output.prediction[:, 0, 0, 0], ((1 + w) * 1.0 - w * 0.2) * (LABELS + 1.0))


@pytest.mark.parametrize(("level", "is_guided"), [(0.2, False), (0.21, True), (0.6, True), (0.61, False)])
def test_a_guide_runs_only_inside_its_interval(level: float, is_guided: bool) -> None:
    network, guide = Toy(1.0), Toy(0.5)
    predict(network, Extrapolation(scale=2.0, weak=guide, interval=(0.2, 0.6)), level)
    assert network.rows == [3] and guide.rows == ([3] if is_guided else [])


def test_no_guidance_costs_one_branch_and_channels_may_be_left_alone() -> None:
    network = Toy(1.0)
    _, plain = predict(network, Extrapolation(scale=1.0))
    assert network.rows == [3]
    _, first = predict(network, Extrapolation(scale=3.0, null_label=NULL, channels=1))
    _, whole = predict(network, Extrapolation(scale=3.0, null_label=NULL))
    assert torch.equal(first.prediction[:, :1], whole.prediction[:, :1])
    assert torch.equal(first.prediction[:, 1:], plain.prediction[:, 1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 2.0}, "guidance_scale 2.0 needs something weaker"),
        ({"scale": -1.0, "null_label": NULL}, "guidance_scale must be 0 or more"),
        ({"scale": 2.0, "null_label": NULL, "interval": (0.5, 0.2)}, "guidance_interval must be two numbers"),
        ({"scale": 2.0, "null_label": NULL, "schedule": "round"}, "guidance_schedule must be one of"),
    ],
)
def test_guidance_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Extrapolation(**options)


# ---------------------------------------------------------------------- classifier

SLOPE = 2.0
"""log p(y | x_0) = SLOPE x_0 turns the Gaussian's mean into MEAN + SLOPE STD^2 and leaves its deviation."""


def towards_class(formulation: Formulation) -> Any:
    """The exact denoiser with the exact gradient of log p(y | x_t), SLOPE x d E[x_0 | x_t] / d x_t."""

    def guided(state: SampleState, time: Tensor) -> DenoiserOutput:
        alpha, sigma = (over_image(factor, state.sample) for factor in formulation.alpha_sigma(time))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        gradient = SLOPE * gain * torch.ones_like(state.sample)
        return replace(exact_output(formulation, state.sample, time), gradient=gradient)

    return guided


@pytest.mark.parametrize(
    ("sampler", "formulation", "steps"),
    [
        (AncestralSampler(), GaussianDiffusion(), 1000),  # it shifts the mean of each step: first order
        (DDIMSampler(), GaussianDiffusion(), 250),
        (DDIMSampler(eta=1.0), GaussianDiffusion(), 250),
        (HeunSampler(), GaussianDiffusion(), 40),
        (HeunSampler(churn=20.0), Interpolant(), 60),
        (ODESampler("heun"), Interpolant("gvp", data_time=1), 60),
        (ODESampler("midpoint"), Interpolant(data_time=1), 60),
        (SDESampler("increasing-decreasing"), Interpolant("gvp"), 150),
        (AdaptiveODESampler(), Interpolant("gvp"), 1),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_an_exact_classifier_moves_the_gaussian_to_its_class(sampler: Sampler, formulation: Formulation, steps: int) -> None:
    state = noise_state(64, 8)
    noise = ImageNoise([torch.Generator().manual_seed(seed) for seed in range(64)])
    found = sampler.sample(towards_class(formulation), state, steps, noise, formulation).sample
    assert float(found.mean()) == pytest.approx(MEAN + SLOPE * STD**2, abs=0.02)
    assert float(found.std()) == pytest.approx(STD, rel=0.13)


def test_the_gradient_is_that_of_the_log_probability_and_adds_up() -> None:
    weight = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))

    def classifier(sample: Tensor, told: Tensor) -> Tensor:
        return sample.mean((2, 3)) @ weight.T + told[:, None]

    formulation, labels = Interpolant(time_scale=10.0), torch.tensor([1, 3])
    sample = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    gradient = log_probability_gradient(classifier, sample, torch.zeros(1), labels, formulation)
    probability = (sample.mean((2, 3)) @ weight.T).softmax(1)
    expected = (weight[labels] - probability @ weight) / 9
    torch.testing.assert_close(gradient, expected[:, :, None, None].expand_as(sample))

    def inner(state: SampleState, time: Tensor) -> DenoiserOutput:
        return DenoiserOutput(state.sample, gradient=torch.ones_like(state.sample))

    guidance = ClassifierGradient(classifier=classifier, scale=2.0, interval=(0.2, 0.6))
    guided = guidance.wrap(inner, Condition(labels), formulation)
    inside, outside = guided(SampleState(sample), torch.tensor(5.0)), guided(SampleState(sample), torch.tensor(9.0))
    assert inside.gradient is not None and outside.gradient is not None
    torch.testing.assert_close(inside.gradient, 1 + 2 * gradient)
    assert torch.equal(outside.gradient, torch.ones_like(sample))


def test_a_negative_classifier_scale_is_refused() -> None:
    with pytest.raises(UserError, match="classifier_scale must be 0 or more, got -1.0"):
        ClassifierGradient(classifier=lambda sample, told: sample, scale=-1.0)
