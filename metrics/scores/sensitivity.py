"""What in an image FID looks at: the heat maps of Kynkaanniemi et al., "The Role of ImageNet Classes in Frechet Inception
Distance" (arXiv:2203.06026, section 3).

One image is added to the fakes, and FID is differentiated by the network's last feature maps A_k (Inception-v3: 2048 maps of
8x8 before pool3). As in Grad-CAM a map sums them with weights w_k that are averages over places; as in the authors' code the
average is of the squared gradient, so that the map tells how strongly FID reacts and not in which direction:

    map = sum_k w_k A_k,    w_k = mean over places of (d FID / d A_k)^2
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metrics.resize import build_resizer
from metrics.scores.moments import Gaussian
from metrics.terminal import drawable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metrics.extractors.base import FeatureExtractor

_LAST_MAPS = "Mixed_7c"  # Inception-v3's last block, TF's mixed_10.
_POOLING_TOLERANCE = 1e-3  # Relative; float32 sums of 64 places differ by 1e-6.
_QUADRATURE_STEP = 0.4  # In log t: the trapezoid error of 1 / (x + t^2) is exp(-pi^2 / step), 2e-11.
_QUADRATURE_TAIL = 18.0  # In log t: what is cut off either side is exp(-18), 1.5e-8.
_NULL_SHARE = 1e-16  # Share of a vector's squared length below which its part in the covariance's null space is rounding.
_PANEL_INCHES = 2.5


@dataclass(frozen=True)
class SensitivityMaps:
    """What FID looks at in some images.

    Args:
        maps: (B, H, W) float32, >= 0, in squared distance per activation; only ratios mean anything.
        top1: (B,) int64 index of the class the network sees, or None where it is no classifier.
    """

    maps: Tensor
    top1: Tensor | None


def frechet_gradient(features: Tensor, real: Gaussian, fake: Gaussian) -> Tensor:
    """Gradient of the Frechet distance by the features of one image that joins the fakes, for each image on its own.

    With N fakes after the image f has joined them, mu' = mu + (f - mu) / N and S' = (N-2)/(N-1) S + (f-mu)(f-mu)^T / N, so

        d FID / d f = 2/N (mu' - mu_r) + 2/N (I - A (A^T S' A)^(-1/2) A^T) (f - mu),    S_r = A A^T

    (the derivative of tr M^(1/2) is M^(-1/2) / 2). One eigendecomposition of A^T S A serves all images: the root of its
    rank-one update is X^(-1/2) = 2/pi times the integral of (X + t^2)^(-1) over t > 0, with Sherman and Morrison's formula
    inside. This is exact, holds at any rank, and costs O(D^2) an image.

    Args:
        features: (B, D) features of the images.
        real: The reference.
        fake: The fakes without the images; its ``num_samples`` is needed.

    Returns:
        (B, D) float64.

    Raises:
        ValueError: If dimensions differ or the fakes' count is unknown or below 2.
    """
    if features.ndim != 2 or not len(real.mu) == len(fake.mu) == features.shape[1]:
        raise ValueError(
            f"features must be (B, D) of the statistics' dimensions ({len(real.mu)} real, {len(fake.mu)} fake), "
            f"got {tuple(features.shape)}."
        )
    if fake.num_samples is None or fake.num_samples < 2:
        raise ValueError(f"the fake statistics must tell a num_samples of at least 2, got {fake.num_samples}.")
    count = fake.num_samples + 1
    factor = real.square_root_factor()  # (D, r)
    eigenvalues, vectors = torch.linalg.eigh(factor.T @ fake.covariance() @ factor)
    eigenvalues *= (count - 2) / (count - 1)
    basis = factor @ vectors  # (D, r)
    delta = features.detach().cpu().double() - fake.mu  # (B, D)
    projected = delta @ basis  # (B, r)
    roots = torch.stack([_inverse_root_times(eigenvalues, z, 1.0 / count) for z in projected])  # (B, r)
    mean_gap = fake.mu + delta / count - real.mu
    return 2.0 / count * (mean_gap + delta - roots @ basis.T)


def _inverse_root_times(eigenvalues: Tensor, z: Tensor, scale: float) -> Tensor:
    """Return (diag(eigenvalues) + scale z z^T)^(-1/2) z, both of shape (r,), by the trapezoid rule in log t."""
    largest = float(eigenvalues.max())
    is_null = eigenvalues <= len(z) * torch.finfo(torch.float64).eps * largest
    values = eigenvalues.masked_fill(is_null, 0.0)
    # A vector inside the range of the covariance has a part outside it by rounding only, which the root would blow up.
    null_part = float(z[is_null].square().sum())
    if null_part <= _NULL_SHARE * float(z.square().sum()):
        z, null_part = z.masked_fill(is_null, 0.0), 0.0
    smallest = float(values[~is_null].min()) if not bool(is_null.all()) else torch.inf
    if null_part > 0.0:
        # The eigenvalue that the update lifts from zero, from below.
        leverage = float((z[~is_null].square() / values[~is_null]).sum())
        smallest = min(smallest, scale * null_part / (1.0 + scale * leverage))
    if not 0.0 < smallest < torch.inf:
        return torch.zeros_like(z)
    first = 0.5 * np.log(smallest) - _QUADRATURE_TAIL
    last = 0.5 * np.log(largest + scale * float(z.square().sum())) + _QUADRATURE_TAIL
    log_t = torch.linspace(first, last, int((last - first) / _QUADRATURE_STEP) + 2, dtype=torch.float64)
    t = log_t.exp()
    resolvent = 1.0 / (values + t[:, None].square())  # (Q, r)
    denominator = 1.0 + scale * (resolvent @ z.square())  # (Q,)
    weights = t / denominator * (log_t[1] - log_t[0]) * (2.0 / torch.pi)  # dt = t d log t
    return (weights @ resolvent) * z


def fid_sensitivity(
    extractor: FeatureExtractor,
    images: Tensor,
    real: Gaussian,
    fake: Gaussian,
    resizer: str | None = None,
    layer: str = _LAST_MAPS,
) -> SensitivityMaps:
    """Map, for each image, the places that the Frechet distance reacts to.

    Args:
        extractor: The network; the feature looked at is its embedding, the mean over places of ``layer``.
        images: uint8 (B, 3, H, W); each is added to the fakes on its own.
        real: The reference, in the extractor's embedding.
        fake: The other fakes.
        resizer: Name of the resizer; None takes the extractor's own.
        layer: Name of the module that puts out the last feature maps (B, D, h, w).

    Returns:
        Maps at the images' size (Lanczos, as the authors do), and the classes the network sees.

    Raises:
        TypeError: If images are not uint8.
        ValueError: If the network has no such layer, its mean is not the embedding, or the statistics do not fit.
    """
    activations, features = _forward(extractor, images, resizer or extractor.default_resizer, layer)
    gradient = frechet_gradient(features[extractor.embedding], real, fake)  # (B, D)
    # The mean over h * w places hands each place the same share of the gradient.
    weights = (gradient / (activations.shape[2] * activations.shape[3])).square()
    small = torch.einsum("bd,bdhw->bhw", weights, activations.cpu().double()).float()
    height, width = images.shape[2:]
    maps = [Image.fromarray(plane.numpy()).resize((width, height), Image.Resampling.LANCZOS) for plane in small]
    top1 = None if extractor.class_logits is None else features[extractor.class_logits].argmax(1).cpu()
    return SensitivityMaps(torch.from_numpy(np.stack([np.asarray(plane) for plane in maps])).clamp(min=0.0), top1)


def _forward(extractor: FeatureExtractor, images: Tensor, resizer: str, layer: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the maps (B, D, h, w) that ``layer`` puts out and all features."""
    modules = dict(extractor.named_modules())
    if layer not in modules or not layer:
        raise ValueError(f"extractor {extractor.name} has no layer {layer!r}: name the one before its pooling.")
    outputs: list[Tensor] = []
    handle = modules[layer].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        with torch.no_grad():
            pixels = build_resizer(resizer)(images.to(extractor.device), extractor.input_size)
            features = extractor(extractor.match_protocol(pixels, resizer))
    finally:
        handle.remove()
    maps, embedding = outputs[0].float(), features[extractor.embedding].float()
    is_mean = maps.ndim == 4 and maps.shape[:2] == embedding.shape
    if not is_mean or float((maps.mean((2, 3)) - embedding).norm()) > _POOLING_TOLERANCE * float(embedding.norm()):
        raise ValueError(f"layer {layer!r} does not pool to {extractor.embedding} of {extractor.name}: name the one that does.")
    return maps, features


