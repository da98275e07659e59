"""Feature extractors by name; importing this package loads no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from metrics import registry
from metrics.extractors.base import FeatureExtractor

if TYPE_CHECKING:
    import torch

__all__ = ["FeatureExtractor", "build_extractor"]


def build_extractor(
    name: str,
    *,
    weights: Path | None = None,
    input_size: int | None = None,
    device: str | torch.device = "cpu",
) -> FeatureExtractor:
    """Build a frozen extractor.

    Args:
        name: A key of ``metrics.registry.EXTRACTORS`` ("inception-v3", "dinov2-vit-l-14"), or one's own class in a local file,
            "path/to/file.py:ClassName". Such a file is run, so take the name from a person, never from data.
        weights: Its weight file; None takes the packaged or cached one, or downloads and verifies it.
        input_size: Side in pixels that images are brought to; None takes the network's own.
        device: Where to put it.

    Returns:
        The network in evaluation mode.

    Raises:
        FileNotFoundError: If there are no weights to be had (the message says which file, from where, to put where), or
            no file of one's own.
        ValueError: If the name is unknown, the file corrupt or another network's, the network has one input size only,
            or one's own class is not a complete extractor.
    """
    if ".py:" in name:
        from metrics.extractors.local import build_local_extractor

        return build_local_extractor(name, weights, input_size).freeze().to(device)
    cls: type[FeatureExtractor] = registry.resolve("extractor", registry.EXTRACTORS, name)
    return cls.from_file(weights, input_size).freeze().to(device)
