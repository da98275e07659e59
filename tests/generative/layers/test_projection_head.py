"""Sum pooling and projection logits keep full precision under autocast."""

from __future__ import annotations

import torch
from torch import nn

from generative.layers.projection_head import projection_logits, sum_pool


def test_sums_of_half_precision_maps_are_exact() -> None:
    sample = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    sample[0, 0, 0, 0] = 2.0  # 4097 is no bfloat16
    assert sum_pool(sample).item() == 4097 and sum_pool(sample).dtype == torch.float32
    assert sum_pool(sample.double()).dtype == torch.float64


def test_logits_are_linear_plus_projection_in_full_precision() -> None:
    torch.manual_seed(0)
    linear, embedding = nn.Linear(32, 1), nn.Embedding(3, 32)
    features, labels = 100 * torch.randn(5, 32), torch.tensor([0, 1, 2, 1, 0])
    expected = linear(features) + (embedding.weight[labels] * features).sum(1, keepdim=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = projection_logits(features, labels, linear, embedding)
        unconditional = projection_logits(features, labels, linear, None)
    assert torch.equal(logits, expected) and torch.equal(unconditional, linear(features))
