"""Cross-entropy in place: torch's loss, gradient and accuracy, whatever the chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generative.layers import cross_entropy
from generative.layers.cross_entropy import token_cross_entropy


def make_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 5, generator=generator)
    weight = 3 * torch.randn(11, 5, generator=generator)
    return hidden.to(dtype), weight.to(dtype).requires_grad_(), torch.randint(11, (3, 7), generator=generator)


@pytest.mark.parametrize("chunk", [1, 33, 2**18])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_loss_gradient_and_accuracy_equal_torchs(monkeypatch: pytest.MonkeyPatch, chunk: int, scale: float) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_VALUES", chunk)
    hidden, weight, targets = make_inputs()
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    share = (logits.argmax(-1) == targets).float().mean()
    (wanted,) = torch.autograd.grad(scale * expected, weight)
    loss, accuracy = token_cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss, expected)
    assert accuracy == share and not accuracy.requires_grad
    (gradient,) = torch.autograd.grad(scale * loss, weight)
    torch.testing.assert_close(gradient, wanted)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 1e4, 0.0]], requires_grad=True)
    loss, accuracy = token_cross_entropy(logits * 1.0, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(5000) and accuracy == 0.5
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, -0.5]]))


def test_half_precision_logits_give_a_float32_loss() -> None:
    hidden, weight, targets = make_inputs(torch.bfloat16)
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    (wanted,) = torch.autograd.grad(expected, weight)
    loss, _ = token_cross_entropy(hidden @ weight.T, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient, wanted, rtol=0.05, atol=0.01)


def test_logits_are_left_alone_unless_they_are_differentiated() -> None:
    hidden, weight, targets = make_inputs()
    logits = (hidden @ weight.T).detach()
    before = logits.clone()
    loss, accuracy = token_cross_entropy(logits, targets)
    assert torch.equal(logits, before) and 0 <= accuracy <= 1
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def test_label_smoothing_is_torchs() -> None:
    hidden, weight, targets = make_inputs()
    logits = hidden @ weight.T
    loss, _ = token_cross_entropy(logits, targets, label_smoothing=0.2)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.2))
