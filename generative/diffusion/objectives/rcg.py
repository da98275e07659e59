"""Training of a denoiser of images that is conditioned on their representations (RCG, arXiv 2312.03701)."""

from __future__ import annotations

from pathlib import Path

from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from generative.core.ema import EMAProfiles
from generative.core.objective import OptimizerFactory
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.objectives.edm_augment import EDMAugment
from generative.diffusion.objectives.self_conditioning import SelfConditioning
from generative.diffusion.objectives.timestep_sampling import LossSecondMoment
from generative.diffusion.options import RCGOptions
from generative.tokenizers.representation import RepresentationEncoder


class RCGObjective(DiffusionObjective):
    """Denoising under a representation of the image in the place of its class, on pixels or latents.

    It is ``DiffusionObjective`` whose samples take the options of the representation diffusion too. Objectives with a loss or
    data of their own take the same two arguments: ``PyramidObjective`` (DiMR), ``AnySizeObjective`` (FiT).

    Args:
        denoiser: One whose config has a ``representation_dim``.
        formulation: See ``DiffusionObjective``.
        optimizer: Likewise.
        representation_encoder: Encodes the images.
        representation_diffusion: Run or pipeline folder of the representation diffusion that samples begin with.
        ema: See ``DiffusionObjective``.
        label_dropout: Share of representations replaced by the null one; None takes the denoiser's ``class_dropout_prob``.
        sampler: See ``DiffusionObjective``.
        sampling: Likewise.
        autoencoder: Likewise.
        timestep_sampling: Likewise.
        augment: Likewise; representations are of the images as they were.
        self_conditioning: Likewise.

    Raises:
        UserError: If the parts do not fit one another, or options contradict one another.
    """

    def __init__(
        self,
        denoiser: ModelMixin,
        formulation: Formulation,
        optimizer: OptimizerFactory,
        representation_encoder: RepresentationEncoder,
        representation_diffusion: Path,
        ema: EMAProfiles | None = None,
        label_dropout: float | None = None,
        sampler: SchedulerMixin | None = None,
        sampling: RCGOptions = RCGOptions(),
        autoencoder: ModelMixin | None = None,
        timestep_sampling: LossSecondMoment | None = None,
        augment: EDMAugment | None = None,
        self_conditioning: SelfConditioning | None = None,
    ) -> None:
        super().__init__(
            denoiser,
            formulation,
            optimizer,
            ema,
            label_dropout,
            sampler,
            sampling,
            autoencoder,
            timestep_sampling,
            augment,
            self_conditioning,
            representation_encoder,
            representation_diffusion,
        )
