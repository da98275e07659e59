"""Next-token prediction over the tokens of an image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import ModelMixin
from torch import nn

from generative.autoregressive.next_token.transformer import ImageTransformer
from generative.autoregressive.options import NextTokenOptions
from generative.autoregressive.token_sampling import check_sampling_options
from generative.core.ema import EMAProfiles
from generative.core.errors import UserError
from generative.core.guidance import check_guidance
from generative.core.objective import OptimizerFactory
from generative.core.options import SamplingOptions
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.layers.cross_entropy import token_cross_entropy
from generative.tokenizers.base import ImageTokenizer, check_match
from generative.tokenizers.encoded_objective import EncodedObjective

if TYPE_CHECKING:
    from pipelines.autoregressive import AutoregressiveImagePipeline


class NextTokenObjective(EncodedObjective):
    """What objectives of next-token prediction share: a transformer, a frozen tokenizer, weight decay.

    Args:
        transformer: Predicts the tokens; its number of codes and grid must be the tokenizer's.
        tokenizer: Frozen; encodes images on the fly unless the batch brings ``tokens``.
        optimizer: Makes the optimizer.
        label_dropout: Share of labels replaced by the null condition.
        ema: Decay of the average that samples; None samples from the weights themselves.
        decay_embeddings: Whether weight decay reaches embeddings; 1-D parameters are always spared.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.
    """

    def __init__(
        self,
        transformer: ModelMixin,
        tokenizer: ImageTokenizer,
        optimizer: OptimizerFactory,
        label_dropout: float,
        ema: EMAProfiles | None,
        decay_embeddings: bool,
        sampling: SamplingOptions,
    ) -> None:
        check_match(transformer, tokenizer)
        super().__init__("transformer", transformer, tokenizer, optimizer, ema, label_dropout)
        self.tokenizer = tokenizer
        self.decay_embeddings = decay_embeddings
        self.sampling = sampling

    def parameter_groups(self, optimizer: str) -> list[dict[str, Any]]:
        """Matrices with the optimizer's weight decay, norms without; embeddings as ``decay_embeddings`` says."""
        network = self.networks["transformer"]
        embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
        spared = set() if self.decay_embeddings else embeddings
        decayed = [p for p in network.parameters() if p.ndim >= 2 and id(p) not in spared]
        others = [p for p in network.parameters() if p.ndim < 2 or id(p) in spared]
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


class AutoregressiveObjective(NextTokenObjective):
    """Cross-entropy of every token given the class and the tokens before it; one network, one phase.

    Args:
        transformer: Predicts the tokens; its number of codes and grid must be the tokenizer's.
        tokenizer: Frozen; encodes images on the fly unless the batch brings ``tokens``.
        optimizer: Makes the optimizer; weight decay is kept from 1-D parameters.
        label_dropout: Share of labels replaced by the null condition.
        label_smoothing: Share of each target spread evenly over all codes.
        ema: Decay of the average that samples; None samples from the weights themselves.
        decay_embeddings: Whether weight decay reaches embeddings too (LlamaGen).
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.
    """

    def __init__(
        self,
        transformer: ImageTransformer,
        tokenizer: ImageTokenizer,
        optimizer: OptimizerFactory,
        label_dropout: float = 0.1,
        label_smoothing: float = 0.0,
        ema: EMAProfiles | None = None,
        decay_embeddings: bool = False,
        sampling: NextTokenOptions = NextTokenOptions(),
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        check_sampling_options(sampling.temperature, sampling.top_k, sampling.top_p)
        check_guidance(
            sampling.guidance_scale, sampling.guidance_schedule, sampling.guidance_interval, sampling.guidance_exponent
        )
        if not transformer.config.null_class and (label_dropout > 0 or sampling.guidance_scale != 1):
            raise UserError("the transformer has null_class=False: label_dropout must be 0 and guidance_scale 1")
        super().__init__(transformer, tokenizer, optimizer, label_dropout, ema, decay_embeddings, sampling)
        self.label_smoothing = label_smoothing

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Mean cross-entropy over all tokens, in nats.

        Args:
            networks: ``transformer`` is used.
            batch: ``images`` or ``tokens``, and ``class_labels``.
            context: Its generator is the source of label dropout.

        Returns:
            ``loss`` (with label smoothing), and without smoothing ``bits_per_token`` and ``accuracy``, the share of tokens that
            are the most probable one.
        """
        tokens, labels = self.inputs(batch, context)  # (B, L), (B,)
        logits = networks["transformer"](tokens, labels)  # (B, L, V)
        with torch.no_grad():
            nats = None if self.label_smoothing == 0 else token_cross_entropy(logits, tokens)[0]
        loss, accuracy = token_cross_entropy(logits, tokens, self.label_smoothing)
        nats = loss if nats is None else nats
        return {"loss": loss, "bits_per_token": nats.detach() / math.log(2), "accuracy": accuracy}

    def pipeline(self, networks: Networks) -> AutoregressiveImagePipeline:
        """Pipeline of this transformer and the frozen tokenizer."""
        from pipelines.autoregressive import AutoregressiveImagePipeline

        return AutoregressiveImagePipeline(
            cast(ImageTransformer, networks["transformer"]), self.tokenizer, self.sampling_defaults()
        )
