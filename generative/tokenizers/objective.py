"""Training of tokenizers and autoencoders as phases of the one trainer: reconstruction, perception, bottleneck, adversary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.core.ema import EMAProfiles, average_specs
from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.objective import Objective, OptimizerFactory, Phase
from generative.core.tensor_parts import local_part
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.tokenizers.base import TrainableTokenizer
from generative.tokenizers.diagnosis import find_warnings
from generative.tokenizers.kl import KLAutoencoder, LatentReconstruction
from generative.tokenizers.losses import (
    DISCRIMINATOR_LOSSES,
    GENERATOR_LOSSES,
    AdversarialLoss,
    adaptive_weight,
    lecam_regulariser,
)
from generative.tokenizers.monitor import TokenizerMonitor
from generative.tokenizers.patch_discriminator import PatchDiscriminator
from generative.tokenizers.perceptual import PerceptualLoss

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline
    from pipelines.reconstruction import ImageReconstructionPipeline

GRID_BATCH_SIZE = 50
SQUARED_RANGE = 4.0
"""Of pixels in [-1, 1], for the signal-to-noise ratio."""


class TokenizerObjective(Objective):
    """Reconstruct images through a bottleneck.

    Each training step runs the tokenizer's phase and then the discriminator's, where there is one; both look at the same
    reconstructions, those made before the tokenizer's step. Errors are means over an image's values.

    Args:
        tokenizer: What is trained; an autoencoder with continuous latents counts as one.
        optimizer: Makes the tokenizer's optimizer.
        num_classes: Classes of the data (labels are ignored).
        discriminator: ``images (B, 3, H, W) -> logits`` of any shape; None for no adversary.
        discriminator_optimizer: Makes the discriminator's optimizer.
        reconstruction: Absolute (``l1``) or squared (``l2``) error.
        reconstruction_weight: Its weight.
        perceptual: Perceptual loss; None for none.
        perceptual_weight: Its weight.
        adversarial: The tokenizer's side of the adversarial loss.
        adversarial_discriminator: The discriminator's side: Open-MAGVIT2 plays hinge against non-saturating.
        adversarial_weight: Weight of the tokenizer's adversarial loss.
        adversarial_start_steps: Steps before the adversary enters; until then it is not trained either.
        adaptive_adversarial_weight: Multiply the weight by the ratio of the gradients of reconstruction (with perception) and
            adversary at the tokenizer's last layer (arXiv 2012.09841, eq. 7), taken on each micro-batch.
        adaptive_weight_limit: Largest ratio; 1e4 in the official code of VQGAN. Latent diffusion's sums errors over the values of
            an image: its 1e4 is 1e4 / (3 H W) of means.
        lecam_weight: Weight of LeCAM regularisation of the discriminator (arXiv 2104.03310).
        regularizer_weights: Weights of the bottleneck's losses by name (``codebook``, ``commitment``, ``entropy``, ``kl``); 1
            where none is given.
        revive_dead_codes: Overwrite dead rows of learned codebooks by recent encoder vectors.
        revival_threshold: Steps without use after which a row is dead.
        revival_interval: Steps from one revival to the next.
        ema: Decay of the tokenizer's average, which is what is exported. None exports the tokenizer itself.

    Raises:
        UserError: If an argument is out of range, or arguments do not fit each other.
    """

    uses_labels = False
    usage = "look with `generative reconstruct {run} IMAGES`, encode data with `generative encode {run} --output caches/NAME`"

    def __init__(
        self,
        tokenizer: TrainableTokenizer | KLAutoencoder,
        optimizer: OptimizerFactory,
        num_classes: int,
        discriminator: ModelMixin | None = None,
        discriminator_optimizer: OptimizerFactory | None = None,
        reconstruction: Literal["l1", "l2"] = "l1",
        reconstruction_weight: float = 1.0,
        perceptual: PerceptualLoss | None = None,
        perceptual_weight: float = 1.0,
        adversarial: AdversarialLoss = "hinge",
        adversarial_discriminator: AdversarialLoss = "hinge",
        adversarial_weight: float = 0.0,
        adversarial_start_steps: int = 0,
        adaptive_adversarial_weight: bool = False,
        adaptive_weight_limit: float = 1e4,
        lecam_weight: float = 0.0,
        regularizer_weights: dict[str, float] | None = None,
        revive_dead_codes: bool = False,
        revival_threshold: int = 100,
        revival_interval: int = 100,
        ema: EMAProfiles | None = None,
    ) -> None:
        if reconstruction not in ("l1", "l2"):
            raise UserError(f"reconstruction must be l1 or l2, got {reconstruction!r}")
        for name, side in (("adversarial", adversarial), ("adversarial_discriminator", adversarial_discriminator)):
            if side not in GENERATOR_LOSSES:
                raise UserError(f"{name} must be one of {', '.join(GENERATOR_LOSSES)}, got {side!r}")
        weights = {f"regularizer_weights.{name}": value for name, value in (regularizer_weights or {}).items()}
        for name, value, least in (
            ("reconstruction_weight", reconstruction_weight, 0),
            ("perceptual_weight", perceptual_weight, 0),
            ("adversarial_weight", adversarial_weight, 0),
            ("adversarial_start_steps", adversarial_start_steps, 0),
            ("adaptive_weight_limit", adaptive_weight_limit, 0),
            ("lecam_weight", lecam_weight, 0),
            ("revival_threshold", revival_threshold, 1),
            ("revival_interval", revival_interval, 1),
            ("num_classes", num_classes, 1),
            *((name, value, 0) for name, value in weights.items()),
        ):
            if not value >= least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        if tokenizer.config.get("latents_std") is not None:
            raise UserError("latents_std is of an autoencoder trained elsewhere; leave it out, training measures it")
        check_adversary(tokenizer, discriminator, discriminator_optimizer, adversarial_weight)
        self.networks = {"tokenizer": tokenizer}
        self.monitor = TokenizerMonitor(codebook_sizes(tokenizer))
        self.buffers = dict(self.monitor.named_buffers())
        self.optimizers = {"tokenizer": optimizer}
        if discriminator is not None and discriminator_optimizer is not None:
            self.networks["discriminator"] = discriminator
            self.optimizers["discriminator"] = discriminator_optimizer
        self.frozen = {} if perceptual is None else {"perceptual": perceptual.requires_grad_(False).eval()}
        self.loss_extractors = frozenset(() if perceptual is None else perceptual.feature_extractors)
        self.ema = average_specs("tokenizer", ema)
        self.sampling_networks = ("tokenizer",)
        self.num_classes = num_classes
        self.image_size = tokenizer.image_size
        self.perceptual = perceptual
        self.is_absolute = reconstruction == "l1"
        self.reconstruction_weight = reconstruction_weight
        self.perceptual_weight = perceptual_weight
        self.generator_side = GENERATOR_LOSSES[adversarial]
        self.discriminator_side = DISCRIMINATOR_LOSSES[adversarial_discriminator]
        self.adversarial_weight = adversarial_weight
        self.adversarial_start_steps = adversarial_start_steps
        self.is_adaptive = adaptive_adversarial_weight
        self.adaptive_weight_limit = adaptive_weight_limit
        self.lecam_weight = lecam_weight
        self.regularizer_weights = dict(regularizer_weights or {})
        self.revival_threshold = revival_threshold if revive_dead_codes else None
        self.revival_interval = revival_interval

    def phases(self) -> list[Phase]:
        """The tokenizer, then its discriminator."""
        phases = [
            Phase(
                name="tokenizer",
                networks=("tokenizer",),
                loss_fn=self.tokenizer_loss,
                optimizer="tokenizer",
                after_step=self.finish_tokenizer,
            )
        ]
        if "discriminator" in self.networks:
            phases.append(
                Phase(
                    name="discriminator",
                    networks=("discriminator",),
                    loss_fn=self.discriminator_loss,
                    optimizer="discriminator",
                    after_step=self.finish_discriminator,
                )
            )
        return phases

    def tokenizer_loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Weighted sum of all that the tokenizer minimises; see ``LossFn``."""
        images = batch["images"]
        result = networks["tokenizer"](images, context.generator)
        output = result.images.float()  # (B, 3, H, W)
        error = output - images
        squared_error = error.square().mean()
        losses = {"reconstruction": error.abs().mean() if self.is_absolute else squared_error}
        fidelity = self.reconstruction_weight * losses["reconstruction"]
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(images, output).float().mean()
            fidelity = fidelity + self.perceptual_weight * losses["perceptual"]
        loss = fidelity
        self._check_regularizers(result.losses)
        for name, value in result.losses.items():
            losses[name] = value.float()
            loss = loss + self.regularizer_weights.get(name, 1.0) * losses[name]
        if "discriminator" in networks and context.step >= self.adversarial_start_steps:
            context.cache["reconstruction"] = output.detach()
            losses["adversarial"] = self.generator_side(networks["discriminator"](output).float())
            weight: Tensor | float = self.adversarial_weight
            if self.is_adaptive:
                last_layer = networks["tokenizer"].last_layer
                ratio = adaptive_weight(fidelity, losses["adversarial"], last_layer, self.adaptive_weight_limit)  # type: ignore[arg-type]
                losses["adaptive_weight"] = ratio
                weight = self.adversarial_weight * ratio
            loss = loss + weight * losses["adversarial"]
        self.monitor.record_codes(result.codes, context.generator)
        if isinstance(result, LatentReconstruction) and result.latents is not None:
            self.monitor.record_latents(result.latents)
        psnr = 10 * torch.log10(SQUARED_RANGE / squared_error.detach().clamp(min=torch.finfo(torch.float32).tiny))
        return {"loss": loss, **losses, "psnr": psnr}

    def discriminator_loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Loss of the discriminator on the images and the reconstructions that the tokenizer's phase made; see ``LossFn``."""
        discriminator = networks["discriminator"]
        if context.step < self.adversarial_start_steps:
            # Gradients of exactly 0, as the official codes have before the start, without running the network.
            return {"loss": 0.0 * torch.stack([local_part(parameter).sum() for parameter in discriminator.parameters()]).sum()}
        # In two forwards, so that batch norm takes its statistics of each alone.
        real_logits = discriminator(batch["images"]).float()
        fake_logits = discriminator(context.cache["reconstruction"]).float()
        loss = self.discriminator_side(real_logits, fake_logits)
        losses = {"real_logits": real_logits.detach().mean(), "fake_logits": fake_logits.detach().mean()}
        if self.lecam_weight > 0:
            real_average, fake_average = self.monitor.record_logits(real_logits, fake_logits)
            losses["lecam"] = lecam_regulariser(real_logits, fake_logits, real_average, fake_average)
            loss = loss + self.lecam_weight * losses["lecam"]
        return {"loss": loss, **losses}

    def _check_regularizers(self, losses: Mapping[str, Tensor]) -> None:
        unknown = set(self.regularizer_weights) - set(losses)
        if unknown:
            raise UserError(
                f"regularizer_weights names '{min(unknown)}', but the losses of this tokenizer are "
                f"{', '.join(sorted(losses)) or 'none'}"
            )

    def finish_tokenizer(self, networks: Networks, step: int) -> None:
        """After the tokenizer's step: take note of the codes used, and revive dead ones."""
        codebooks = getattr(networks["tokenizer"], "codebooks", {})
        self.monitor.finish_codes(codebooks, self.revival_threshold, self.revival_interval, step + 1)

    def finish_discriminator(self, networks: Networks, step: int) -> None:
        """After the discriminator's step: move the averages of its logits."""
        self.monitor.finish_logits()

    def prepare_for_sampling(self, networks: Networks, generator: torch.Generator) -> None:
        """Give an autoencoder the scale that its latents were measured to have."""
        std = self.monitor.latent_std()
        if std:
            networks["tokenizer"].register_to_config(scaling_factor=1.0 / std)  # type: ignore[operator]

    def pipeline(self, networks: Networks) -> ImageReconstructionPipeline:
        """Pipeline around the tokenizer."""
        from pipelines.reconstruction import ImageReconstructionPipeline

        return ImageReconstructionPipeline(tokenizer=networks["tokenizer"])

    def example_images(
        self, pipeline: ImagePipeline, requests: Sequence[SampleRequest], real: Tensor, seed: int, columns: int
    ) -> Tensor:
        """Rows of originals, below each the row of their reconstructions."""
        parts = [pipeline.reconstruct(part).cpu() for part in real.split(GRID_BATCH_SIZE)]
        pairs = torch.stack([real.cpu().unflatten(0, (-1, columns)), torch.cat(parts).unflatten(0, (-1, columns))], dim=1)
        return pairs.flatten(0, 2)  # (rows, 2, columns, 3, H, W) -> (2 N, 3, H, W)

    def diagnose(self, networks: Networks, real: Batch) -> Losses:
        """Use of every codebook lately: ``usage_NAME`` (share of codes), ``perplexity_NAME``, ``revived_NAME`` (rows so far)."""
        values: Losses = {}
        for name, use in self.monitor.uses.items():
            values[f"usage_{name}"] = use.usage()  # type: ignore[operator]
            values[f"perplexity_{name}"] = use.perplexity()  # type: ignore[operator]
            if self.revival_threshold is not None and use.is_learned:
                values[f"revived_{name}"] = use.revived  # type: ignore[assignment]
        std = self.monitor.latent_std()
        if std is not None:
            values["latent_std"] = torch.tensor(std)
        return values

    def warnings(self, history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Signs of a collapsed codebook; see ``generative.tokenizers.diagnosis``."""
        sizes = {name: use.num_codes for name, use in self.monitor.uses.items()}
        return find_warnings(history, sizes, self.revival_threshold is not None)  # type: ignore[arg-type]


def codebook_sizes(tokenizer: TrainableTokenizer | KLAutoencoder) -> dict[str, tuple[int, int]]:
    """V and D by codebook name; D is 0 for implicit codebooks, and there is none for continuous latents."""
    if not isinstance(tokenizer, TrainableTokenizer):
        return {}
    learned = {name: (codebook.shape[0], codebook.shape[1]) for name, codebook in tokenizer.codebooks.items()}
    return learned or {"codebook": (tokenizer.num_codes, 0)}


def check_adversary(
    tokenizer: TrainableTokenizer | KLAutoencoder,
    discriminator: ModelMixin | None,
    optimizer: OptimizerFactory | None,
    weight: float,
) -> None:
    """Raise ``UserError`` unless discriminator, its optimizer and the weight are all there, or none is."""
    if (discriminator is None) != (optimizer is None):
        missing = "discriminator" if discriminator is None else "discriminator_optimizer"
        raise UserError(f"{missing} is missing; give discriminator and discriminator_optimizer, or neither")
    if weight > 0 and discriminator is None:
        raise UserError(f"adversarial_weight={weight} needs a discriminator; give one, or set adversarial_weight to 0")
    if weight == 0 and discriminator is not None:
        raise UserError(
            "a discriminator with adversarial_weight=0 would be trained for nothing; raise the weight or leave it out"
        )
    if isinstance(discriminator, PatchDiscriminator):
        discriminator.grid_size(tokenizer.image_size)
