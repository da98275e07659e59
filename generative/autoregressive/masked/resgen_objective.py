"""Training of ResGen: the likelihood of what is masked of residual codes (arXiv 2412.10208; see ``resgen`` for what is ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from generative.autoregressive.masked.masked_objective import MaskedTokenObjective
from generative.autoregressive.masked.parallel_decoding import CosineMasking
from generative.autoregressive.masked.resgen import ResGenTransformer, check_residual_match
from generative.autoregressive.masked.residual_decoding import code_vectors, known_codes
from generative.autoregressive.masking import MaskingLaw
from generative.autoregressive.options import ResGenOptions
from generative.core.ema import EMAProfiles
from generative.core.errors import UserError
from generative.core.objective import OptimizerFactory
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.tokenizers.base import ImageTokenizer
from generative.tokenizers.rvq import RVQTokenizer

if TYPE_CHECKING:
    from pipelines.resgen import ResGenPipeline


class ResGenObjective(MaskedTokenObjective):
    """Negative log-likelihood of the sum z of a position's masked embeddings under the predicted mixture.

    As a variational bound: codes x are generated through z with q(z|x) = N(sum of their embeddings, s^2 I). With s fixed, the
    bound is E_q[log p(z)] and terms without parameters (quantising z gives x), so s is noise on the target. An unweighted mean
    over the positions with masked codes takes the place of the bound's weights over masks, as in other masked models.

    Args:
        transformer: Predicts; its depth, width and grid of codes must be the tokenizer's. The scales of its input and output are
            measured on the first batch of a run.
        tokenizer: An ``RVQTokenizer``, frozen; encodes images on the fly unless the batch brings ``tokens`` (B, L depth), depth
            fastest.
        optimizer: See ``MaskedTokenObjective``.
        masking: Distribution of the masks over the L depth codes; None for ``CosineMasking``.
        posterior_std: s, over the expected size of a value of z (ours).
        label_dropout: Share of labels replaced by the null condition.
        ema: Decay of the average that samples; None samples from the weights themselves.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.

    Raises:
        UserError: If transformer and tokenizer do not fit, or an option is out of range.
    """

    tokenizer: RVQTokenizer

    def __init__(
        self,
        transformer: ResGenTransformer,
        tokenizer: ImageTokenizer,
        optimizer: OptimizerFactory,
        masking: MaskingLaw | None = None,
        posterior_std: float = 0.05,
        label_dropout: float = 0.1,
        ema: EMAProfiles | None = None,
        sampling: ResGenOptions = ResGenOptions(),
    ) -> None:
        if not posterior_std >= 0:
            raise UserError(f"posterior_std must be 0 or more, got {posterior_std}")
        residual = check_residual_match(transformer, tokenizer)
        super().__init__(
            transformer,
            residual,
            optimizer,
            label_dropout,
            ema,
            sampling,
        )
        self.masking = masking or CosineMasking()
        self.posterior_std = posterior_std
        self.shard_obstacle = "ResGen's loss reads a weight of the network beside calling it"

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Negative log-likelihood of the masked sums, in nats per value.

        Args:
            networks: ``transformer`` is used.
            batch: ``images`` or ``tokens``, and ``class_labels``.
            context: Its generator is the source of the masks, of the noise on the targets and of label dropout.

        Returns:
            ``loss``, the sum over positions with masked codes, and their count as ``denominator``; ``mean_square_error`` of the
            mixture's mean there, 1 for a prediction of 0.
        """
        network = cast(ResGenTransformer, networks["transformer"])
        tokens, labels = self.inputs(batch, context)  # (B, L depth), (B,)
        with torch.no_grad():
            ids = tokens.unflatten(1, (-1, self.tokenizer.depth))  # (B, L, depth)
            masks = self.masking.draw(len(ids), ids[0].numel(), context.generator)
            num_known = (~masks.masked).unflatten(1, ids.shape[1:]).sum(dim=-1)  # (B, L)
            codes = code_vectors(ids, self.tokenizer.codebooks_tensor)  # (B, L, depth, D)
            if context.step == 0 and not network.is_measured:  # asked in one step only: it waits for the device
                network.measure_remainder_scales(codes)
            known, target = self.split(codes, num_known, network, context.generator)  # (B, L, D) each
        mixture = network.mixture(network(known, num_known, labels))
        has_target = num_known < self.tokenizer.depth  # (B, L)
        losses = -mixture.log_prob(target) / target.shape[-1]  # (B, L)
        if masks.weights is not None:
            losses = losses * masks.weights[:, None]
        count = has_target.sum()
        with torch.no_grad():
            error = (mixture.mean - target).square().mean(dim=-1)
        return {
            "loss": torch.where(has_target, losses, 0).sum(),
            "denominator": count,
            "mean_square_error": (error * has_target).sum() / count.clamp(min=1),  # a draw may leave a batch without masks
        }

    def split(
        self, codes: Tensor, num_known: Tensor, network: ResGenTransformer, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Sum the embeddings of known codes, and of masked ones, the latter scaled for the network and with noise.

        Args:
            codes: (B, L, depth, D), their embeddings.
            num_known: (B, L).
            network: Knows the scales.
            generator: Source of the noise.

        Returns:
            Two (B, L, D) float32; the second is of no use where nothing is masked.
        """
        is_known = known_codes(num_known, codes.shape[-2])[..., None]
        remainder = (codes * ~is_known).sum(dim=-2) / network.scale_of(num_known)
        noise = torch.randn(remainder.shape, generator=generator, device=generator.device)
        return (codes * is_known).sum(dim=-2), remainder + self.posterior_std * noise

    def pipeline(self, networks: Networks) -> ResGenPipeline:
        """Pipeline of this transformer and the frozen tokenizer."""
        from pipelines.resgen import ResGenPipeline

        return ResGenPipeline(cast(ResGenTransformer, networks["transformer"]), self.tokenizer, self.sampling_defaults())
