"""Masked token prediction: the training of MaskGIT (arXiv 2202.04200, section 3.1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F

from generative.autoregressive.masked.masked_objective import MaskedTokenObjective
from generative.autoregressive.masked.maskgit import MaskGITTransformer
from generative.autoregressive.masked.parallel_decoding import CosineMasking
from generative.autoregressive.masking import MaskingLaw
from generative.autoregressive.options import MaskGITOptions
from generative.core.ema import EMAProfiles
from generative.core.errors import UserError
from generative.core.objective import OptimizerFactory
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.tokenizers.base import ImageTokenizer, check_match

if TYPE_CHECKING:
    from pipelines.maskgit import MaskGITPipeline


class MaskGITObjective(MaskedTokenObjective):
    """Cross-entropy of the masked tokens given the class and the others (eq. 1), with a cosine-distributed share masked.

    In eMIGM's view (arXiv 2503.07197) this is masked diffusion of discrete tokens, unweighted: its mask distributions can be
    ``masking`` (``ScheduledMasking(strategy="linear", weighted=True, per_image=True)`` is masked diffusion's likelihood bound).

    Args:
        transformer: Predicts the tokens; its number of codes and grid must be the tokenizer's.
        tokenizer: See ``MaskedTokenObjective``, as all that follow.
        optimizer: Likewise.
        masking: Distribution of the masks; None for ``CosineMasking``, the paper's.
        label_smoothing: Share of each target spread evenly over all codes (paper: 0.1).
        label_dropout: Share of labels replaced by the null condition (paper: 0, it has no guidance).
        ema: Decay of the average that samples; None samples from the weights themselves.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.
    """

    def __init__(
        self,
        transformer: MaskGITTransformer,
        tokenizer: ImageTokenizer,
        optimizer: OptimizerFactory,
        masking: MaskingLaw | None = None,
        label_smoothing: float = 0.1,
        label_dropout: float = 0.1,
        ema: EMAProfiles | None = None,
        sampling: MaskGITOptions = MaskGITOptions(),
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        check_match(transformer, tokenizer)
        super().__init__(
            transformer,
            tokenizer,
            optimizer,
            label_dropout,
            ema,
            sampling,
        )
        self.masking = masking or CosineMasking()
        self.label_smoothing = label_smoothing

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Cross-entropy over the masked tokens, in nats.

        Args:
            networks: ``transformer`` is used.
            batch: ``images`` or ``tokens``, and ``class_labels``.
            context: Its generator is the source of the masks and of label dropout.

        Returns:
            ``loss``, the sum over masked tokens (with label smoothing), their count as ``denominator``, and of the masked tokens
            ``bits_per_token`` (without smoothing) and ``accuracy``.
        """
        tokens, labels = self.inputs(batch, context)  # (B, L), (B,)
        network = networks["transformer"]
        masks = self.masking.draw(tokens.shape[0], tokens.shape[1], context.generator)
        is_masked = masks.masked  # (B, L)
        logits = network(tokens.masked_fill(is_masked, self.mask_token), labels).float()  # (B, L, V)
        log_probabilities = logits.log_softmax(dim=-1).transpose(1, 2)  # (B, V, L)
        nats = F.nll_loss(log_probabilities, tokens, reduction="none")  # (B, L)
        spread = -log_probabilities.mean(dim=1)  # (B, L), cross-entropy to the even distribution
        losses = (1 - self.label_smoothing) * nats + self.label_smoothing * spread  # (B, L)
        if masks.weights is not None:
            losses = losses * masks.weights[:, None]
        count = is_masked.sum()
        with torch.no_grad():
            some = count.clamp(min=1)  # a mask distribution may leave a batch without masks
            accuracy = ((logits.argmax(dim=-1) == tokens) & is_masked).sum() / some
            bits = (nats * is_masked).sum() / some / math.log(2)
        return {
            "loss": (losses * is_masked).sum(),
            "denominator": count,
            "bits_per_token": bits,
            "accuracy": accuracy,
        }

    @property
    def mask_token(self) -> int:
        """Id that stands for a masked token."""
        return self.tokenizer.num_codes

    def pipeline(self, networks: Networks) -> MaskGITPipeline:
        """Pipeline of this transformer and the frozen tokenizer."""
        from pipelines.maskgit import MaskGITPipeline

        return MaskGITPipeline(cast(MaskGITTransformer, networks["transformer"]), self.tokenizer, self.sampling_defaults())
