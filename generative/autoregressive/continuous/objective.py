"""Training of MAR and eMIGM: mask tokens, and let the diffusion head draw the masked ones given what the others tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.autoregressive.continuous.diffusion_head import head_losses, head_process
from generative.autoregressive.continuous.emigm import EMIGM
from generative.autoregressive.continuous.mar import MAR
from generative.autoregressive.continuous.masked_autoencoder import MaskedAutoencoder
from generative.autoregressive.masking import (
    MaskDraw,
    MaskingLaw,
    ScheduledMasking,
    TruncatedNormalMasking,
)
from generative.autoregressive.options import EMIGMOptions, MAROptions
from generative.core.ema import EMAProfiles
from generative.core.errors import UserError
from generative.core.guidance import check_guidance
from generative.core.objective import OptimizerFactory
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.tokenizers.encoded_objective import EncodedObjective
from generative.tokenizers.latents import check_latents

if TYPE_CHECKING:
    from pipelines.emigm import EMIGMPipeline
    from pipelines.mar import MARPipeline


class ContinuousTokenObjective(EncodedObjective):
    """Base of ``MARObjective`` and ``EMIGMObjective``.

    The loss is the mean over masked tokens, and over noised copies of each, of squared error + variational bound. The head is
    evaluated for masked tokens only: the official code evaluates it for all and masks the loss, which is the same mean.

    Args:
        network: Trained network.
        masking: Distribution of the masks.
        optimizer: Makes the optimizer; weight decay is kept from biases, norms and the head, as officially.
        ema: Decay of the average that samples; None samples from the network itself.
        autoencoder: Frozen; its latents are cut into tokens. None takes pixels for latents.
        label_dropout: Share of labels replaced by the null condition.
        diffusion_batch_mul: Noised copies of each token per step.

    Raises:
        UserError: If an option is out of range, or the autoencoder's latents are not the network's.
    """

    def __init__(
        self,
        network: MaskedAutoencoder,
        masking: MaskingLaw,
        optimizer: OptimizerFactory,
        ema: EMAProfiles | None,
        autoencoder: ModelMixin | None,
        label_dropout: float,
        diffusion_batch_mul: int,
    ) -> None:
        if diffusion_batch_mul < 1:
            raise UserError(f"diffusion_batch_mul must be at least 1, got {diffusion_batch_mul}")
        check_latents(network.config.in_channels, autoencoder)
        super().__init__("network", network, autoencoder, optimizer, ema, label_dropout)
        self.autoencoder = autoencoder
        self.process = head_process()
        self.masking = masking
        self.diffusion_batch_mul = diffusion_batch_mul

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Sum over noised masked tokens, see ``LossFn``.

        Args:
            networks: ``network`` is used.
            batch: ``images`` or ``latents``, and ``class_labels``.
            context: Its generator is the source of masks, label dropout, timesteps and noise.

        Returns:
            ``loss`` as a sum, ``denominator``, and the means ``mse``, ``variational_bound`` (bits a number), ``masked_share``.
        """
        network = cast(MaskedAutoencoder, networks["network"])
        latents, labels = self.inputs(batch, context)  # (B, C, h, w), (B,)
        device = latents.device
        tokens = network.patchify(latents)  # (B, L, C)
        draw = self.masking.draw(len(tokens), network.num_tokens, context.generator)
        draw = MaskDraw(draw.masked.to(device), None if draw.weights is None else draw.weights.to(device))
        count = int(draw.masked.sum()) * self.diffusion_batch_mul  # R N
        timesteps = self.process.draw_timesteps(count, context.generator).to(device)
        noise = torch.randn(count, network.token_size, generator=context.generator, device=context.generator.device).to(device)
        mse, bound = self.token_losses(network, tokens, draw.masked, labels, timesteps, noise)
        total = mse + bound
        if draw.weights is not None:
            total = total * self.copies(draw.weights[:, None].expand_as(draw.masked)[draw.masked])
        denominator = torch.tensor(float(count), device=device)
        return {
            "loss": total.sum(),
            "denominator": denominator,
            "mse": mse.mean(),
            "variational_bound": bound.mean(),
            "masked_share": draw.masked.float().mean(),
        }

    def copies(self, values: Tensor) -> Tensor:
        """Repeat the values of N tokens (N, ...) for their noised copies, (R N, ...), copy by copy."""
        return values.repeat(self.diffusion_batch_mul, *[1] * (values.dim() - 1))

    def token_losses(
        self, network: MaskedAutoencoder, tokens: Tensor, masked: Tensor, class_labels: Tensor, timesteps: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses of R noised copies of the N masked tokens.

        Args:
            network: The network.
            tokens: (B, L, C) clean tokens.
            masked: (B, L) bool.
            class_labels: (B,) int64, some of them dropped.
            timesteps: (R N,) int64, copy by copy.
            noise: (R N, C) standard normal.

        Returns:
            Squared error (R N,) and variational bound (R N,) in bits per number.
        """
        target = self.copies(tokens[masked].float())  # (R N, C)
        noised = self.process.add_noise(target, noise, timesteps)
        shape = (self.diffusion_batch_mul, -1)
        output = network(tokens, masked, class_labels, noised.unflatten(0, shape), timesteps.unflatten(0, shape))
        return head_losses(self.process, output.flatten(0, 1).float(), target, noise, noised, timesteps)

    def parameter_groups(self, optimizer: str) -> list[dict[str, Any]]:
        """Matrices and embeddings of the transformer with the optimizer's weight decay; vectors and the head without."""
        parameters = list(self.networks["network"].named_parameters())
        kept = [p for name, p in parameters if p.ndim < 2 or name.startswith("head.")]
        decayed = [p for name, p in parameters if not (p.ndim < 2 or name.startswith("head."))]
        return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]


