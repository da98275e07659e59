"""Multi-scale residual quantisation: which phi, resizing, a worked example, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from generative.core.errors import UserError
from generative.tokenizers.multi_scale_quantizer import (
    MultiScaleQuantizer,
    ResidualConv,
    phi_indices,
    resize_matrix,
)


def test_the_phis_of_the_published_scales() -> None:
    """The table, which the official float64 arithmetic gives: two of the ten are decided by rounding."""
    assert phi_indices(4, 10) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    ticks = np.linspace(1 / 3 / 4, 1 - 1 / 3 / 4, 4)
    distances = np.abs(ticks[:, None] - np.array([scale / 9 for scale in range(10)]))  # (4, 10)
    assert tuple(distances.argmin(0).tolist()) == phi_indices(4, 10)
    nearest_two = np.sort(distances, axis=0)[:2]
    assert np.flatnonzero(nearest_two[1] - nearest_two[0] < 1e-12).tolist() == [2, 7]


@pytest.mark.parametrize(
    ("num_phis", "num_scales", "expected"),
    [
        (1, 3, [0, 0, 0]),
        (2, 4, [0, 0, 1, 1]),
        (3, 5, [0, 0, 1, 2, 2]),
        (4, 4, [0, 1, 2, 3]),
        (4, 6, [0, 0, 1, 2, 3, 3]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (5, 2, [0, 4]),
        (3, 1, [0]),
    ],
)
def test_other_numbers_of_phis(num_phis: int, num_scales: int, expected: list[int]) -> None:
    assert list(phi_indices(num_phis, num_scales)) == expected


@pytest.mark.parametrize(
    ("source", "target", "mode"), [(16, 13, "area"), (8, 3, "area"), (3, 8, "bicubic"), (1, 4, "bicubic"), (5, 5, "bicubic")]
)
def test_resizing_by_matrix_is_torchs(source: int, target: int, mode: str) -> None:
    sample = torch.randn(2, 3, source, source, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(sample, size=(target, target), mode=mode)
    ours = resize_matrix(source, target, mode) @ sample.flatten(2).transpose(1, 2)  # (B, target^2, C)
    torch.testing.assert_close(ours.transpose(1, 2).reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.5, 0.25, 1.0])
def test_phi_mixes_a_convolution_with_its_input(ratio: float) -> None:
    torch.manual_seed(0)
    phi, sample = ResidualConv(3, ratio), torch.randn(2, 3, 4, 4)
    convolved = F.conv2d(sample, phi.weight, phi.bias, padding=1)
    torch.testing.assert_close(phi(sample), (1 - ratio) * sample + ratio * convolved)


def example(**options: Any) -> MultiScaleQuantizer:
    """One channel, 1x1 then 2x2, without phi."""
    quantizer = MultiScaleQuantizer(3, 1, (1, 2), quant_resi=0.0, **options)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[10.0], [1.0], [-1.0]]))
    return quantizer


def test_a_worked_example() -> None:
    quantizer = example()
    latents = torch.tensor([[[[10.0, 12.0], [9.0, 11.4]]]], requires_grad=True)  # mean 10.6, which takes the code 10
    found = quantizer(latents)
    # What is left: 0, 2 / -1, 1.4; of the codes 1 and -1 zero takes the first.
    assert found.use.ids.tolist() == [0, 1, 1, 2, 1]
    assert quantizer.encode(latents).tolist() == [[0, 1, 1, 2, 1]]
    assert found.latents.tolist() == [[[[11, 11], [9, 11]]]]
    torch.testing.assert_close(found.use.vectors.flatten(), torch.tensor([10.6, 0.0, 2.0, -1.0, 1.4]))
    first, second = (0 + 4 + 1 + 1.96) / 4, (1 + 1 + 0 + 0.16) / 4
    for loss in found.losses.values():
        assert loss.item() == pytest.approx((first + second) / 2)
    (straight,) = torch.autograd.grad(found.latents.sum(), latents, retain_graph=True)
    assert torch.equal(straight, torch.ones(1, 1, 2, 2))
    (commitment,) = torch.autograd.grad(found.losses["commitment"], latents, retain_graph=True)
    errors = torch.tensor([[0.0, 2.0], [-1.0, 1.4]]) + torch.tensor([[-1.0, 1.0], [0.0, 0.4]])  # of both scales
    torch.testing.assert_close(commitment[0, 0], 2 * errors / 4 / 2)
    (codebook,) = torch.autograd.grad(found.losses["codebook"], quantizer.codebook)
    # The first code is in both sums, the others in the second only.
    torch.testing.assert_close(codebook.flatten(), torch.tensor([-errors.sum(), -0.4, 0.0]) * 2 / 4 / 2)


def test_normalised_comparison_looks_at_directions() -> None:
    quantizer = example(using_znorm=True)
    # Directions in one channel are signs: 10 and 1 are alike, and the first of equals is taken.
    assert quantizer.encode(torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]])).tolist() == [[0, 2, 2, 2, 2]]
    assert quantizer(torch.full((1, 1, 2, 2), 0.5)).latents.flatten().tolist() == [9, 9, 9, 9]  # codes come out as they are


def test_signs_and_zero_of_the_ratio() -> None:
    torch.manual_seed(0)
    positive = MultiScaleQuantizer(8, 2, (1, 2, 4), quant_resi=0.5)
    negative = MultiScaleQuantizer(8, 2, (1, 2, 4), quant_resi=-0.5)
    negative.load_state_dict(positive.state_dict())
    latents = torch.randn(1, 2, 4, 4)
    assert torch.equal(positive(latents).latents, negative(latents).latents)
    assert len(MultiScaleQuantizer(8, 2, (1, 2, 4), quant_resi=0.0).phis) == 0


@pytest.mark.parametrize(("share", "counts", "expected"), [(0, 0, 3), (0, 5, 5), (1, 0, 1), (4, 0, 4), (2, 7, 2)])
def test_numbers_of_phis(share: int, counts: int, expected: int) -> None:
    quantizer = MultiScaleQuantizer(8, 2, (1, 2, 4), share_quant_resi=share, default_qresi_counts=counts)
    assert len(quantizer.phis) == expected
    assert all(0 <= index < expected for index in quantizer.phi_of_scale)


def test_autocast_does_not_reach_the_quantiser() -> None:
    torch.manual_seed(0)
    quantizer, latents = MultiScaleQuantizer(64, 4, (1, 2, 3)), torch.randn(2, 4, 3, 3) / 64
    expected = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(latents)
        assert torch.equal(quantizer.encode(latents), quantizer.encode(latents.clone()))
    assert torch.equal(found.use.ids, expected.use.ids) and torch.equal(found.latents, expected.latents)
    assert all(loss.dtype == torch.float32 for loss in found.losses.values())


def test_every_phi_and_the_codebook_learn() -> None:
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(8, 2, (1, 2, 3, 4))
    quantizer(torch.randn(2, 2, 4, 4)).losses["codebook"].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in quantizer.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_nums": ()}, r"patch_nums must hold a positive size for each scale, got \[\]"),
        ({"patch_nums": (0, 4)}, r"patch_nums must hold a positive size for each scale, got \[0, 4\]"),
        ({"share_quant_resi": -1}, "must not be negative, got -1 and 0"),
        ({"num_codes": 1}, "num_codes must be at least 2, got 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MultiScaleQuantizer(**{"num_codes": 8, "latent_channels": 2, "patch_nums": (1, 2)} | options)
