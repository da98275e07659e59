"""Several kinds of guidance at once, images at times of their own, and classifiers in any formulation and precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Condition, DenoiserOutput, evaluator
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.guidance.classifier import ClassifierGradient, log_probability_gradient
from generative.diffusion.guidance.combined import Guidance
from generative.diffusion.guidance.extrapolation import Extrapolation

LABELS = torch.tensor([0, 2, 1])
NULL = 3
SHAPE = (3, 2, 2, 2)


class Toy(nn.Module):
    """Predicts ``factor`` x (label + 1) x sample, and keeps what it was asked for."""

    dtype = torch.float32

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.labels: list[list[int]] = []

    def forward(self, sample: Tensor, time: Tensor, class_labels: Tensor) -> DenoiserOutput:
        self.labels.append(class_labels.tolist())
        return DenoiserOutput(self.factor * (class_labels + 1.0)[:, None, None, None] * sample)


class Classifier(nn.Module):
    """Linear in the sample, and keeps the precision and the time that it was told."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.dtype = dtype
        self.told: list[Tensor] = []

    def forward(self, sample: Tensor, time: Tensor) -> Tensor:
        assert sample.dtype == self.dtype
        self.told.append(time)
        return sample.mean((2, 3)) @ self.weight.T


def predict(guidance: Guidance, network: Toy, time: Tensor, sample: Tensor | None = None) -> DenoiserOutput:
    formulation = Interpolant()
    state = SampleState(torch.ones(SHAPE) if sample is None else sample)
    return guidance.bind(evaluator(network, formulation), Condition(LABELS), formulation)(state, time)


@pytest.mark.parametrize("level", [0.1, 0.4, 0.7])
def test_null_guide_and_classifier_add_up_each_in_its_interval(level: float) -> None:
    network, guide, classifier = Toy(1.0), Toy(0.5), Classifier()
    guidance = Guidance(
        extrapolations=(
            Extrapolation(scale=3.0, null_label=NULL, interval=(0.3, 0.8)),
            Extrapolation(scale=2.0, weak=guide, null_label=7, interval=(0.0, 0.5)),
        ),
        classifier=ClassifierGradient(classifier=classifier, scale=2.0, interval=(0.6, 1.0)),
    )
    output = predict(guidance, network, torch.tensor(level))
    c, u, g = LABELS + 1.0, NULL + 1.0, 0.5 * 8.0
    expected = c + 2 * (c - u) * (level > 0.3) + (c - g) * (level < 0.5)
    torch.testing.assert_close(output.prediction[:, 0, 0, 0], expected)
    assert network.labels == [LABELS.tolist() + ([NULL] * 3 if level > 0.3 else [])], "branches of one network share a pass"
    assert guide.labels == ([[7] * 3] if level < 0.5 else [])
    assert len(classifier.told) == (level > 0.6) and (output.gradient is not None) == (level > 0.6)


def test_the_order_of_two_extrapolations_is_of_no_account_and_one_alone_is_its_own_formula() -> None:
    null, guide = Extrapolation(scale=3.0, null_label=NULL), Extrapolation(scale=1.7, weak=Toy(0.3))
    time = torch.tensor(0.5)
    both = predict(Guidance(extrapolations=(null, guide)), Toy(1.0), time).prediction
    torch.testing.assert_close(predict(Guidance(extrapolations=(guide, null)), Toy(1.0), time).prediction, both)
    off = Extrapolation(scale=1.0, weak=Toy(0.3))
    alone = predict(Guidance(extrapolations=(null, off)), Toy(1.0), time).prediction
    formulation = Interpolant()
    bound = null.bind(evaluator(Toy(1.0), formulation), Condition(LABELS), formulation)
    assert torch.equal(alone, bound(SampleState(torch.ones(SHAPE)), time).prediction)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_images_at_times_of_their_own_are_guided_by_their_own(schedule: Any) -> None:
    """As the adaptive solver asks: what is beside an image in the batch must not change it."""
    guidance = Guidance(
        extrapolations=(Extrapolation(scale=3.0, null_label=NULL, interval=(0.3, 0.8), schedule=schedule),),
        classifier=ClassifierGradient(classifier=Classifier(), interval=(0.0, 0.5)),
    )
    times = torch.tensor([0.2, 0.4, 0.7])
    together = predict(guidance, Toy(1.0), times)
    assert together.gradient is not None and not together.gradient[2].any()
    for index, time in enumerate(times):
        alone = predict(guidance, Toy(1.0), time)
        torch.testing.assert_close(alone.prediction[index], together.prediction[index])
        if alone.gradient is not None:
            torch.testing.assert_close(alone.gradient[index], together.gradient[index])


def test_a_gradient_is_an_images_own() -> None:
    sample = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    classifier, time = Classifier(), torch.tensor(0.5)
    together = log_probability_gradient(classifier, sample, time, LABELS, Interpolant())
    for index in range(3):
        place = slice(index, index + 1)
        alone = log_probability_gradient(classifier, sample[place], time, LABELS[place], Interpolant())
        assert torch.equal(alone, together[place])


def test_a_classifier_is_told_what_a_denoiser_is() -> None:
    """EDM scales the input and gives ln(sigma) / 4; the gradient is by the sample before it is scaled."""
    sample = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    classifier, formulation, sigma = Classifier(), EDM(), torch.tensor(2.0)
    found = log_probability_gradient(classifier, sample, sigma, LABELS, formulation)
    torch.testing.assert_close(classifier.told[0], torch.full((3,), float(sigma.log() / 4)))
    factor = float((0.25 + 4.0) ** -0.5)
    inner = log_probability_gradient(classifier, factor * sample, torch.tensor(0.5), LABELS, Interpolant())
    torch.testing.assert_close(found, factor * inner)


def test_a_half_precision_classifier_gives_a_float_gradient() -> None:
    sample = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    half = log_probability_gradient(Classifier(torch.bfloat16), sample, torch.tensor(0.5), LABELS, Interpolant())
    full = log_probability_gradient(Classifier(), sample, torch.tensor(0.5), LABELS, Interpolant())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Extrapolation(scale=-1.0, weak=Toy(1.0), prefix="guide"), "guide_scale must be 0 or more"),
        (lambda: Extrapolation(scale=2.0, weak=Toy(1.0), prefix="guide", interval=(0.0, 2.0)), "guide_interval must be two"),
        (lambda: ClassifierGradient(classifier=Classifier(), interval=(0.5, 1.5)), "classifier_interval must be two numbers"),
        (lambda: ClassifierGradient(classifier=Classifier(), scale=float("nan")), "classifier_scale must be 0 or more"),
    ],
)
def test_a_message_names_the_option(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
