"""DiMR's loss over all resolutions, and which of its parameters decay."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from generative.core.errors import UserError
from generative.diffusion.denoiser import Condition, DenoiserOutput
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.dimr import DiMR
from generative.diffusion.networks.dit import DiT
from generative.diffusion.objectives.pyramid import PyramidObjective, to_resolution

ADAMW = functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5)


def make_dimr(**options: Any) -> DiMR:
    sizes: dict[str, Any] = {"hidden_sizes": (4, 4), "mlp_sizes": (4, 4), "num_blocks": (2, 1), "num_heads": (2, 1)}
    return DiMR(**({"sample_size": 8, "in_channels": 3, "num_classes": 3} | sizes | options))


def test_noise_stays_white_at_every_resolution() -> None:
    torch.manual_seed(0)
    noise = torch.randn(64, 3, 16, 16)
    for size in (16, 8, 2):
        assert float(to_resolution(noise, size).std()) == pytest.approx(1, abs=0.05)
    with pytest.raises(UserError, match="a level of 5 pixels does not divide the sample's 16"):
        to_resolution(noise, 5)


@pytest.mark.parametrize("formulation", [GaussianDiffusion(time_scale=0.008), Interpolant(), EDM()])
def test_each_level_is_a_denoising_of_its_own(formulation: Any) -> None:
    torch.manual_seed(0)
    objective = PyramidObjective(make_dimr(), formulation, ADAMW, coefficients=(0.25, 2.0))
    x_start, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    times = formulation.draw_times(2, torch.Generator().manual_seed(0))
    sample = formulation.add_noise(x_start, noise, times)
    target = formulation.target(x_start, noise, times)
    condition = Condition(torch.tensor([0, 1]))
    right = DenoiserOutput(target, pyramid=(to_resolution(target, 4),))
    parts = objective.compare(right, x_start, noise, sample, times, condition)
    assert set(parts) == {"mse", "mse_4"}
    for part in parts.values():
        torch.testing.assert_close(part, torch.zeros(2), atol=1e-5, rtol=0)
    wrong = right.map(lambda values: values + 1)
    parts = objective.compare(wrong, x_start, noise, sample, times, condition)
    torch.testing.assert_close(parts["mse_4"] * 8, parts["mse"], rtol=1e-3, atol=1e-5)


def test_gates_of_time_do_not_decay() -> None:
    objective = PyramidObjective(make_dimr(), GaussianDiffusion(), ADAMW)
    assert objective.coefficients == (0.25, 1.0)
    decayed, free = objective.parameter_groups("denoiser")
    network = objective.networks["denoiser"]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    kept, others = ([names[id(each)] for each in group["params"]] for group in (free, decayed))
    assert free["weight_decay"] == 0 and {name.rpartition(".")[2] for name in kept} == {"gate_weight", "gate_bias"}
    assert not any("gate_weight" in name or "gate_bias" in name for name in others)
    assert sorted(kept + others) == sorted(names.values())
    timeless = PyramidObjective(make_dimr(norm="rms_norm", class_dropout_prob=0.0), GaussianDiffusion(), ADAMW)
    count = sum(len(group["params"]) for group in timeless.parameter_groups("denoiser"))
    assert count == len(list(timeless.networks["denoiser"].parameters()))


def test_what_has_no_pyramid_or_other_levels_is_refused() -> None:
    with pytest.raises(UserError, match="PyramidObjective needs a denoiser that predicts a pyramid, such as DiMR, got DiT"):
        PyramidObjective(DiT(sample_size=4, hidden_size=8, depth=1, num_heads=1), GaussianDiffusion(), ADAMW)
    for coefficients in ((1.0,), (1.0, -1.0)):
        with pytest.raises(UserError, match="coefficients must be one number of 0 or more for each of 2 levels"):
            PyramidObjective(make_dimr(), GaussianDiffusion(), ADAMW, coefficients)
