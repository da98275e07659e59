"""At what order the laws of stochastic samplers approach the data's, without a single random number.

Under a denoiser that is exact for Gaussian data every sampler is affine in its noises: x = c + a x_T + sum b_i n_i. A batch
whose rows are the unit vectors of (1, x_T, n_1, n_2, ...) reads off all factors; c is the mean and a^2 + sum b_i^2 the variance.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.samplers.ancestral import AncestralSampler
from generative.diffusion.samplers.base import Sampler
from generative.diffusion.samplers.ddim import DDIMSampler
from generative.diffusion.samplers.gamma import GammaSampler
from generative.diffusion.samplers.heun import HeunSampler
from generative.diffusion.samplers.ldm_ddim import LDMDDIMSampler
from generative.diffusion.samplers.sde import SDESampler

sys.path.append(str(Path(__file__).parents[1]))
from exact import GAUSSIAN, MEAN, STD, exact_predict  # noqa: E402

MOST_NOISES = 600
DATA = torch.tensor([MEAN, STD], dtype=torch.float64)
FINE = GAUSSIAN["noise"]
COSINE = ContinuousDiffusion("cosine", "v_prediction")
OPEN = Interpolant(prediction_type="epsilon", min_level=1e-3, max_level=0.98)


class UnitNoise(ImageNoise):
    """The i-th draw is 1 in row i + 2 and 0 in all others."""

    def __init__(self) -> None:
        super().__init__([torch.Generator()])
        self.drawn = 0

    def randn(self, *shape: int) -> Tensor:
        noise = torch.zeros(MOST_NOISES + 2, *shape)
        noise[self.drawn + 2] = 1
        self.drawn += 1
        return noise


def law(sampler: Sampler, formulation: Formulation, steps: int) -> Tensor:
    """(2,) mean and standard deviation of what the sampler makes of standard normal noise."""
    start = torch.zeros(MOST_NOISES + 2, 1, 1, 1)
    start[1] = 1
    noise = UnitNoise()
    end = sampler.sample(exact_predict(formulation), SampleState(start), steps, noise, formulation).sample.double().flatten()
    assert noise.drawn <= MOST_NOISES
    return torch.stack([end[0], (end[1:] - end[0]).square().sum().sqrt()])


@pytest.mark.parametrize(
    ("sampler", "formulation", "order"),
    [
        (AncestralSampler("small"), FINE, 1),
        (AncestralSampler("large"), FINE, 1),
        (DDIMSampler(), FINE, 1),
        (DDIMSampler(eta=0.5), FINE, 1),
        (DDIMSampler(eta=1.0), FINE, 1),
        (LDMDDIMSampler(), FINE, 1),
        (GammaSampler("ddpm"), COSINE, 1),
        (GammaSampler("ddpm", step_variance="small"), COSINE, 1),
        (GammaSampler("ddim"), COSINE, 1),
        (HeunSampler(churn=20.0), COSINE, 2),
    ],
)
def test_law_approaches_the_data_at_its_order(sampler: Sampler, formulation: Formulation, order: int) -> None:
    coarse, fine = (float((law(sampler, formulation, steps) - DATA).abs().sum()) for steps in (50, 100))
    assert math.log2(coarse / fine) > order - 0.3
    assert fine < 0.03


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("form", ["sbdm", "sigma", "linear", "constant", "decreasing", "increasing-decreasing"])
def test_law_of_the_sde_converges_at_order_one(form: str, method: str) -> None:
    # The path that ends short of both sides has a limit beside the data, so steps are compared with twice as many of them.
    sampler = SDESampler(form, last_step="none", method=method)  # type: ignore[arg-type]
    laws = [law(sampler, OPEN, steps) for steps in (100, 200, 400)]
    coarse, fine = (float((after - before).abs().max()) for before, after in pairwise(laws))
    assert fine < 0.005 and math.log2(coarse / fine) > 0.7
    assert float((laws[-1] - DATA).abs().sum()) < 0.007


def test_noise_of_churn_costs_no_order_and_changes_no_law() -> None:
    still, churned = (law(HeunSampler(churn=churn), COSINE, 200) for churn in (0.0, 20.0))
    torch.testing.assert_close(still, churned, rtol=0, atol=3e-3)
