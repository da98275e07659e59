"""Images to representations: one vector an image, by a frozen feature extractor (RCG, arXiv 2312.03701, section 3)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.images import HALF_RANGE
from metrics.extractors import build_extractor


def standardize(vectors: Tensor) -> Tensor:
    """Vectors (B, D) less their own mean, over their own unbiased standard deviation, as RCG's authors do."""
    return (vectors - vectors.mean(dim=1, keepdim=True)) / vectors.std(dim=1, keepdim=True)


class RepresentationEncoder(nn.Module):
    """A feature extractor of ``metrics.extractors`` as the encoder of what a generator is conditioned on.

    Images are brought to the extractor's size by bicubic interpolation without antialiasing (official implementation). The
    trainer refuses to score with the same extractor.

    Args:
        extractor: Name of ``metrics.registry.EXTRACTORS``: ``mocov3-vit-b`` (RCG's), ``dinov2-vit-b-14``, ``resnet9`` trained on
            your own images, ...; or one's own class, ``path/to/file.py:ClassName``.
        weights: Its weight file; None takes the packaged or cached one, or a verified download.
        feature: Which of its features; None for the one that distances compare.
        input_size: Side in pixels that images are brought to; None for the extractor's own.
        standardized: Whether each vector is standardised on its own, see ``standardize``.

    Attributes:
        config: What it is: extractor, sha256 of its weights, feature, input size. Runs and pipelines record it.

    Raises:
        UserError: If there is no such extractor or feature, or its weights are missing or another network's.
    """

    def __init__(
        self,
        extractor: str,
        weights: Path | None = None,
        feature: str | None = None,
        input_size: int | None = None,
        standardized: bool = True,
    ) -> None:
        super().__init__()
        try:
            network = build_extractor(extractor, weights=None if weights is None else Path(weights), input_size=input_size)
        except (ValueError, FileNotFoundError) as error:
            # The metrics package stands alone and has no error of its own for wrong input.
            raise UserError(f"representation encoder: {error}") from error
        self.feature = network.embedding if feature is None else feature
        if self.feature not in network.feature_dims:
            known = ", ".join(network.feature_dims)
            raise UserError(f"representation encoder: {extractor} has no feature {self.feature!r}; it has {known}")
        self.network = network
        self.dim = network.feature_dims[self.feature]
        self.extractor = extractor
        self.config: dict[str, Any] = {
            "extractor": extractor,
            "weights_sha256": network.weights_sha256,
            "feature": self.feature,
            "input_size": network.input_size,
            "standardized": standardized,
            "dim": self.dim,
        }

    @property
    def fingerprint(self) -> str:
        """sha256 of ``config``: caches of representations carry it."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Encode images, in float32 whatever the precision around.

        Args:
            images: (B, 3, H, W) float32 in [-1, 1].

        Returns:
            (B, D) float32.
        """
        with torch.autocast(images.device.type, enabled=False):
            pixels = (images.float() + 1) * HALF_RANGE
            size = self.config["input_size"]
            if pixels.shape[-2:] != (size, size):
                pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False)
            vectors = self.network.compute(pixels, [self.feature])[self.feature].float()  # (B, D)
            return standardize(vectors) if self.config["standardized"] else vectors


def describe_encoder(config: dict[str, Any]) -> str:
    """An encoder's ``config`` in a few words, for messages."""
    return f"{config['feature']} of {config['extractor']} ({config['dim']} numbers, weights {str(config['weights_sha256'])[:12]})"
