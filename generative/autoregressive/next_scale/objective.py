"""Next-scale prediction: cross-entropy of all tokens of all scales (arXiv 2404.02905, eq. 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.autoregressive.next_scale.scheduler import check_pyramid
from generative.autoregressive.next_scale.var import VAR
from generative.autoregressive.options import VAROptions
from generative.autoregressive.token_sampling import check_sampling_options
from generative.core.ema import EMAProfiles
from generative.core.errors import UserError
from generative.core.guidance import check_guidance
from generative.core.objective import OptimizerFactory
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.layers.cross_entropy import token_cross_entropy
from generative.tokenizers.base import ImageTokenizer
from generative.tokenizers.encoded_objective import EncodedObjective

if TYPE_CHECKING:
    from pipelines.var import VARPipeline

# Parameters with more than one dimension that the official script keeps from weight decay (its nowd_keys); the class embedding
# is decayed.
UNDECAYED = ("start_embedding", "position_embedding", "level_embedding", "log_scale", "modulation_table")


class VARObjective(EncodedObjective):
    """Cross-entropy of every token given the class and all smaller scales; one network, one phase.

    Args:
        transformer: Predicts the tokens; codes, scales and channels must be the tokenizer's.
        tokenizer: A ``MultiScaleVQTokenizer``, frozen; encodes images on the fly unless the batch brings ``tokens``, and makes
            what the transformer reads.
        optimizer: Makes the optimizer; weight decay is kept from 1-D parameters, positions, levels and the shared modulations'
            tables, as officially.
        label_dropout: Share of labels replaced by the null condition.
        label_smoothing: Share of each target spread evenly over all codes.
        ema: Decay of the average that samples; None samples from the weights themselves, as the paper does.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.
    """

    def __init__(
        self,
        transformer: VAR,
        tokenizer: ImageTokenizer,
        optimizer: OptimizerFactory,
        label_dropout: float = 0.1,
        label_smoothing: float = 0.0,
        ema: EMAProfiles | None = None,
        sampling: VAROptions = VAROptions(),
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        pyramid = check_pyramid(transformer, tokenizer)
        check_sampling_options(sampling.temperature, sampling.top_k, sampling.top_p)
        check_guidance(sampling.guidance_scale, sampling.guidance_schedule, sampling.guidance_interval)
        super().__init__("transformer", transformer, pyramid, optimizer, ema, label_dropout)
        self.tokenizer = pyramid
        self.label_smoothing = label_smoothing
        self.sampling = sampling

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Mean cross-entropy over the tokens of all scales, in nats.

        Args:
            networks: ``transformer`` is used.
            batch: ``images`` or ``tokens``, and ``class_labels``.
            context: Its generator is the source of label dropout.

        Returns:
            ``loss`` (the paper's L_m; with label smoothing) and ``last_scale_loss`` (its L_t; without), in nats; ``accuracy`` and
            ``last_scale_accuracy``, the shares of tokens that are the most probable one.
        """
        tokens, labels = self.inputs(batch, context)  # (B, L), (B,)
        with torch.no_grad():
            inputs = self.tokenizer.teacher_inputs(tokens)  # (B, L - n_0, C)
        logits = networks["transformer"](inputs, labels)  # (B, L, V)
        last = self.last_scale(logits, tokens)  # first: the logits are overwritten
        loss, accuracy = token_cross_entropy(logits, tokens, self.label_smoothing)
        return {"loss": loss, "accuracy": accuracy} | last

    @torch.no_grad()
    def last_scale(self, logits: Tensor, tokens: Tensor) -> Losses:
        """Cross-entropy without label smoothing and accuracy of the last scale, of logits (B, L, V) and tokens (B, L)."""
        count = self.tokenizer.patch_nums[-1] ** 2
        logits, targets = logits[:, -count:].flatten(0, 1).float(), tokens[:, -count:].flatten()  # (N, V), (N,)
        # The maximum costs less than its index.
        is_best = logits.gather(1, targets[:, None])[:, 0] >= logits.amax(dim=1)  # (N,)
        return {"last_scale_loss": F.cross_entropy(logits, targets), "last_scale_accuracy": is_best.float().mean()}

    def parameter_groups(self, optimizer: str) -> list[dict[str, Any]]:
        """Matrices and the class embedding with the optimizer's weight decay; all else without."""
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.networks["transformer"].named_parameters():
            is_kept = parameter.ndim < 2 or any(part in UNDECAYED for part in name.split("."))
            (others if is_kept else decayed).append(parameter)
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]

    def pipeline(self, networks: Networks) -> VARPipeline:
        """Pipeline of this transformer and the frozen tokenizer."""
        from pipelines.var import VARPipeline

        return VARPipeline(cast(VAR, networks["transformer"]), self.tokenizer, self.sampling_defaults())
