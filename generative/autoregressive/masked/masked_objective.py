"""What the objectives of masked discrete models share: a frozen tokenizer, one transformer, sampling options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import ModelMixin
from torch import nn

from generative.autoregressive.masked.parallel_decoding import check_choice_temperature, masked_counts
from generative.autoregressive.token_sampling import check_sampling_options
from generative.core.ema import EMAProfile
from generative.core.guidance import GuidanceInterval, GuidanceSchedule, step_guidance
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
        ema: Decay law of the average that samples; None samples from the weights themselves.
        num_inference_steps: Used for the grids and scores made during training and kept with the run.
        choice_temperature: Likewise.
        guidance_scale: Likewise.
        guidance_schedule: Likewise.
        guidance_interval: Likewise.
        guidance_exponent: Likewise.
        temperature: Likewise.
        top_k: Likewise.
        top_p: Likewise.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(
        self,
        transformer: ModelMixin,
        tokenizer: ImageTokenizer,
        optimizer: OptimizerFactory,
        label_dropout: float,
        ema: EMAProfile | None,
        num_inference_steps: int,
        choice_temperature: float,
        guidance_scale: float,
        guidance_schedule: GuidanceSchedule,
        guidance_interval: GuidanceInterval | None,
        guidance_exponent: float,
        temperature: float,
        top_k: int | None,
        top_p: float,
    ) -> None:
        check_sampling_options(temperature, top_k, top_p)
        check_choice_temperature(choice_temperature)
        masked_counts(tokenizer.sequence_length, num_inference_steps)
        step_guidance(guidance_scale, num_inference_steps, guidance_schedule, guidance_interval, guidance_exponent)
        super().__init__("transformer", transformer, tokenizer, optimizer, ema, label_dropout)
        self.tokenizer = tokenizer
        self.sampling = {
            "num_inference_steps": num_inference_steps,
            "choice_temperature": choice_temperature,
            "guidance_scale": guidance_scale,
            "guidance_schedule": guidance_schedule,
            "guidance_interval": guidance_interval,
            "guidance_exponent": guidance_exponent,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }

    def parameter_groups(self, optimizer: str) -> list[dict[str, Any]]:
        """Matrices with the optimizer's weight decay; embeddings and 1-D parameters without."""
        network = self.networks["transformer"]
        embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
        decayed = [p for p in network.parameters() if p.ndim >= 2 and id(p) not in embeddings]
        others = [p for p in network.parameters() if p.ndim < 2 or id(p) in embeddings]
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]

    def sampling_defaults(self) -> Mapping[str, Any]:
        """The sampling options of the constructor."""
        return dict(self.sampling)
