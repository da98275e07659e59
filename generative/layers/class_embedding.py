"""Class embedding that takes mixtures of classes too, for interpolation between classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ClassEmbedding(nn.Embedding):
    """Table of one vector per class, looked up by label or averaged by weight.

    Arguments as ``nn.Embedding``: (num_classes, embedding_dim). Every generator of this project embeds its classes through this
    layer, so all of them can be asked for a point between two classes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Embed classes.

        Args:
            input: (B,) int64 class labels; or (B, num_classes) floating-point weights, each row summing to 1.

        Returns:
            (B, embedding_dim): rows of the table, or weighted means of them.
        """
        if input.is_floating_point():
            return input.to(self.weight.dtype) @ self.weight
        return F.embedding(input, self.weight)