class MARObjective(ContinuousTokenObjective):
    """MAR's training (arXiv 2406.11838).

    Args:
        network: Trained network.
        optimizer: See ``ContinuousTokenObjective``.
        ema: See ``ContinuousTokenObjective``.
        autoencoder: See ``ContinuousTokenObjective``.
        label_dropout: See ``ContinuousTokenObjective``.
        mask_ratio_min: Smallest share of masked tokens.
        diffusion_batch_mul: See ``ContinuousTokenObjective``.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.
    """

    def __init__(
        self,
        network: MAR,
        optimizer: OptimizerFactory,
        ema: EMAProfiles | None = None,
        autoencoder: ModelMixin | None = None,
        label_dropout: float = 0.1,
        mask_ratio_min: float = 0.7,
        diffusion_batch_mul: int = 4,
        sampling: MAROptions = MAROptions(),
    ) -> None:
        masking = TruncatedNormalMasking(mask_ratio_min)
        super().__init__(network, masking, optimizer, ema, autoencoder, label_dropout, diffusion_batch_mul)
        check_guidance(sampling.guidance_scale, sampling.guidance_schedule)
        self.sampling = sampling

    def pipeline(self, networks: Networks) -> MARPipeline:
        """Pipeline of this network and the autoencoder."""
        from pipelines.mar import MARPipeline

        return MARPipeline(cast(ModelMixin, networks["network"]), self.autoencoder, self.sampling_defaults())


class EMIGMObjective(ContinuousTokenObjective):
    """eMIGM's training (arXiv 2503.07197); the schedule of its masks is the network's ``mask_strategy``.

    Args:
        network: Trained network.
        optimizer: See ``ContinuousTokenObjective``.
        ema: See ``ContinuousTokenObjective``.
        autoencoder: See ``ContinuousTokenObjective``.
        label_dropout: See ``ContinuousTokenObjective``.
        min_time: Smallest time of a mask (official ``clamp_t_min``).
        weighted_loss: Weight losses by gamma' / gamma. Without ``drop_masked`` each image then has its own time, as officially.
        diffusion_batch_mul: See ``ContinuousTokenObjective``.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.
    """

    def __init__(
        self,
        network: EMIGM,
        optimizer: OptimizerFactory,
        ema: EMAProfiles | None = None,
        autoencoder: ModelMixin | None = None,
        label_dropout: float = 0.1,
        min_time: float = 0.2,
        weighted_loss: bool = False,
        diffusion_batch_mul: int = 4,
        sampling: EMIGMOptions = EMIGMOptions(),
    ) -> None:
        per_image = weighted_loss and not network.config.drop_masked
        masking = ScheduledMasking(network.config.mask_strategy, min_time, weighted_loss, per_image)
        super().__init__(network, masking, optimizer, ema, autoencoder, label_dropout, diffusion_batch_mul)
        check_guidance(sampling.guidance_scale, sampling.guidance_schedule, sampling.guidance_interval)
        self.sampling = sampling

    def pipeline(self, networks: Networks) -> EMIGMPipeline:
        """Pipeline of this network and the autoencoder."""
        from pipelines.emigm import EMIGMPipeline

        return EMIGMPipeline(cast(ModelMixin, networks["network"]), self.autoencoder, self.sampling_defaults())
