"""Next-token prediction over the tokens of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from generative.autoregressive.decoding import check_sampling_options, position_guidance
from generative.autoregressive.transformer import ImageTransformer
from generative.core.ema import EMAProfile, EMASpec
from generative.core.errors import UserError
from generative.core.labels import drop_labels
from generative.core.objective import Objective, OptimizerFactory, Phase
from generative.core.types import Batch, Losses, Networks
from generative.tokenizers.base import ImageTokenizer, check_match

if TYPE_CHECKING:
    from pipelines.autoregressive import AutoregressiveImagePipeline


class AutoregressiveObjective(Objective):
    """Cross-entropy of every token given the class and the tokens before it; one network, one phase.

    Args:
        transformer: Predicts the tokens; its number of codes and grid must be the tokenizer's.
        tokenizer: Frozen; encodes images on the fly unless the batch brings ``tokens``.
        optimizer: Makes the optimizer; weight decay is kept from embeddings and 1-D parameters.
        label_dropout: Share of labels replaced by the null condition.
        label_smoothing: Share of each target spread evenly over all codes.
        ema: Decay law of the average that samples; None samples from the weights themselves.
        guidance_scale: Used for the grids and scores made during training and kept with the run.
        temperature: Likewise.
        top_k: Likewise.
        top_p: Likewise.
    """

    def __init__(
        self,
        transformer: ImageTransformer,
        tokenizer: ImageTokenizer,
        optimizer: OptimizerFactory,
        label_dropout: float = 0.1,
        label_smoothing: float = 0.0,
        ema: EMAProfile | None = None,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> None:
        for name, value in (("label_dropout", label_dropout), ("label_smoothing", label_smoothing)):
            if not 0 <= value < 1:
                raise UserError(f"{name} must be in [0, 1), got {value}")
        check_match(transformer, tokenizer)
        check_sampling_options(temperature, top_k, top_p)
        position_guidance(guidance_scale, tokenizer.sequence_length)
        self.networks = {"transformer": transformer}
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.frozen = {"tokenizer": self.tokenizer}
        self.optimizers = {"transformer": optimizer}
        self.ema = {} if ema is None else {"transformer": EMASpec("transformer", ema)}
        self.num_classes = transformer.config.num_classes
        self.image_size = tokenizer.image_size
        self.label_dropout = label_dropout
        self.label_smoothing = label_smoothing
        self.sampling = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}

    def phases(self) -> list[Phase]:
        """One phase: the transformer."""
        return [Phase(name="transformer", networks=("transformer",), loss_fn=self.loss, optimizer="transformer")]

    def loss(self, networks: Networks, batch: Batch, generator: torch.Generator, cache: dict[str, Any]) -> Losses:
        """Mean cross-entropy over all tokens, in nats.

        Args:
            networks: ``transformer`` is used.
            batch: ``images`` or ``tokens``, and ``class_labels``.
            generator: Source of label dropout.
            cache: Not used.

        Returns:
            ``loss`` (with label smoothing), and without smoothing ``bits_per_token`` and ``accuracy``, the share of tokens that
            are the most probable one.
        """
        with torch.no_grad():
            tokens = batch["tokens"] if "tokens" in batch else self.tokenizer.encode(batch["images"])  # (B, L)
        labels = drop_labels(batch["class_labels"], self.num_classes, self.label_dropout, generator)
        logits = networks["transformer"](tokens, labels).float()  # (B, L, V)
        logits, targets = logits.flatten(0, 1), tokens.flatten()  # (B L, V), (B L,)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            nats = loss if self.label_smoothing == 0 else F.cross_entropy(logits, targets)
            accuracy = (logits.argmax(dim=-1) == targets).float().mean()
        return {"loss": loss, "bits_per_token": nats.detach() / math.log(2), "accuracy": accuracy}

    def parameter_groups(self, optimizer: str) -> list[dict[str, Any]]:
        """Matrices with the optimizer's weight decay; embeddings and norms without."""
        network = self.networks["transformer"]
        embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
        decayed = [p for p in network.parameters() if p.ndim >= 2 and id(p) not in embeddings]
        others = [p for p in network.parameters() if p.ndim < 2 or id(p) in embeddings]
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]

    def pipeline(self, networks: Networks) -> AutoregressiveImagePipeline:
        """Pipeline of this transformer and the frozen tokenizer."""
        from pipelines.autoregressive import AutoregressiveImagePipeline

        return AutoregressiveImagePipeline(
            cast(ImageTransformer, networks["transformer"]), self.tokenizer, dict(self.sampling_defaults())
        )

    def sampling_defaults(self) -> Mapping[str, Any]:
        """Guidance, temperature, top-k and top-p of the constructor."""
        return dict(self.sampling)
