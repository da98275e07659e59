"""The sampling loop and guidance: values by hand, cost of a branch, intervals, channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import OneStepScheduler, SampleState, classifier_free_guidance, sample_loop, unguided
from generative.core.seeding import ImageNoise, sample_generators

NULL = 10


class Recorder:
    """Predicts ``label + timestep`` in channel 0 and ten times that in channel 1, and counts branches."""

    def __init__(self) -> None:
        self.branches: list[int] = []

    def __call__(self, state: SampleState, timestep: Any, class_labels: Tensor) -> Tensor:
        self.branches.append(len(class_labels))
        value = (class_labels + timestep).float()  # (K, B)
        return torch.stack([value, 10 * value], dim=2)[..., None, None].expand(*class_labels.shape, 2, 2, 2)


LABELS = torch.tensor([1, 4])
STATE = SampleState(torch.zeros(2, 2, 2, 2))


def guide(scale: float | Callable[[Any], float], timestep: float = 0, channels: int | None = None) -> tuple[Tensor, list[int]]:
    predict = Recorder()
    result = classifier_free_guidance(predict, LABELS, NULL, scale, channels)(STATE, timestep)
    return result, predict.branches


def test_guidance_by_hand() -> None:
    """u + s (c - u) with u = 10 and c = 1, 4: for s = 3 that is -17 and -8."""
    result, branches = guide(3.0)
    assert result[:, 0, 0, 0].tolist() == [-17.0, -8.0]
    assert result[:, 1, 1, 1].tolist() == [-170.0, -80.0]
    assert branches == [2]


def test_scale_zero_is_the_null_condition() -> None:
    assert guide(0.0)[0][:, 0, 0, 0].tolist() == [10.0, 10.0]


def test_scale_one_costs_one_branch_and_is_the_conditional_prediction() -> None:
    result, branches = guide(1.0)
    assert result[:, 0, 0, 0].tolist() == [1.0, 4.0]
    assert branches == [1]
    assert torch.equal(result, unguided(Recorder(), LABELS)(STATE, 0))


def test_an_interval_is_a_function_of_the_timestep() -> None:
    predict = Recorder()
    guided = classifier_free_guidance(predict, LABELS, NULL, lambda timestep: 2.0 if 3 <= timestep < 6 else 1.0)
    results = [guided(STATE, timestep)[:, 0, 0, 0].tolist() for timestep in (2, 3, 6)]
    assert results == [[3.0, 6.0], [-5.0, 1.0], [7.0, 10.0]]
    assert predict.branches == [1, 2, 1]


def test_guiding_some_channels_keeps_the_others_conditional() -> None:
    result, _ = guide(3.0, channels=1)
    assert result[:, 0, 0, 0].tolist() == [-17.0, -8.0]
    assert result[:, 1, 0, 0].tolist() == [10.0, 40.0]


class Sum:
    """Adds predictions up; its input scaling and its noise leave a trace."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> Any:
        return range(num_inference_steps, 0, -1)

    def model_input(self, state: SampleState, timestep: Any) -> SampleState:
        return SampleState(state.sample * 2, {"scaled": True})

    def step(self, prediction: Tensor, timestep: Any, state: SampleState, noise: ImageNoise) -> SampleState:
        memory = {"steps": [*state.memory.get("steps", []), timestep]}
        return SampleState(state.sample + prediction + noise.rand(1) * 0, memory)


def test_the_loop_predicts_on_the_scaled_input_and_steps_the_unscaled_state() -> None:
    def predict(state: SampleState, timestep: Any) -> Tensor:
        assert state.memory == {"scaled": True}
        return state.sample

    noise = ImageNoise(sample_generators(0, [0, 0], [0, 1]))
    seen: list[Any] = []

    def progress(timesteps: Any) -> Any:
        for timestep in timesteps:
            seen.append(timestep)
            yield timestep

    state = sample_loop(predict, Sum(), SampleState(torch.tensor([[1.0], [2.0]])), 3, noise, progress)
    assert state.sample.tolist() == [[27.0], [54.0]]  # three times x + 2 x
    assert state.memory["steps"] == [3, 2, 1] == seen


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_guidance_of_equal_branches_changes_nothing(scale: float) -> None:
    def predict(state: SampleState, timestep: Any, class_labels: Tensor) -> Tensor:
        return torch.full((len(class_labels), 2, 1), 3.0)

    result = classifier_free_guidance(predict, LABELS, NULL, scale)(STATE, 0)
    assert torch.equal(result, torch.full((2, 1), 3.0))


def test_one_step_takes_the_prediction() -> None:
    state, images, noise = SampleState(torch.zeros(2, 4)), torch.rand(2, 3, 8, 8), ImageNoise([])
    result = sample_loop(lambda state, timestep: images, OneStepScheduler(), state, 1, noise)
    assert result.sample is images
    with pytest.raises(UserError, match="in 1 step, got num_inference_steps=20"):
        sample_loop(lambda state, timestep: images, OneStepScheduler(), state, 20, noise)
