"""Training of a denoiser: noise data, predict what the formulation asks for, compare."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generative.core.ema import EMAProfiles
from generative.core.errors import UserError
from generative.core.guidance import check_guidance
from generative.core.objective import OptimizerFactory, Phase
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.diffusion.denoiser import Condition, DenoiserOutput
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.objectives.edm_augment import AUGMENT_DIM, EDMAugment
from generative.diffusion.objectives.representation_condition import RepresentationCondition
from generative.diffusion.objectives.self_conditioning import SelfConditioning, check_self_conditioning
from generative.diffusion.objectives.timestep_sampling import LossSecondMoment
from generative.diffusion.options import DiffusionOptions
from generative.diffusion.samplers.choose import check_sampler, default_sampler
from generative.tokenizers.encoded_objective import EncodedObjective
from generative.tokenizers.latents import check_latents
from generative.tokenizers.representation import RepresentationEncoder

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline


class DiffusionObjective(EncodedObjective):
    """Denoising under any formulation, on pixels or latents, of a class or under a representation in its place.

    Attributes:
        condition: What encodes and what samples representations (RCG, arXiv 2312.03701).

    Args:
        denoiser: ``(sample (B, C, H, W), time (B,), class_labels (B,)) -> DenoiserOutput``; its config has ``sample_size``,
            ``in_channels``, ``num_classes`` and perhaps ``class_dropout_prob``.
        formulation: How data are noised, what the denoiser is told and what its output means.
        optimizer: Makes the optimizer.
        ema: Decay of the average that samples, or a list of several averages of which the first does (EDM2: ``PowerEMA`` with
            std 0.05 and 0.10); None samples from the denoiser itself.
        label_dropout: Share of labels replaced by the null condition; None takes the denoiser's ``class_dropout_prob``.
        sampler: Of the pipeline: one of ``generative.diffusion.samplers``, or a scheduler of diffusers, which is adapted to the
            formulation; None for the formulation's usual one.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.
        autoencoder: Frozen; the denoiser then works on its latents. None works on pixels.
        timestep_sampling: Draws the steps of a chain by the size of their losses; None draws times as the formulation does.
        augment: Augments the images and tells the denoiser how (EDM); None leaves them as they are.
        self_conditioning: Of a denoiser that reads back what it gave at the step before (RIN).
        representation_encoder: Encodes the images for a denoiser whose config has a ``representation_dim``; None for others.
        representation_diffusion: Run or pipeline folder of the representation diffusion that such a one's samples begin with.

    Raises:
        UserError: If options contradict one another.
    """

    def __init__(
        self,
        denoiser: ModelMixin,
        formulation: Formulation,
        optimizer: OptimizerFactory,
        ema: EMAProfiles | None = None,
        label_dropout: float | None = None,
        sampler: SchedulerMixin | None = None,
        sampling: DiffusionOptions = DiffusionOptions(),
        autoencoder: ModelMixin | None = None,
        timestep_sampling: LossSecondMoment | None = None,
        augment: EDMAugment | None = None,
        self_conditioning: SelfConditioning | None = None,
        representation_encoder: RepresentationEncoder | None = None,
        representation_diffusion: Path | None = None,
    ) -> None:
        null_probability = getattr(denoiser.config, "class_dropout_prob", 0.0)
        if label_dropout is None:
            label_dropout = null_probability
        if not null_probability and (label_dropout or sampling.guidance_scale != 1):
            option = f"label_dropout {label_dropout}" if label_dropout else f"guidance_scale {sampling.guidance_scale}"
            raise UserError(f"{option} needs a denoiser with a null condition; give it a class_dropout_prob above 0")
        check_latents(denoiser.config.in_channels, autoencoder)
        check_guidance(sampling.guidance_scale, interval=sampling.guidance_interval)
        super().__init__("denoiser", denoiser, autoencoder, optimizer, ema, label_dropout)
        if augment is not None:
            check_augment(denoiser, autoencoder)
        check_self_conditioning(denoiser, self_conditioning)
        takes = denoiser.config.get("representation_dim")
        self.condition = RepresentationCondition(representation_encoder, representation_diffusion, takes, type(denoiser).__name__)
        if takes is not None:
            self.num_classes = self.condition.num_classes
            self.uses_labels = self.num_classes > 1
            self.frozen = self.frozen | self.condition.frozen
            self.loss_extractors = self.condition.loss_extractors
        self.augment = augment
        self.self_conditioning = self_conditioning
        self.formulation = formulation
        self.sampler = check_sampler(default_sampler(formulation) if sampler is None else sampler, formulation)
        self.sampling = sampling
        self.timestep_sampling = timestep_sampling
        if timestep_sampling is not None:
            if not isinstance(formulation, GaussianDiffusion):
                raise UserError(
                    f"timestep_sampling counts losses of the steps of a chain, and {type(formulation).__name__} has continuous "
                    "times; leave it out, or train a GaussianDiffusion"
                )
            self.buffers = timestep_sampling.start(formulation.config.num_train_timesteps)

    def phases(self) -> list[Phase]:
        """One phase: the denoiser."""
        sampling = self.timestep_sampling
        after_step = None if sampling is None else lambda networks, step: sampling.fold()
        return [replace(phase, after_step=after_step) for phase in super().phases()]

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Denoising loss of a micro-batch, see ``LossFn``.

        Returns:
            ``loss``, and its parts where it has several (``Formulation.losses``).
        """
        vector = self.represent(batch)
        if vector is not None:  # labels then only tell which representations are dropped
            batch = {**batch, "class_labels": torch.zeros_like(batch["class_labels"])}
        x_start, condition = self.conditions(*self.inputs(batch, context), context)  # (B, C, H, W), labels (B,)
        condition = replace(condition, vector=vector)
        times, weights = self.draw_times(len(x_start), context.generator)
        times = times.to(x_start.device)
        noise, sample = self.formulation.draw_noised(x_start, times, context.generator)
        network_input = self.formulation.network_input(sample, times)
        if self.self_conditioning is not None:
            condition = self.self_conditioning.remember(networks["denoiser"], network_input, condition, context.generator)
        output = networks["denoiser"](*network_input, condition.class_labels, **condition.arguments()).float()
        parts = self.compare(output, x_start, noise, sample, times, condition)
        if self.timestep_sampling is not None and weights is not None:
            self.timestep_sampling.record(times, torch.stack(list(parts.values())).sum(0))
            parts = {name: weights.to(value.device) * value for name, value in parts.items()}
        losses = {name: value.mean() for name, value in parts.items()}
        return {"loss": sum(losses.values(), torch.zeros((), device=x_start.device)), **(losses if len(losses) > 1 else {})}

    def represent(self, batch: Batch) -> Tensor | None:
        """Representations (B, D) of a batch's images, before they are augmented; None for a denoiser of classes."""
        return None if self.condition.encoder is None else self.condition.encode(batch)

    def compare(
        self, output: DenoiserOutput, x_start: Tensor, noise: Tensor, sample: Tensor, times: Tensor, condition: Condition
    ) -> dict[str, Tensor]:
        """Parts of the loss of each image, (B,) by name; see ``Formulation.losses``."""
        return self.formulation.losses(output, x_start, noise, sample, times)

    def draw_times(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Training times (B,), and the weights (B,) of their losses; None weighs all alike."""
        if self.timestep_sampling is None:
            return self.formulation.draw_times(batch_size, generator), None
        return self.timestep_sampling.draw(batch_size, generator)

    def conditions(self, x_start: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Condition]:
        """What is noised, and under which condition it is denoised; objectives with other conditions than labels add theirs.

        Args:
            x_start: (B, C, H, W) clean data.
            labels: (B,) int64, some of them the null label.
            context: Randomness of the step.
        """
        if self.augment is None:
            return x_start, Condition(labels)
        x_start, augment_labels = self.augment(x_start, context.generator)
        return x_start, Condition(labels, augment_labels=augment_labels)

    def identity(self) -> Mapping[str, Any]:
        """The formulation, and what encodes representations; samplers, and how training times are drawn, may change."""
        own = {"formulation": type(self.formulation).__name__, **self.formulation.identity()}
        return {**own, **self.condition.identity()}

    def encodings(self, batch: Batch, generator: torch.Generator) -> Batch:
        """``representations`` of a batch's images too; see the base class."""
        found = super().encodings(batch, generator)
        vectors = self.condition.encode(batch)
        return found if vectors is None else {**found, "representations": vectors}

    def representation_fingerprint(self) -> str | None:
        """The representation encoder's."""
        return self.condition.fingerprint

    def pipeline(self, networks: Networks) -> DiffusionImagePipeline:
        """Pipeline of a denoiser with the sampler, and with the representation diffusion where there is one."""
        from pipelines.diffusion import DiffusionImagePipeline
        from pipelines.rcg import RCGPipeline

        # Not from_config: diffusers takes what was given by position for defaults.
        formulation, sampler = copy.deepcopy((self.formulation, self.sampler))
        denoiser = cast("ModelMixin", networks["denoiser"])
        parts: dict[str, Any] = {
            "autoencoder": self.frozen.get("autoencoder"),
            "sampling_defaults": self.sampling_defaults(),
            "formulation": formulation,
        }
        representation = self.condition.representation(denoiser)
        if representation is None:
            return DiffusionImagePipeline(denoiser, sampler, **parts)
        return RCGPipeline(denoiser, sampler, **parts, representation=representation)


def check_augment(denoiser: ModelMixin, autoencoder: ModelMixin | None) -> None:
    """Refuse to augment what cannot be, or for a denoiser that cannot be told.

    Raises:
        UserError: If the denoiser takes no labels of augmentation, or works on latents.
    """
    dim = denoiser.config.get("augment_dim", 0)
    if dim != AUGMENT_DIM:
        raise UserError(f"augment needs a denoiser with augment_dim {AUGMENT_DIM}, which is told how, and this one has {dim}")
    if autoencoder is not None:
        raise UserError("augment turns and stretches pixels, and this denoiser works on latents; leave augment out")
