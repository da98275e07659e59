"""Next sub-token prediction over the tokens of an image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch

from generative.autoregressive.next_token.objective import NextTokenObjective
from generative.autoregressive.options import SubTokenOptions
from generative.autoregressive.sub_token.magvit2 import MAGVIT2Transformer
from generative.autoregressive.sub_token.scheduler import check_sub_token_options
from generative.core.ema import EMAProfiles
from generative.core.objective import OptimizerFactory
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.layers.cross_entropy import token_cross_entropy
from generative.tokenizers.base import ImageTokenizer

if TYPE_CHECKING:
    from pipelines.magvit2 import MAGVIT2Pipeline


class MAGVIT2Objective(NextTokenObjective):
    """Sum over sub-tokens of the mean cross-entropy of each (Open-MAGVIT2, arXiv 2409.04410, eq. 8).

    Args:
        transformer: Predicts the sub-tokens; its number of codes and grid must be the tokenizer's.
        tokenizer: Frozen; encodes images on the fly unless the batch brings ``tokens``.
        optimizer: Makes the optimizer; weight decay is kept from 1-D parameters.
        label_dropout: Share of labels replaced by the null condition.
        ema: Decay of the average that samples; None samples from the weights themselves.
        decay_embeddings: Whether weight decay reaches embeddings too (the official code's does).
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.
    """

    def __init__(
        self,
        transformer: MAGVIT2Transformer,
        tokenizer: ImageTokenizer,
        optimizer: OptimizerFactory,
        label_dropout: float = 0.1,
        ema: EMAProfiles | None = None,
        decay_embeddings: bool = True,
        sampling: SubTokenOptions = SubTokenOptions(),
    ) -> None:
        check_sub_token_options(len(transformer.bits), **{name: getattr(sampling, name) for name in sampling.names()})
        super().__init__(transformer, tokenizer, optimizer, label_dropout, ema, decay_embeddings, sampling)

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Sum of the sub-tokens' mean cross-entropies, in nats.

        Args:
            networks: ``transformer`` is used.
            batch: ``images`` or ``tokens``, and ``class_labels``.
            context: Its generator is the source of label dropout.

        Returns:
            ``loss``; ``loss_k`` and ``accuracy_k`` of each sub-token k; ``bits_per_token``.
        """
        tokens, labels = self.inputs(batch, context)  # (B, L), (B,)
        transformer = cast(MAGVIT2Transformer, self.networks["transformer"])
        targets = transformer.split(tokens)  # (B, L, K)
        losses: Losses = {}
        parts = []
        for k, logits in enumerate(networks["transformer"](tokens, labels)):  # (B, L, 2^bits[k])
            part, losses[f"accuracy_{k}"] = token_cross_entropy(logits, targets[..., k])
            losses[f"loss_{k}"] = part.detach()
            parts.append(part)
        total = torch.stack(parts).sum()
        return {"loss": total, "bits_per_token": total.detach() / math.log(2), **losses}

    def pipeline(self, networks: Networks) -> MAGVIT2Pipeline:
        """Pipeline of this transformer and the frozen tokenizer."""
        from pipelines.magvit2 import MAGVIT2Pipeline

        transformer = cast(MAGVIT2Transformer, networks["transformer"])
        return MAGVIT2Pipeline(transformer, self.tokenizer, self.sampling_defaults())