def save_overlays(path: Path, images: Tensor, sensitivity: SensitivityMaps, class_names: Sequence[str] | None = None) -> None:
    """Draw each image with its map over it, titled with its class, in one figure.

    Args:
        path: The file to write; matplotlib goes by its extension.
        images: uint8 (B, 3, H, W), those that the maps are of.
        sensitivity: The maps.
        class_names: Names by class index; None writes the index.

    Raises:
        ValueError: If there are not as many maps as images.
    """
    from matplotlib.figure import Figure

    if len(images) != len(sensitivity.maps):
        raise ValueError(f"there must be one map per image, got {len(images)} images and {len(sensitivity.maps)} maps.")
    figure = Figure(figsize=(_PANEL_INCHES * len(images), 2 * _PANEL_INCHES), layout="constrained")
    panels = figure.subplots(2, len(images), squeeze=False)
    for column, (image, heat) in enumerate(zip(images.cpu(), sensitivity.maps, strict=True)):
        for row in (0, 1):
            panels[row][column].imshow(image.permute(1, 2, 0).numpy())
            panels[row][column].set_axis_off()
        panels[1][column].imshow(heat.numpy(), cmap="viridis", alpha=0.6)
        if sensitivity.top1 is not None:
            index = int(sensitivity.top1[column])
            panels[0][column].set_title(f"class {index}" if class_names is None else drawable(class_names[index]))
    figure.savefig(path)
