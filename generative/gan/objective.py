"""Adversarial training of a class-conditional generator as phases of the one trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from generative.core.ema import EMAProfile, EMASpec
from generative.core.errors import UserError
from generative.core.objective import Objective, OptimizerFactory, Phase
from generative.core.types import Batch, Losses, Networks
from generative.gan.augment import AUGMENTATIONS, Augmentation, augment
from generative.gan.losses import ADVERSARIAL_LOSSES, AdversarialLoss, squared_gradient_norm
from generative.gan.sampling import check_truncation, draw_z
from generative.layers.batch_norm import recompute_statistics

if TYPE_CHECKING:
    from pipelines.gan import GANImagePipeline


class GANObjective(Objective):
    """Generator against discriminator.

    Each training step runs the discriminator's phase (``discriminator_steps`` times, fresh images each), an R1 phase every
    ``r1_interval`` steps if asked for, then the generator's phase. Both networks are in train mode throughout, as in BigGAN's
    code: batch statistics and spectral vectors move in every phase.

    Args:
        generator: ``(z (B, Z), class_labels (B,)) -> (B, 3, H, W)`` in [-1, 1], with attributes ``z_dim``, ``num_classes`` and
            ``image_size``.
        discriminator: ``(images, class_labels) -> (B,)`` logits, with attributes ``num_classes`` and ``image_size``.
        generator_optimizer: Makes the generator's optimizer.
        discriminator_optimizer: Makes the discriminator's optimizer.
        loss: The adversarial game.
        discriminator_steps: Discriminator steps for each generator step.
        ema: Decay law of the generator's average, which is what samples. None samples from the generator itself.
        ema_buffers: ``average`` averages batch-norm statistics and spectral vectors too (BigGAN); ``copy`` takes the newest.
        augmentation: Differentiable augmentations of every image that the discriminator sees, real or generated.
        r1_weight: gamma of the R1 penalty gamma/2 |grad D(real)|^2; 0 for none.
        r1_interval: Steps between R1 phases; the penalty is scaled up by as much.
        standing_statistics_batches: Batches over which batch norm's statistics are taken anew before sampling; 0 keeps those that
            training averaged.
        standing_statistics_batch_size: Images in each of those batches.
        truncation: Threshold of the truncated noise that training samples are drawn with; None for no truncation.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        generator_optimizer: OptimizerFactory,
        discriminator_optimizer: OptimizerFactory,
        loss: AdversarialLoss = "hinge",
        discriminator_steps: int = 1,
        ema: EMAProfile | None = None,
        ema_buffers: Literal["copy", "average"] = "average",
        augmentation: tuple[Augmentation, ...] = (),
        r1_weight: float = 0.0,
        r1_interval: int = 16,
        standing_statistics_batches: int = 0,
        standing_statistics_batch_size: int = 64,
        truncation: float | None = None,
    ) -> None:
        for name in ("num_classes", "image_size"):
            ours, theirs = getattr(generator, name), getattr(discriminator, name)
            if ours != theirs:
                raise UserError(f"the generator's {name} is {ours} but the discriminator's is {theirs}; make them equal")
        if loss not in ADVERSARIAL_LOSSES:
            raise UserError(f"loss must be one of {', '.join(ADVERSARIAL_LOSSES)}, got {loss!r}")
        unknown = [name for name in augmentation if name not in AUGMENTATIONS]
        if unknown:
            raise UserError(f"augmentation must name some of {', '.join(AUGMENTATIONS)}, got {unknown[0]!r}")
        for name, value, least in (
            ("discriminator_steps", discriminator_steps, 1),
            ("r1_weight", r1_weight, 0),
            ("r1_interval", r1_interval, 1),
            ("standing_statistics_batches", standing_statistics_batches, 0),
            ("standing_statistics_batch_size", standing_statistics_batch_size, 1),
        ):
            if value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        check_truncation(truncation)
        self.networks = {"generator": generator, "discriminator": discriminator}
        self.frozen = {}
        self.optimizers = {"generator": generator_optimizer, "discriminator": discriminator_optimizer}
        self.ema = {} if ema is None else {"generator": EMASpec("generator", ema, ema_buffers)}
        self.num_classes: int = generator.num_classes  # type: ignore[assignment]
        self.image_size: int = generator.image_size  # type: ignore[assignment]
        self.z_dim: int = generator.z_dim  # type: ignore[assignment]
        self.loss = ADVERSARIAL_LOSSES[loss]
        self.discriminator_steps = discriminator_steps
        self.augmentation = tuple(augmentation)
        self.r1_weight = r1_weight
        self.r1_interval = r1_interval
        self.standing_statistics_batches = standing_statistics_batches
        self.standing_statistics_batch_size = standing_statistics_batch_size
        self.truncation = truncation

    def phases(self) -> list[Phase]:
        """Discriminator, R1 if asked for, generator."""
        phases = [
            Phase(
                name="discriminator",
                networks=("discriminator",),
                loss_fn=self.discriminator_loss,
                optimizer="discriminator",
                repeats=self.discriminator_steps,
            )
        ]
        if self.r1_weight > 0:
            phases.append(
                Phase(
                    name="r1",
                    networks=("discriminator",),
                    loss_fn=self.r1_loss,
                    optimizer="discriminator",
                    interval=self.r1_interval,
                )
            )
        phases.append(Phase(name="generator", networks=("generator",), loss_fn=self.generator_loss, optimizer="generator"))
        return phases

    def draw_inputs(self, batch_size: int, generator: torch.Generator, truncation: float | None = None) -> tuple[Tensor, Tensor]:
        """Noise (B, Z) and uniformly random class labels (B,) for generated images."""
        z = draw_z(batch_size, self.z_dim, generator, truncation)
        labels = torch.randint(self.num_classes, (batch_size,), generator=generator, device=generator.device)
        return z, labels

    def discriminator_loss(self, networks: Networks, batch: Batch, generator: torch.Generator, cache: dict[str, Any]) -> Losses:
        """Loss of the discriminator on real images and as many generated ones; see ``LossFn``."""
        real, real_labels = batch["images"], batch["class_labels"]
        z, fake_labels = self.draw_inputs(len(real), generator)
        with torch.no_grad():
            fake = networks["generator"](z, fake_labels).to(real.dtype)  # (B, 3, H, W)
        # One forward for both: the discriminator treats each image alone, so it equals two, and is faster.
        images = augment(torch.cat([real, fake]), self.augmentation, generator)  # (2B, 3, H, W)
        logits = networks["discriminator"](images, torch.cat([real_labels, fake_labels])).float()  # (2B,)
        real_logits, fake_logits = logits.chunk(2)
        return {
            "loss": self.loss.discriminator(real_logits, fake_logits),
            "real_logits": real_logits.detach().mean(),
            "fake_logits": fake_logits.detach().mean(),
        }

    def r1_loss(self, networks: Networks, batch: Batch, generator: torch.Generator, cache: dict[str, Any]) -> Losses:
        """R1 penalty on real images (arXiv 1801.04406), scaled for being evaluated every ``r1_interval`` steps only."""
        images = batch["images"].detach().clone().requires_grad_(True)
        augmented = augment(images, self.augmentation, generator)
        logits = networks["discriminator"](augmented, batch["class_labels"]).float()
        penalty = squared_gradient_norm(logits, images).mean()
        return {"loss": 0.5 * self.r1_weight * self.r1_interval * penalty, "penalty": penalty.detach()}

    def generator_loss(self, networks: Networks, batch: Batch, generator: torch.Generator, cache: dict[str, Any]) -> Losses:
        """Loss of the generator on as many images as the batch holds; see ``LossFn``."""
        z, labels = self.draw_inputs(len(batch["class_labels"]), generator)
        fake = networks["generator"](z, labels)  # (B, 3, H, W)
        logits = networks["discriminator"](augment(fake, self.augmentation, generator), labels).float()  # (B,)
        return {"loss": self.loss.generator(logits)}

    def prepare_for_sampling(self, networks: Networks, generator: torch.Generator) -> None:
        """Take batch norm's statistics anew under the noise used for sampling, if ``standing_statistics_batches`` says so."""
        if self.standing_statistics_batches == 0:
            return
        network = networks["generator"]
        device = next(network.parameters()).device

        def forward() -> None:
            z, labels = self.draw_inputs(self.standing_statistics_batch_size, generator, self.truncation)
            network(z.to(device), labels.to(device))

        recompute_statistics(network, forward, self.standing_statistics_batches)

    def sampling_defaults(self) -> Mapping[str, Any]:
        """The truncation threshold."""
        return {"truncation": self.truncation}

    def pipeline(self, networks: Networks) -> GANImagePipeline:
        """Pipeline around the generator."""
        from pipelines.gan import GANImagePipeline

        return GANImagePipeline(generator=networks["generator"], sampling_defaults=dict(self.sampling_defaults()))
