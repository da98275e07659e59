"""What the objectives of masked discrete models share: a frozen tokenizer, one transformer, sampling options."""

from __future__ import annotations

from typing import Any

from diffusers import ModelMixin
from torch import nn

from generative.autoregressive.masked.parallel_decoding import check_choice_temperature, masked_counts
from generative.autoregressive.options import MaskGITOptions
from generative.autoregressive.token_sampling import check_sampling_options
from generative.core.ema import EMAProfiles
from generative.core.guidance import check_guidance
from generative.core.objective import OptimizerFactory
from generative.tokenizers.base import ImageTokenizer
from generative.tokenizers.encoded_objective import EncodedObjective


class MaskedTokenObjective(EncodedObjective):
    """One transformer learns to fill in what was masked of an image's tokens; one phase.

    Args:
        transformer: Predicts; its constructor has ``num_classes``.
        tokenizer: Frozen; encodes images on the fly unless the batch brings ``tokens``.
        optimizer: Makes the optimizer; weight decay is kept from embeddings and 1-D parameters.
        label_dropout: Share of labels replaced by the null condition.
        ema: Decay of the average that samples; None samples from the weights themselves.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(
        self,
        transformer: ModelMixin,
        tokenizer: ImageTokenizer,
        optimizer: OptimizerFactory,
        label_dropout: float,
        ema: EMAProfiles | None,
        sampling: MaskGITOptions,
    ) -> None:
        check_sampling_options(sampling.temperature, sampling.top_k, sampling.top_p)
        check_choice_temperature(sampling.choice_temperature)
        masked_counts(tokenizer.sequence_length, sampling.num_inference_steps)
        check_guidance(
            sampling.guidance_scale, sampling.guidance_schedule, sampling.guidance_interval, sampling.guidance_exponent
        )
        super().__init__("transformer", transformer, tokenizer, optimizer, ema, label_dropout)
        self.tokenizer = tokenizer
        self.sampling = sampling

    def parameter_groups(self, optimizer: str) -> list[dict[str, Any]]:
        """Matrices with the optimizer's weight decay; embeddings and 1-D parameters without."""
        network = self.networks["transformer"]
        embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
        decayed = [p for p in network.parameters() if p.ndim >= 2 and id(p) not in embeddings]
        others = [p for p in network.parameters() if p.ndim < 2 or id(p) in embeddings]
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
