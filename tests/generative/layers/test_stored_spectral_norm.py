"""Layers that keep both singular vectors, at other sizes than the networks use, against torch's own spectral norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from generative.layers.stored_spectral_norm import StoredSpectralConvTranspose2d


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("sizes", [(4, 2, 1), (3, 1, 0), (5, 3, 2)])
def test_transposed_convolution_is_torch_s(sizes: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.utils.spectral_norm(nn.ConvTranspose2d(3, 5, *sizes))
    ours = StoredSpectralConvTranspose2d(3, 5, *sizes)
    with torch.no_grad():
        ours.weight.copy_(theirs.weight_orig)
        ours.bias.copy_(theirs.bias)
        ours.spectral_norm.u.copy_(theirs.weight_u[None])
        ours.spectral_norm.v.copy_(theirs.weight_v[None])
    sample = torch.randn(2, 3, 4, 4)
    for train in (True, False):
        torch.testing.assert_close(ours.train(train)(sample), theirs.train(train)(sample))
