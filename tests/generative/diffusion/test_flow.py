"""Flow matching on straight paths."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from generative.core.errors import UserError
from generative.diffusion.flow import FlowProcess


def test_path_runs_straight_from_data_to_noise() -> None:
    process = FlowProcess(1000)
    data, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    timesteps = torch.tensor([0.0, 250.0, 1000.0])
    sample = process.add_noise(data, noise, timesteps)
    assert torch.equal(sample[0], data[0])
    assert torch.equal(sample[2], noise[2])
    torch.testing.assert_close(sample[1], 0.75 * data[1] + 0.25 * noise[1])
    velocity = process.target(data, noise, timesteps)
    torch.testing.assert_close(sample[1] - 0.25 * velocity[1], data[1])


def test_noise_equals_that_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    data, noise = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    timesteps = scheduler.timesteps[[10, 700]]
    ours = FlowProcess.from_scheduler(scheduler).add_noise(data, noise, timesteps)
    torch.testing.assert_close(ours, scheduler.scale_noise(data, timesteps, noise))


@pytest.mark.parametrize(("density", "in_the_middle"), [("uniform", 0.5), ("logit_normal", 0.728)])
def test_timestep_densities(density: str, in_the_middle: float) -> None:
    process = FlowProcess(1000, density)  # type: ignore[arg-type]
    timesteps = process.draw_timesteps(20_000, torch.Generator().manual_seed(0))
    assert 0 <= timesteps.min() and timesteps.max() <= 1000
    # Logit-normal: P(|z| < log 3) = 0.728 for the middle half.
    share = ((timesteps > 250) & (timesteps < 750)).float().mean().item()
    assert share == pytest.approx(in_the_middle, abs=0.015)


def test_unknown_density_is_refused() -> None:
    with pytest.raises(UserError, match="timestep_density must be uniform or logit_normal, got 'cosine'"):
        FlowProcess(1000, "cosine")  # type: ignore[arg-type]
