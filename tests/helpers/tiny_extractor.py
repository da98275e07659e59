"""A feature network of a few weights, as the file that a command names: ``tiny.py:Tiny``."""

from __future__ import annotations

EXTRACTOR = """
import torch
from metrics.extractors import FeatureExtractor


class Tiny(FeatureExtractor):
    name, input_size, weights_sha256 = "tiny", 8, "0" * 64
    embedding, class_logits = "projection", "logits"
    feature_dims = {"projection": 4, "logits": 3}

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.projection = torch.nn.Parameter(torch.randn(192, 4, generator=generator) / 14)
        self.classifier = torch.nn.Parameter(torch.randn(4, 3, generator=generator))

    @classmethod
    def from_file(cls, weights, input_size):
        return cls()

    def forward(self, images):
        features = (images.flatten(1) / 127.5 - 1) @ self.projection
        return {"projection": features, "logits": features @ self.classifier}
"""
