"""Feature networks of one's own, as files that tests write for commands to load."""

from __future__ import annotations

MEANS = '''
"""Means and deviations of the colours; beside the file it notes how many images it is given."""

from pathlib import Path

import torch

from metrics.extractors import FeatureExtractor


class Own(FeatureExtractor):
    name = "own"
    input_size = 8
    weights_sha256 = "1" * 64
    embedding = "mean"

    def __init__(self):
        super().__init__()
        self.feature_dims = {"mean": 6}
        self.scale = torch.nn.Parameter(torch.ones(1))

    @classmethod
    def from_file(cls, weights, input_size):
        return cls()

    def forward(self, images):
        with Path(__file__).with_name("seen").open("a") as log:
            log.write(f"{len(images)}\\n")
        return {"mean": torch.cat([images.mean((2, 3)), images.std((2, 3))], 1) * self.scale}
'''
