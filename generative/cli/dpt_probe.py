"""Features of images by a frozen network, and the linear classifier on them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from generative.core.errors import UserError
from generative.core.seeding import keyed_generator
from generative.data.base import ImageDataset
from metrics.extraction import Extraction, microbatch_size

PENALTY = 0.0025
"""l2 penalty of the authors' code, over the number of labelled images."""
BATCH_SIZE = 256


def load_extraction(name: str, weights: Path | None, input_size: int | None, device: torch.device) -> Extraction:
    """Load a frozen network of ``metrics.registry.EXTRACTORS``.

    Raises:
        UserError: If there is none of the name, or its weights are missing or not those expected.
    """
    from metrics.extractors import build_extractor

    try:
        return Extraction(build_extractor(name, weights=weights, input_size=input_size, device=device))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"--extractor: {error}") from error


def extract_features(images: ImageDataset, extraction: Extraction) -> Tensor:
    """Features (N, D) float32 of all images."""
    feature = extraction.extractor.embedding
    size = microbatch_size([extraction.extractor], BATCH_SIZE)
    parts = [extraction(images.images(indices), [feature])[feature] for indices in torch.arange(len(images)).split(size)]
    return torch.cat(parts)


def choose_labelled(labels: Tensor, num_classes: int, per_class: int | None, seed: int) -> Tensor:
    """Numbers of the images whose labels are looked at, (M,) ascending.

    Args:
        labels: (N,) int64.
        num_classes: Number of classes.
        per_class: How many of each class; None for all.
        seed: Of the choice.

    Raises:
        UserError: If a class has fewer images.
    """
    if per_class is None:
        return torch.arange(len(labels))
    chosen = []
    for label in range(num_classes):
        members = (labels == label).nonzero().flatten()
        if len(members) < per_class:
            raise UserError(f"class {label} has {len(members)} images, fewer than --labels-per-class {per_class}; ask for fewer")
        order = torch.randperm(len(members), generator=keyed_generator(seed, "labelled", label))
        chosen.append(members[order[:per_class]])
    return torch.cat(chosen).sort().values


class LinearProbe:
    """Multinomial logistic regression on features of unit length, with an l2 penalty.

    Args:
        features: (M, D) of labelled images.
        labels: (M,) int64.
        num_classes: Number of classes.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        inputs = F.normalize(features.double())
        self.weight = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, requires_grad=True)
        self.bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([self.weight, self.bias], max_iter=500, line_search_fn="strong_wolfe")
        penalty = PENALTY / len(labels)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(inputs, self.weight, self.bias), labels)
            loss = loss + penalty / 2 * self.weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Classes (N,) int64 of features (N, D)."""
        return F.linear(F.normalize(features.double()), self.weight, self.bias).argmax(1)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of the images whose class is found."""
        return float((self.predict(features) == labels).double().mean())
