"""AM-GAN (arXiv 1703.02000) as phases of the one trainer: ``GANObjective`` with losses that know classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from generative.core.ema import EMAProfiles
from generative.core.errors import UserError
from generative.core.objective import OptimizerFactory
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.gan.am_gan.losses import CLASS_LOSSES, ClassLoss, dynamic_targets
from generative.gan.augment import Augmentation
from generative.gan.objective import GANObjective
from generative.gan.options import GANOptions
from generative.gan.penalties import Penalty, PenaltyInputs, add_losses

Labelling = Literal["dynamic", "predefined"]


class AMGANObjective(GANObjective):
    """Generator against a discriminator that is a classifier into K + 1 classes.

    Phases, penalties and averages are ``GANObjective``'s; only the two losses differ. Penalties see one logit, the log-odds of
    being real.

    Under dynamic labelling nothing ties an image to the class that the generator was given, so what it learns is in effect
    unconditional: samples are of all classes, but ``class_labels`` does not choose among them reliably. Where the class of a
    sample matters, use predefined labelling, under which the generator is trained towards the class it was given. With
    ``label_gan`` no class is asked for either.

    Args:
        generator: See ``GANObjective``.
        discriminator: ``(images, class_labels) -> (B, K + 1)`` logits that do not depend on the labels, K = ``num_classes``: the
            real classes in order, then "generated". ``DCGANDiscriminator`` with ``output_dim`` K + 1 and conditioning ``none``.
        generator_optimizer: See ``GANObjective``.
        discriminator_optimizer: See ``GANObjective``.
        game: The adversarial loss: ``am_gan``, or one of those that the paper compares it with: ``label_gan``, ``ac_gan_star``,
            ``ac_gan_star_plus``.
        labelling: Target class of a generated image: ``dynamic``, the discriminator's most probable real class (the paper's own
            choice), or ``predefined``, the class that the generator was given.
        discriminator_steps: See ``GANObjective``, as all that follow.
        generator_first: Generator's phase first.
        separate_batches: Real and generated images in two forwards.
        ema: Decay of the generator's average.
        ema_buffers: What the average does with buffers.
        augmentation: Differentiable augmentations.
        penalties: Penalties on the discriminator.
        generator_orthogonal_weight: Strength of the generator's orthogonal regularisation.
        discriminator_orthogonal_weight: Strength of the discriminator's.
        standing_statistics_batches: Batches for batch norm's statistics before sampling.
        standing_statistics_batch_size: Images in each of them.
        sampling: Options of samples.

    Raises:
        UserError: If the networks do not fit each other or the loss, or an argument is out of its range.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        generator_optimizer: OptimizerFactory,
        discriminator_optimizer: OptimizerFactory,
        game: ClassLoss = "am_gan",
        labelling: Labelling = "dynamic",
        discriminator_steps: int = 1,
        generator_first: bool = False,
        separate_batches: bool = False,
        ema: EMAProfiles | None = None,
        ema_buffers: Literal["copy", "average"] = "average",
        augmentation: tuple[Augmentation, ...] = (),
        penalties: tuple[Penalty, ...] = (),
        generator_orthogonal_weight: float = 0.0,
        discriminator_orthogonal_weight: float = 0.0,
        standing_statistics_batches: int = 0,
        standing_statistics_batch_size: int = 64,
        sampling: GANOptions = GANOptions(),
    ) -> None:
        super().__init__(
            generator,
            discriminator,
            generator_optimizer,
            discriminator_optimizer,
            discriminator_steps=discriminator_steps,
            generator_first=generator_first,
            separate_batches=separate_batches,
            ema=ema,
            ema_buffers=ema_buffers,
            augmentation=augmentation,
            penalties=penalties,
            generator_orthogonal_weight=generator_orthogonal_weight,
            discriminator_orthogonal_weight=discriminator_orthogonal_weight,
            standing_statistics_batches=standing_statistics_batches,
            standing_statistics_batch_size=standing_statistics_batch_size,
            sampling=sampling,
        )
        if game not in CLASS_LOSSES:
            raise UserError(f"game must be one of {', '.join(CLASS_LOSSES)}, got {game!r}")
        if labelling not in ("dynamic", "predefined"):
            raise UserError(f"labelling must be dynamic or predefined, got {labelling!r}")
        check_outputs(discriminator)
        self.class_loss = CLASS_LOSSES[game]
        self.labelling = labelling

    def discriminator_loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Loss of the discriminator on real images and as many generated ones; see ``LossFn``."""
        z, labels = self.draw_fake_inputs(batch, context.generator)
        with torch.no_grad():
            fake = networks["generator"](z, labels).to(batch["images"].dtype)  # (B, 3, H, W)
        real_logits, fake_logits = self.discriminate_both(networks, batch, fake, labels, context.generator)  # (B, K + 1) each
        losses = {
            "loss": self.class_loss.discriminator(real_logits, batch["class_labels"], fake_logits),
            "real_logits": self.class_loss.real_logit(real_logits.detach()).mean(),
            "fake_logits": self.class_loss.real_logit(fake_logits.detach()).mean(),
            "real_accuracy": (dynamic_targets(real_logits) == batch["class_labels"]).float().mean(),
        }
        inputs = self.penalty_inputs(networks, batch, z, labels, fake, context.generator)
        for penalty in self.penalties:
            if penalty.interval == 1:
                add_losses(losses, penalty.losses(inputs), penalty.name)
        return losses

    def generator_loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Loss of the generator on as many images as the batch holds; see ``LossFn``."""
        z, labels = self.draw_fake_inputs(batch, context.generator)
        fake = networks["generator"](z, labels)  # (B, 3, H, W)
        logits = self.discriminate(networks, fake, labels, context.generator)  # (B, K + 1)
        found = dynamic_targets(logits)  # (B,)
        targets = found if self.labelling == "dynamic" else labels
        losses = {
            "loss": self.class_loss.generator(logits, targets),
            # Of the classes given to the generator, how many the discriminator sees: chance where the classes are not learnt.
            "given_class": (found == labels).float().mean(),
        }
        inputs = self.penalty_inputs(networks, batch, z, labels, fake, context.generator)
        for penalty in self.penalties:
            add_losses(losses, penalty.generator_losses(inputs), penalty.name)
        return losses

    def penalty_inputs(
        self, networks: Networks, batch: Batch, z: Tensor, fake_labels: Tensor, fake: Tensor, generator: torch.Generator
    ) -> PenaltyInputs:
        """What penalties may look at: one logit, the log-odds of being real."""
        inputs = super().penalty_inputs(networks, batch, z, fake_labels, fake, generator)
        plain, augmented = inputs.discriminate, inputs.discriminate_augmented
        return replace(
            inputs,
            discriminate=lambda images, labels: self.class_loss.real_logit(plain(images, labels)),
            discriminate_augmented=lambda images, labels: self.class_loss.real_logit(augmented(images, labels)),
        )


def check_outputs(discriminator: nn.Module) -> None:
    """Raise ``UserError`` unless a discriminator has one output for each class and one more, and takes no class in."""
    outputs, wanted = getattr(discriminator, "output_dim", 1), discriminator.num_classes + 1  # type: ignore[operator]
    if outputs != wanted:
        raise UserError(f"AM-GAN's discriminator needs output_dim {wanted}, its num_classes + 1, got {outputs}")
    if getattr(discriminator, "class_embedding", None) is not None:
        raise UserError(
            "AM-GAN's discriminator must not see the class it is to find, but it has a class_embedding; "
            "take DCGANDiscriminator with conditioning none"
        )
