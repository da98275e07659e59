"""What networks share that are conditioned on classes, or on representations in their place (RCG, arXiv 2312.03701)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.layers.vector_embedding import VectorEmbedding


class ConditionedNetwork:
    """Mixin of networks whose config has ``num_classes``, ``class_dropout_prob``, ``representation_dim``, and
    ``class_conditional`` where a network may be without classes.

    Attributes:
        label_embedding: Table of the classes, the null condition's row last where it has one; None without classes.
        vector_embedding: Embeds representations; None for a network of classes.
    """

    config: Any
    label_embedding: Any
    vector_embedding: VectorEmbedding | None

    @property
    def null_label(self) -> int | None:
        """Label of the null condition, of representations too; None if the network was not trained with one."""
        return self.config.num_classes if self.config.class_dropout_prob > 0 else None

    @property
    def takes_classes(self) -> bool:
        """Whether labels are classes that have an effect."""
        return self.config.representation_dim is None and self.config.get("class_conditional", True)

    @property
    def is_conditioned(self) -> bool:
        """Whether classes or representations have an effect."""
        return self.takes_classes or self.config.representation_dim is not None

    def make_embeddings(self, dim: int) -> tuple[nn.Embedding | None, VectorEmbedding | None]:
        """``label_embedding`` or ``vector_embedding`` of a width, as the config says; neither where nothing has an effect."""
        num_rows = self.config.num_classes + (self.config.class_dropout_prob > 0)
        return nn.Embedding(num_rows, dim) if self.takes_classes else None, self.make_vector_embedding(dim)

    def make_vector_embedding(
        self, dim: int, zero_null: bool = False, make_linear: Callable[[int, int], nn.Module] = nn.Linear
    ) -> VectorEmbedding | None:
        """``vector_embedding`` of a width, see ``VectorEmbedding``; None for a network of classes."""
        config = self.config
        if config.representation_dim is None:
            return None
        has_null, owner = config.class_dropout_prob > 0, type(self).__name__
        return VectorEmbedding(config.representation_dim, dim, config.num_classes, has_null, owner, zero_null, make_linear)

    def embed_labels(self, class_labels: Tensor | None, batch_size: int, vector: Tensor | None = None) -> Tensor | None:
        """Embed labels (B,), or representations (B, D) in their place, as (B, E).

        Args:
            class_labels: None is the null condition for all. Beside representations labels only tell where the null
                representation stands, which is the label ``num_classes``.
            batch_size: B.
            vector: None is the null condition for all.

        Returns:
            None where neither has an effect.

        Raises:
            UserError: If the null condition is asked of a network that has none, or representations do not fit the network.
        """
        if self.vector_embedding is not None:
            return self.vector_embedding(vector, class_labels, batch_size)
        self.refuse_vector(vector)
        return self.embed_classes(class_labels, batch_size) if self.takes_classes else None

    def embed_classes(self, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """Rows (B, E) of the table; networks with something else than a table override it."""
        told: Tensor = self.label_embedding(self.told_labels(class_labels, batch_size, self.label_embedding.weight.device))
        return told

    def told_labels(self, class_labels: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
        """Labels (B,), the null label for None.

        Raises:
            UserError: If there are none and the network has no null condition.
        """
        if class_labels is not None:
            return class_labels
        if self.null_label is None:
            raise UserError(f"this {type(self).__name__} has no null condition (class_dropout_prob is 0); give class_labels")
        return torch.full((batch_size,), self.null_label, device=device)

    def refuse_vector(self, vector: Tensor | None) -> None:
        """Refuse representations given to a network of classes, with a ``UserError``."""
        if vector is not None and self.config.representation_dim is None:
            raise UserError(
                f"this {type(self).__name__} takes no representations (representation_dim is not set); leave vector out"
            )
