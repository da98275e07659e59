"""Attention by plain products equals torch's fused kernel, with masks, gradients and dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generative.layers import short_attention
from generative.layers.short_attention import attend


def heads(length: int = 7, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, length, 8, generator=generator).to(dtype).requires_grad_(True) for _ in range(3)]


@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_the_fused_kernel(masked: bool) -> None:
    q, k, v = heads()
    mask = torch.arange(7) < torch.tensor([4, 7])[:, None, None, None] if masked else None
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    ours = attend(q, k, v, mask)
    exact = [x.detach().float().requires_grad_(True) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*exact, attn_mask=mask)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected, atol=0.03, rtol=0.03)
    gradients = torch.autograd.grad((ours.float() * weight).sum(), (q, k, v))
    for found, wanted in zip(gradients, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        torch.testing.assert_close(found.float(), wanted, atol=0.05, rtol=0.05)
    if masked:
        assert not gradients[2][0, :, 4:].any() and gradients[2][1, :, 4:].any()


def test_float32_and_long_sequences_take_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fused(q: Tensor, *arguments: object, **options: object) -> Tensor:
        calls.append(q.shape[2])
        return q

    monkeypatch.setattr(short_attention.F, "scaled_dot_product_attention", fused)
    attend(*heads(dtype=torch.float32))
    attend(*heads(short_attention.LONGEST + 1))
    attend(*(x.detach() for x in heads()))
    attend(*heads())
    attend(*heads(dtype=torch.float16))
    assert calls == [7, short_attention.LONGEST + 1]


def test_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k, v = heads()
    mean = torch.stack([attend(q, k, v, dropout=0.5).float() for _ in range(300)]).mean(0)
    torch.testing.assert_close(mean, attend(q, k, v).float(), atol=0.35, rtol=0)
    assert not torch.equal(attend(q, k, v, dropout=0.5), attend(q, k, v, dropout=0.5))


def test_a_scale_of_its_own() -> None:
    q, k, v = heads()
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=0.9)
    torch.testing.assert_close(attend(q, k, v, scale=0.9).float(), expected, atol=0.03, rtol=0.03)
