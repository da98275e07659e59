"""LAMB against the paper's algorithm written out for one layer at a time, and through a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from generative.core.checkpoint import load_optimizer, save_optimizer
from generative.core.errors import UserError
from generative.core.optimizers import LAMB

LR, BETAS, EPS, DECAY = 0.1, (0.8, 0.9), 1e-3, 0.05


def by_the_paper(weight: Tensor, gradients: list[Tensor]) -> Tensor:
    """Algorithm 2 of arXiv 1904.00962 in float64, phi the identity."""
    w, m, v = weight.double().clone(), torch.zeros_like(weight).double(), torch.zeros_like(weight).double()
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.double()
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g * g
        r = (m / (1 - BETAS[0] ** t)) / ((v / (1 - BETAS[1] ** t)).sqrt() + EPS)
        if weight.ndim > 1:
            u = r + DECAY * w
            w = w - LR * (w.norm() / u.norm() if w.norm() > 0 and u.norm() > 0 else 1.0) * u
        else:
            w = w - LR * r
    return w


def make_optimizer(parameters: list[nn.Parameter]) -> LAMB:
    return LAMB(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)


def test_steps_are_the_papers() -> None:
    torch.manual_seed(0)
    starts = [torch.randn(3, 4), torch.randn(5), torch.zeros(2, 2), torch.randn(2, 3, 1, 1)]
    parameters = [nn.Parameter(start.clone()) for start in starts]
    optimizer = make_optimizer(parameters)
    gradients = [[torch.randn_like(start) for start in starts] for _ in range(4)]
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for index, (start, parameter) in enumerate(zip(starts, parameters, strict=True)):
        wanted = by_the_paper(start, [step[index] for step in gradients])
        torch.testing.assert_close(parameter.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_gradient_stays_and_counts_its_own_steps() -> None:
    torch.manual_seed(0)
    first, second = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.randn(2, 2))
    start = second.detach().clone()
    optimizer = make_optimizer([first, second])
    first.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(second, start) and second not in optimizer.state
    second.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(second.detach().double(), by_the_paper(start, [torch.ones(2, 2)]), rtol=1e-5, atol=1e-6)


def test_it_goes_on_from_a_checkpoint_bit_equal(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 3), torch.randn(4, 3, 3)

    def run(count: int, parameter: nn.Parameter, optimizer: LAMB, first: int = 0) -> None:
        for gradient in gradients[first:count]:
            parameter.grad = gradient.clone()
            optimizer.step()

    whole = nn.Parameter(start.clone())
    run(4, whole, make_optimizer([whole]))
    half = nn.Parameter(start.clone())
    optimizer = make_optimizer([half])
    run(2, half, optimizer)
    scalars = save_optimizer(optimizer, {id(half): "weight"}, tmp_path / "lamb.safetensors")
    later = nn.Parameter(half.detach().clone())
    resumed = make_optimizer([later])
    load_optimizer(resumed, {id(later): "weight"}, tmp_path / "lamb.safetensors", scalars)
    run(4, later, resumed, first=2)
    assert torch.equal(whole, later)


def test_numbers_out_of_range_are_refused() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match="LAMB: lr must be a finite number of 0 or more, got -1"):
        LAMB([parameter], lr=-1)
    with pytest.raises(UserError, match=r"LAMB: betas must be in \[0, 1\), got \(0.9, 1.0\)"):
        LAMB([parameter], betas=(0.9, 1.0))
