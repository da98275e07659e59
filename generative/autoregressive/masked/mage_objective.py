"""Training of MAGE (arXiv 2211.09117, section 3.2) under a representation, a class or no condition (RCG, arXiv 2312.03701)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.autoregressive.masked.mage import MAGETransformer
from generative.autoregressive.masked.mage_masking import MAGEMasking
from generative.autoregressive.masked.masked_objective import MaskedTokenObjective
from generative.autoregressive.options import MAGEOptions
from generative.core.ema import EMAProfiles
from generative.core.errors import UserError
from generative.core.objective import OptimizerFactory
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.diffusion.objectives.representation_condition import RepresentationCondition
from generative.tokenizers.base import ImageTokenizer, check_match
from generative.tokenizers.encoded_objective import drop_labels
from generative.tokenizers.representation import RepresentationEncoder

if TYPE_CHECKING:
    from pipelines.mage import MAGEPipeline


def smoothed_cross_entropy(logits: Tensor, tokens: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of each token, a share of whose target is spread evenly over all codes.

    Args:
        logits: (B, L, V).
        tokens: (B, L) int64.
        smoothing: The share.

    Returns:
        (B, L) float32, in nats.
    """
    losses = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none", label_smoothing=smoothing)
    return losses.view_as(tokens)


class MAGEObjective(MaskedTokenObjective):
    """Cross-entropy of the masked tokens given the condition and those that the encoder sees.

    Args:
        transformer: Predicts the tokens; its number of codes and grid must be the tokenizer's.
        tokenizer: See ``MaskedTokenObjective``, as the optimizer.
        optimizer: Likewise.
        representation_encoder: Encodes images as what the transformer is conditioned on; None for one that is not.
        representation_diffusion: Run or pipeline folder of the representation diffusion that samples begin with.
        masking: Distribution of the masks; None for MAGE's own.
        label_smoothing: Share of each target spread evenly over all codes (official: 0.1).
        label_dropout: Share of conditions replaced by the null condition; None takes the transformer's ``class_dropout_prob``.
        ema: Decay of the average that samples; None samples from the weights themselves.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.

    Raises:
        UserError: If the parts do not fit one another, or an option is out of range.
    """

    def __init__(
        self,
        transformer: MAGETransformer,
        tokenizer: ImageTokenizer,
        optimizer: OptimizerFactory,
        representation_encoder: RepresentationEncoder | None = None,
        representation_diffusion: Path | None = None,
        masking: MAGEMasking | None = None,
        label_smoothing: float = 0.1,
        label_dropout: float | None = None,
        ema: EMAProfiles | None = None,
        sampling: MAGEOptions = MAGEOptions(),
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        check_match(transformer, tokenizer)
        config = transformer.config
        label_dropout = config.class_dropout_prob if label_dropout is None else label_dropout
        if label_dropout and transformer.null_label is None:
            raise UserError(
                f"label_dropout {label_dropout} needs a transformer with a null condition; set its class_dropout_prob"
            )
        super().__init__(transformer, tokenizer, optimizer, label_dropout, ema, sampling)
        takes = config.representation_dim if config.condition == "representation" else None
        self.condition = RepresentationCondition(
            representation_encoder, representation_diffusion, takes, type(transformer).__name__
        )
        self.uses_labels = config.condition == "class" or self.condition.num_classes > 1
        self.num_classes = self.condition.num_classes if takes is not None else config.num_classes
        self.frozen = self.frozen | self.condition.frozen
        self.loss_extractors = self.condition.loss_extractors
        self.masking = masking or MAGEMasking()
        self.label_smoothing = label_smoothing

    def parameter_groups(self, optimizer: str) -> list[dict[str, Any]]:
        """Matrices and tables with the optimizer's weight decay; parameters of one axis without (official implementation)."""
        parameters = list(self.networks["transformer"].parameters())
        others = [p for p in parameters if p.ndim < 2]
        return [{"params": [p for p in parameters if p.ndim >= 2]}, {"params": others, "weight_decay": 0.0}]

    def conditions(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Labels (B,), the null label where a condition is dropped, and representations (B, D) or None."""
        null_label = cast(int, self.networks["transformer"].config.num_classes)  # type: ignore[union-attr]
        vector = self.condition.encode(batch)
        labels = batch["class_labels"]
        if self.networks["transformer"].config.condition != "class":  # type: ignore[union-attr]
            labels = torch.zeros_like(labels)
        return drop_labels(labels, null_label, self.label_dropout, generator), vector

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Cross-entropy over the masked tokens, in nats.

        Args:
            networks: ``transformer`` is used.
            batch: ``images`` or ``tokens``, perhaps ``representations``, and ``class_labels``.
            context: Its generator is the source of the dropped conditions and of the masks.

        Returns:
            ``loss``, the sum over masked tokens (with label smoothing), their count as ``denominator``, and of the masked tokens
            ``bits_per_token`` (without smoothing) and ``accuracy``.
        """
        network = networks["transformer"]
        tokens = self.encoder.encode(batch, context.generator)  # (B, L)
        labels, vector = self.conditions(batch, context.generator)
        masks = self.masking.draw(tokens.shape[0], tokens.shape[1], context.generator)
        logits = network(tokens.masked_fill(masks.masked, self.mask_token), labels, vector, masks.kept)  # (B, L, V)
        losses = smoothed_cross_entropy(logits, tokens, self.label_smoothing)  # (B, L)
        count = masks.masked.sum()
        with torch.no_grad():
            nats = smoothed_cross_entropy(logits, tokens, 0.0)
            accuracy = ((logits.argmax(dim=-1) == tokens) & masks.masked).sum() / count
        return {
            "loss": (losses * masks.masked).sum(),
            "denominator": count,
            "bits_per_token": (nats * masks.masked).sum() / count / math.log(2),
            "accuracy": accuracy,
        }

    @property
    def mask_token(self) -> int:
        """Id that stands for a masked token."""
        return cast(MAGETransformer, self.networks["transformer"]).mask_token

    def identity(self) -> Mapping[str, Any]:
        """What encodes the representations."""
        return {**super().identity(), **self.condition.identity()}

    def encodings(self, batch: Batch, generator: torch.Generator) -> Batch:
        """``representations`` of a batch's images too; see the base class."""
        found = super().encodings(batch, generator)
        vectors = self.condition.encode(batch)
        return found if vectors is None else {**found, "representations": vectors}

    def representation_fingerprint(self) -> str | None:
        """The representation encoder's."""
        return self.condition.fingerprint

    def pipeline(self, networks: Networks) -> MAGEPipeline:
        """Pipeline of this transformer, the frozen tokenizer and the representation diffusion."""
        from pipelines.mage import MAGEPipeline

        transformer = cast(MAGETransformer, networks["transformer"])
        representation = self.condition.representation(transformer)
        return MAGEPipeline(transformer, self.tokenizer, self.sampling_defaults(), representation)
