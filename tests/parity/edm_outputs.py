"""Outputs of EDM's preconditioned denoisers, which several parity files share."""

from __future__ import annotations

from torch import Tensor

from generative.diffusion.formulations.edm import EDM
from generative.diffusion.networks.edm_unet import EDMUNet


def denoise(
    model: EDMUNet, trained: EDM, sample: Tensor, sigma: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None
) -> Tensor:
    """D(x; sigma) of (B, C, H, W), noise levels of B elements and labels (B, N), one-hot; None is the null condition."""
    times = sigma.reshape(-1)
    output = model(*trained.network_input(sample, times), labels, augment_labels)
    return trained.predict_start(output, sample, times)
