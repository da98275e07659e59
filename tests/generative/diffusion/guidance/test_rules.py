"""Adaptive projected guidance and CFG-Zero*, beside diffusers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Condition, DenoiserOutput
from generative.diffusion.formulations.base import Formulation, over_image
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.guidance.combined import Guidance
from generative.diffusion.guidance.extrapolation import Extrapolation
from generative.diffusion.guidance.projected import ProjectedGuidance
from generative.diffusion.guidance.rule import Moment
from generative.diffusion.guidance.zero_star import ZeroInit, ZeroStar

SHAPE = (3, 2, 4, 4)


def drawn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "options", [{}, {"threshold": 3.0}, {"momentum": -0.5}, {"momentum": -0.75, "threshold": 2.0, "parallel": 0.4}]
)
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_projection_is_that_of_diffusers_on_predicted_data(options: dict[str, Any], scale: float) -> None:
    """Theirs in the paper's form, whose scale is one less."""
    momentum = options.get("momentum")
    theirs = AdaptiveProjectedGuidance(
        guidance_scale=scale - 1,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=options.get("threshold", 0.0),
        eta=options.get("parallel", 0.0),
        use_original_formulation=True,
    )
    theirs.momentum_buffer = None if momentum is None else MomentumBuffer(momentum)
    ours, state = ProjectedGuidance(**options), SampleState(drawn(9))
    for step in range(3):
        conditional, weaker = drawn(2 * step), drawn(2 * step + 1)
        moment = Moment(state, torch.tensor(0.5 - 0.1 * step), Interpolant(prediction_type="sample"))
        expected = theirs.forward(conditional, weaker).pred
        torch.testing.assert_close(ours.combine(conditional, weaker, scale, moment), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("formulation", "time"),
    [
        (Interpolant(), 0.7),
        (Interpolant("gvp", data_time=1), 0.3),
        (EDM(), 2.0),
        (GaussianDiffusion(prediction_type="v_prediction"), 400),
        (GaussianDiffusion(), 400),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Formulation) else str(value),
)
def test_projection_is_on_the_data_whatever_is_predicted(formulation: Formulation, time: float) -> None:
    sample, at = drawn(0), torch.tensor([time])
    starts = drawn(1), drawn(2)
    outputs = [formulation.output_of(start, sample, at).prediction for start in starts]
    rule = ProjectedGuidance(threshold=3.0, parallel=0.3, momentum=-0.5)
    guided = rule.combine(outputs[0], outputs[1], 3.0, Moment(SampleState(sample), at, formulation))
    moment = Moment(SampleState(sample), torch.tensor(0.5), Interpolant(prediction_type="sample"))
    expected = rule.combine(*starts, 3.0, moment)
    found = formulation.predict_start(DenoiserOutput(guided), sample, at)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_projection_has_a_limit_at_the_data_and_keeps_an_unguided_prediction() -> None:
    rule, formulation = ProjectedGuidance(threshold=1.0, momentum=-0.5), Interpolant()
    moment = Moment(SampleState(drawn(0)), torch.tensor(0.0), formulation)
    assert rule.combine(drawn(1), drawn(2), 3.0, moment).isfinite().all()
    assert torch.equal(rule.combine(drawn(1), drawn(2), 1.0, moment), drawn(1))
    still = Moment(SampleState(torch.zeros(SHAPE)), torch.tensor(0.5), Interpolant(prediction_type="sample"))
    assert rule.combine(torch.zeros(SHAPE), drawn(1), 3.0, still).isfinite().all()


def test_momentum_is_of_one_run_one_place_and_one_image() -> None:
    rule, formulation = ProjectedGuidance(momentum=-0.5), Interpolant()
    state, time = SampleState(drawn(0)), torch.tensor(0.5)

    def step(state: SampleState, place: int, rows: slice = slice(None)) -> Tensor:
        return rule.combine(drawn(1)[rows], drawn(2)[rows], 3.0, Moment(state, time, formulation, place))

    first = step(state, 0)
    assert torch.equal(step(state, 1), first) and torch.equal(step(SampleState(drawn(0)), 0), first)
    second = step(state, 0)
    assert not torch.allclose(second, first)
    alone = SampleState(drawn(0)[1:2])
    step(alone, 0, slice(1, 2))
    torch.testing.assert_close(step(alone, 0, slice(1, 2)), second[1:2])


def test_zero_star_is_that_of_diffusers() -> None:
    theirs = ClassifierFreeZeroStarGuidance(guidance_scale=3.0, zero_init_steps=0)
    theirs._step = 0
    conditional, weaker = drawn(0), drawn(1)
    moment = Moment(SampleState(drawn(2)), torch.tensor(0.5), Interpolant())
    found = ZeroStar().combine(conditional, weaker, 3.0, moment)
    torch.testing.assert_close(found, theirs.forward(conditional, weaker).pred)


@pytest.mark.parametrize("num_steps", [7, 10, 25])
def test_zero_init_holds_the_first_steps_of_the_flow_and_runs_nothing_there(num_steps: int) -> None:
    formulation, calls = Interpolant(time_scale=1000.0), []

    def evaluate(state: SampleState, time: Tensor, branches: Any) -> list[DenoiserOutput]:
        calls.append(time)
        return [DenoiserOutput(torch.ones(SHAPE)) for _ in branches]

    guidance = Guidance(
        extrapolations=(Extrapolation(scale=2.0, null_label=3, rule=ZeroStar()),), zero_init=ZeroInit(share=2 / num_steps)
    )
    predict = guidance.bind(evaluate, Condition(torch.tensor([0, 1, 2])), formulation)
    times = formulation.sampling_times(num_steps)[:-1]
    zero = [not predict(SampleState(drawn(0)), time).prediction.any() for time in times]
    assert zero == [True, True] + [False] * (num_steps - 2) and len(calls) == num_steps - 2
    together = predict(SampleState(drawn(0)), times[[0, 1, 2]]).prediction
    assert [bool(image.any()) for image in together] == [False, False, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProjectedGuidance(momentum=1.0), r"apg_momentum must be in \(-1, 1\), got 1.0"),
        (lambda: ProjectedGuidance(threshold=0.0), "apg_threshold must be a positive number or none, got 0.0"),
        (lambda: ProjectedGuidance(parallel=float("nan")), "apg_parallel must be a finite number"),
        (lambda: ZeroInit(share=1.0), r"zero_init must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_per_image_scales_go_through_every_rule() -> None:
    scales = over_image(torch.tensor([1.0, 2.0, 3.0]), drawn(0))
    moment = Moment(SampleState(drawn(2)), torch.tensor([0.9, 0.5, 0.1]), Interpolant())
    for rule in (ProjectedGuidance(), ZeroStar()):
        together = rule.combine(drawn(0), drawn(1), scales, moment)
        for index, scale in enumerate((1.0, 2.0, 3.0)):
            rows = slice(index, index + 1)
            alone = Moment(SampleState(drawn(2)[rows]), moment.time[rows], Interpolant())
            torch.testing.assert_close(rule.combine(drawn(0)[rows], drawn(1)[rows], scale, alone), together[rows])
