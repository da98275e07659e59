"""Conditioning by a vector of numbers, such as a representation of the image (RCG, arXiv 2312.03701)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from generative.core.errors import UserError

NULL_INIT_STD = 0.02  # of the null vector (official implementation)


def check_vectors(vector: Tensor, dim: int, network: str) -> None:
    """Refuse representations of another width, with a ``UserError``.

    Args:
        vector: (B, D).
        dim: D that the network takes.
        network: Its class, for the message.
    """
    if vector.ndim != 2 or vector.shape[1] != dim:
        raise UserError(
            f"{network} takes representations of {dim} numbers (representation_dim), got {tuple(vector.shape[1:])}; give those "
            "of the encoder that it was trained with"
        )


def with_null(vector: Tensor, null: Tensor, class_labels: Tensor | None, null_label: int) -> Tensor:
    """Vectors (B, D) with the null vector (1, D) where the label is the null label; labels None leave all as they are."""
    if class_labels is None:
        return vector
    return torch.where((class_labels == null_label)[:, None], null.to(vector.dtype), vector)


class VectorEmbedding(nn.Module):
    """A linear map of vectors, with a vector for the null condition: a learned one, or zeros.

    Args:
        dim: D of the vectors.
        out_dim: Width of the result.
        null_label: Label that stands for the null condition.
        has_null: Whether there is a null condition; without it labels are not looked at.
        owner: Class of the network, for messages.
        zero_null: The null vector is zeros, as in networks whose null class is a one-hot vector of zeros.
        make_linear: ``(D, out_dim) -> map``.

    Raises:
        UserError: If the width is below 1.
    """

    null: Tensor | None

    def __init__(
        self,
        dim: int,
        out_dim: int,
        null_label: int,
        has_null: bool,
        owner: str,
        zero_null: bool = False,
        make_linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise UserError(f"{owner}: representation_dim must be at least 1, got {dim}")
        self.dim, self.null_label, self.owner = dim, null_label, owner
        self.linear: Any = make_linear(dim, out_dim)
        if has_null and zero_null:
            self.register_buffer("null", torch.zeros(1, dim), persistent=False)
        else:
            self.null = nn.Parameter(NULL_INIT_STD * torch.randn(1, dim)) if has_null else None

    def vectors(self, vector: Tensor | None, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """Vectors (B, D), the null vector among them; arguments and errors as of ``forward``."""
        if vector is None:
            if self.null is None:
                raise UserError(f"this {self.owner} is conditioned on representations and has no null condition; give vector")
            return self.null.expand(batch_size, -1)
        check_vectors(vector, self.dim, self.owner)
        return vector if self.null is None else with_null(vector, self.null, class_labels, self.null_label)

    def forward(self, vector: Tensor | None, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """Embed vectors.

        Args:
            vector: (B, D); None is the null condition for all.
            class_labels: (B,) int64, the null label where a vector does not count.
            batch_size: B.

        Returns:
            (B, out_dim).

        Raises:
            UserError: If the vectors are of another width, or there are none and no null condition.
        """
        vectors = self.vectors(vector, class_labels, batch_size)
        return self.linear(vectors.to(getattr(self.linear, "weight", vectors).dtype))
