"""Adversarial training of a class-conditional generator as phases of the one trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from generative.core.ema import EMAProfiles, average_specs
from generative.core.errors import UserError
from generative.core.objective import Objective, OptimizerFactory, Phase, StepHook
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.gan import diagnosis
from generative.gan.augment import AUGMENTATIONS, Augmentation, augment
from generative.gan.losses import ADVERSARIAL_LOSSES, AdversarialLoss
from generative.gan.options import GANOptions
from generative.gan.orthogonal import add_orthogonal_gradient
from generative.gan.penalties import Penalty, PenaltyInputs, add_losses, check_penalties
from generative.gan.sampling import check_truncation, draw_z, take_standing_statistics
from generative.layers.spectral_norm import SpectralNorm

if TYPE_CHECKING:
    from pipelines.gan import GANImagePipeline


class GANObjective(Objective):
    """Generator against discriminator.

    Each training step runs the discriminator's phase (``discriminator_steps`` times, fresh images each), a phase of each lazy
    penalty that is due, then the generator's phase. Both networks are in train mode throughout, as in BigGAN's code: batch
    statistics and spectral vectors move in every phase.

    Args:
        generator: ``(z (B, Z), class_labels (B,)) -> (B, 3, H, W)`` in [-1, 1], with attributes ``z_dim``, ``num_classes`` and
            ``image_size``.
        discriminator: ``(images, class_labels) -> (B,) or (B, N)`` logits (N heads or places), with attributes ``num_classes``
            and ``image_size``; where frozen feature networks look at the images inside it, attribute ``feature_extractors``
            names them as ``metrics.registry.EXTRACTORS`` does, and no evaluation may use one of them.
        generator_optimizer: Makes the generator's optimizer.
        discriminator_optimizer: Makes the discriminator's optimizer. Lazy penalties share it: see ``generative.gan.penalties`` on
            Adam's learning rate and betas.
        loss: The adversarial loss. In losses of differences (Wasserstein, relativistic), generated images take the
            classes of the real ones beside them, or a class's free offset in the logits would be noise.
        discriminator_steps: Discriminator steps for each generator step.
        generator_first: Run the generator's phase before the discriminator's (Projected GAN, StyleGAN).
        separate_batches: Show the discriminator real and generated images in two forwards, so that batch norm in it takes
            statistics of each alone (Projected GAN, DCGAN). One forward is faster, and the same without batch norm.
        ema: Decay of the generator's average, which is what samples. None samples from the generator itself.
        ema_buffers: ``average`` averages batch-norm statistics and spectral vectors too (BigGAN); ``copy`` takes the newest, as a
            generator that keeps both singular vectors must (FastGAN).
        augmentation: Differentiable augmentations of every image that the discriminator sees, real or generated.
        penalties: Penalties on the discriminator (``generative.gan.penalties``, ``generative.gan.consistency``), each kind once.
        generator_orthogonal_weight: Strength of the generator's orthogonal regularisation (arXiv 1809.11096, eq. 3; 1e-4 there),
            which leaves out its class embedding.
        discriminator_orthogonal_weight: Strength of the discriminator's.
        standing_statistics_batches: Batches over which batch norm's statistics are taken anew before sampling; 0 keeps those that
            training averaged.
        standing_statistics_batch_size: Images in each of those batches.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.

    Raises:
        UserError: If the networks do not fit each other, or an argument is out of its range.
    """

    sampling_networks = ("generator",)
    sampling: GANOptions

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        generator_optimizer: OptimizerFactory,
        discriminator_optimizer: OptimizerFactory,
        loss: AdversarialLoss = "hinge",
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
        check_pair(generator, discriminator)
        if loss not in ADVERSARIAL_LOSSES:
            raise UserError(f"loss must be one of {', '.join(ADVERSARIAL_LOSSES)}, got {loss!r}")
        unknown = [name for name in augmentation if name not in AUGMENTATIONS]
        if unknown:
            raise UserError(f"augmentation must name some of {', '.join(AUGMENTATIONS)}, got {unknown[0]!r}")
        check_penalties(penalties)
        for name, value, least in (
            ("discriminator_steps", discriminator_steps, 1),
            ("generator_orthogonal_weight", generator_orthogonal_weight, 0),
            ("discriminator_orthogonal_weight", discriminator_orthogonal_weight, 0),
            ("standing_statistics_batches", standing_statistics_batches, 0),
            ("standing_statistics_batch_size", standing_statistics_batch_size, 1),
        ):
            if not value >= least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        check_truncation(sampling.truncation)
        check_average(generator, ema, ema_buffers)
        self.networks = {"generator": generator, "discriminator": discriminator}
        self.frozen = {}
        self.optimizers = {"generator": generator_optimizer, "discriminator": discriminator_optimizer}
        self.ema = average_specs("generator", ema, ema_buffers)
        self.loss_extractors = frozenset(getattr(discriminator, "feature_extractors", ()))
        self.num_classes: int = generator.num_classes  # type: ignore[assignment]
        self.image_size: int = generator.image_size  # type: ignore[assignment]
        self.z_dim: int = generator.z_dim  # type: ignore[assignment]
        self.loss = ADVERSARIAL_LOSSES[loss]
        self.discriminator_steps = discriminator_steps
        self.generator_first = generator_first
        self.separate_batches = separate_batches
        self.augmentation = tuple(augmentation)
        self.penalties = tuple(penalty for penalty in penalties if penalty.is_active)
        self.orthogonal_weights = {
            "generator": generator_orthogonal_weight,
            "discriminator": discriminator_orthogonal_weight,
        }
        self.standing_statistics_batches = standing_statistics_batches
        self.standing_statistics_batch_size = standing_statistics_batch_size
        self.sampling = sampling

    def phases(self) -> list[Phase]:
        """Discriminator and its lazy penalties, generator; or the generator first."""
        discriminator = [
            Phase(
                name="discriminator",
                networks=("discriminator",),
                loss_fn=self.discriminator_loss,
                optimizer="discriminator",
                repeats=self.discriminator_steps,
                before_step=self._regularise("discriminator"),
            )
        ]
        discriminator += [
            Phase(
                name=penalty.name,
                networks=("discriminator",),
                loss_fn=partial(self.lazy_penalty_loss, penalty),
                optimizer="discriminator",
                interval=penalty.interval,
                # As often as the discriminator's own steps, so that scaling by the interval is right for several of them too.
                repeats=self.discriminator_steps,
            )
            for penalty in self.penalties
            if penalty.interval > 1
        ]
        generator = Phase(
            name="generator",
            networks=("generator",),
            loss_fn=self.generator_loss,
            optimizer="generator",
            before_step=self._regularise("generator"),
        )
        return [generator, *discriminator] if self.generator_first else [*discriminator, generator]

    def _regularise(self, name: str) -> StepHook | None:
        """What adds a network's orthogonal regularisation to its gradients, if it has any."""
        strength = self.orthogonal_weights[name]
        if strength == 0:
            return None

        def before_step(networks: Networks, step: int) -> None:
            network = networks[name]
            embedding = getattr(network, "class_embedding", None) if name == "generator" else None
            left_out = {id(p) for p in embedding.parameters()} if isinstance(embedding, nn.Module) else set()
            add_orthogonal_gradient((p for p in network.parameters() if id(p) not in left_out), strength)

        return before_step

    def draw_inputs(self, batch_size: int, generator: torch.Generator, truncation: float | None = None) -> tuple[Tensor, Tensor]:
        """Noise (B, Z) and uniformly random class labels (B,) for generated images."""
        z = draw_z(batch_size, self.z_dim, generator, truncation)
        labels = torch.randint(self.num_classes, (batch_size,), generator=generator, device=generator.device)
        return z, labels

    def draw_fake_inputs(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise and classes of as many generated images as the batch holds; the batch's own classes in losses of differences."""
        z, labels = self.draw_inputs(len(batch["class_labels"]), generator)
        return z, (batch["class_labels"] if self.loss.is_shift_invariant else labels)

    def discriminate(self, networks: Networks, images: Tensor, class_labels: Tensor, generator: torch.Generator) -> Tensor:
        """Logits (B,) or (B, N), float32, of images (B, 3, H, W) behind the differentiable augmentation."""
        logits: Tensor = networks["discriminator"](augment(images, self.augmentation, generator), class_labels)
        return logits.float()

    def discriminate_both(
        self, networks: Networks, batch: Batch, fake: Tensor, fake_labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Logits of the batch's real images and of generated ones, each (B,) or (B, N), float32."""
        real, real_labels = batch["images"], batch["class_labels"]
        if self.separate_batches:
            real_logits = self.discriminate(networks, real, real_labels, generator)
            return real_logits, self.discriminate(networks, fake, fake_labels, generator)
        # One forward for both: a discriminator without batch norm treats each image alone, so it equals two, and is faster.
        both = self.discriminate(networks, torch.cat([real, fake]), torch.cat([real_labels, fake_labels]), generator)
        real_logits, fake_logits = both.chunk(2)
        return real_logits, fake_logits

    def discriminator_loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Loss of the discriminator on real images and as many generated ones; see ``LossFn``."""
        z, labels = self.draw_fake_inputs(batch, context.generator)
        with torch.no_grad():
            fake = networks["generator"](z, labels).to(batch["images"].dtype)  # (B, 3, H, W)
        real_logits, fake_logits = self.discriminate_both(networks, batch, fake, labels, context.generator)
        losses = {
            "loss": self.loss.discriminator(real_logits, fake_logits),
            "real_logits": real_logits.detach().mean(),
            "fake_logits": fake_logits.detach().mean(),
        }
        inputs = self.penalty_inputs(networks, batch, z, labels, fake, context.generator)
        for penalty in self.penalties:
            if penalty.interval == 1:
                add_losses(losses, penalty.losses(inputs), penalty.name)
        return losses

    def lazy_penalty_loss(self, penalty: Penalty, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """A penalty that is taken every so many steps only, scaled by as much; see ``LossFn``."""
        z = labels = batch["class_labels"][:0]
        fake = batch["images"][:0]
        if penalty.needs_fake:
            z, labels = self.draw_fake_inputs(batch, context.generator)
            with torch.no_grad():
                fake = networks["generator"](z, labels).to(batch["images"].dtype)  # (B, 3, H, W)
        losses = penalty.losses(self.penalty_inputs(networks, batch, z, labels, fake, context.generator))
        return {**losses, "loss": penalty.interval * losses["loss"]}

    def generator_loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Loss of the generator on as many images as the batch holds; see ``LossFn``."""
        z, labels = self.draw_fake_inputs(batch, context.generator)
        fake = networks["generator"](z, labels)  # (B, 3, H, W)
        if self.loss.needs_real:
            real_logits, fake_logits = self.discriminate_both(networks, batch, fake, labels, context.generator)
            losses = {"loss": self.loss.generator(fake_logits, real_logits)}
        else:
            losses = {"loss": self.loss.generator(self.discriminate(networks, fake, labels, context.generator), None)}
        inputs = self.penalty_inputs(networks, batch, z, labels, fake, context.generator)
        for penalty in self.penalties:
            add_losses(losses, penalty.generator_losses(inputs), penalty.name)
        return losses

    def penalty_inputs(
        self, networks: Networks, batch: Batch, z: Tensor, fake_labels: Tensor, fake: Tensor, generator: torch.Generator
    ) -> PenaltyInputs:
        """What penalties may look at in a micro-batch."""
        return PenaltyInputs(
            real=batch["images"],
            real_labels=batch["class_labels"],
            fake=fake,
            fake_labels=fake_labels,
            z=z,
            generate=networks["generator"],
            discriminate=lambda images, labels: networks["discriminator"](images, labels).float(),
            discriminate_augmented=lambda images, labels: self.discriminate(networks, images, labels, generator),
            random=generator,
        )

    def prepare_for_sampling(self, networks: Networks, generator: torch.Generator) -> None:
        """Take batch norm's statistics anew under the noise used for sampling, if ``standing_statistics_batches`` says so."""
        if self.standing_statistics_batches == 0:
            return
        take_standing_statistics(
            networks["generator"],
            self.standing_statistics_batches,
            self.standing_statistics_batch_size,
            generator,
            self.sampling.truncation,
        )

    def pipeline(self, networks: Networks) -> GANImagePipeline:
        """Pipeline around the generator."""
        from pipelines.gan import GANImagePipeline

        return GANImagePipeline(generator=networks["generator"], sampling_defaults=self.sampling_defaults())

    def diagnose(self, networks: Networks, real: Batch) -> Losses:
        """Spectral norms, diversity and saturation; see ``generative.gan.diagnosis``."""
        return diagnosis.diagnose(networks["generator"], networks["discriminator"], self.z_dim, real)

    def warnings(self, history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Signs of collapse and of divergence; see ``generative.gan.diagnosis``."""
        return diagnosis.find_warnings(history)


def check_average(generator: nn.Module, ema: EMAProfiles | None, buffers: str) -> None:
    """Raise ``UserError`` for a treatment of buffers that is unknown, or that the generator's spectral norm does not bear."""
    if buffers not in ("copy", "average"):
        raise UserError(f"ema_buffers must be copy or average, got {buffers!r}")
    has_pairs = any(isinstance(module, SpectralNorm) and module.v is not None for module in generator.modules())
    if ema is not None and buffers == "average" and has_pairs:
        raise UserError(
            f"{type(generator).__name__} keeps both singular vectors of its weights and eval mode uses them as they are, but an "
            "average of unit vectors is shorter than 1; set ema_buffers to copy"
        )


def check_pair(generator: nn.Module, discriminator: nn.Module) -> None:
    """Raise ``UserError`` unless both networks are a GAN's, for the same images and classes."""
    for role, network, needed in (
        ("generator", generator, ("num_classes", "image_size", "z_dim")),
        ("discriminator", discriminator, ("num_classes", "image_size")),
    ):
        missing = [name for name in needed if not hasattr(network, name)]
        if missing:
            raise UserError(f"{type(network).__name__} is no {role} of this project: it has no attribute {missing[0]}")
    for name in ("num_classes", "image_size"):
        ours, theirs = getattr(generator, name), getattr(discriminator, name)
        if ours != theirs:
            raise UserError(f"the generator's {name} is {ours} but the discriminator's is {theirs}; make them equal")
