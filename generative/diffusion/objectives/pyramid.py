"""Training of a denoiser that predicts at several resolutions: DiMR's loss (arXiv 2406.09416, eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generative.core.ema import EMAProfiles
from generative.core.errors import UserError
from generative.core.objective import OptimizerFactory
from generative.diffusion.denoiser import Condition, DenoiserOutput
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.options import DiffusionOptions
from generative.layers.time_dependent import TimeDependentParameter
from generative.tokenizers.representation import RepresentationEncoder


def to_resolution(values: Tensor, size: int) -> Tensor:
    """Sums over blocks, over the block's side: white noise (B, C, H, W) stays white of unit variance at (B, C, size, size).

    Raises:
        UserError: If the size does not divide.
    """
    side = values.shape[-1]
    if side % size:
        raise UserError(f"a level of {size} pixels does not divide the sample's {side}; sizes of a pyramid must be its divisors")
    ratio = side // size
    return values if ratio == 1 else F.avg_pool2d(values, ratio) * ratio


class PyramidObjective(DiffusionObjective):
    """Denoising at every level of a network's pyramid at once, each in its own resolution.

    A process of noise is linear in data and noise, so that their block sums are noised data of the same process: each level's
    loss is the formulation's own.

    Args:
        coefficients: Weight of each level's loss, the lowest resolution first; DiMR has 1/4 and 1. None for 4^-k, k levels below
            the last.
        denoiser: One with ``pyramid_levels``; this and the rest as of ``DiffusionObjective``.
        formulation: See there.
        optimizer: See there.
        ema: See there.
        label_dropout: See there.
        sampler: See there.
        sampling: See there.
        autoencoder: See there.
        representation_encoder: See there.
        representation_diffusion: See there.

    Raises:
        UserError: If options contradict one another, or there is not one coefficient for each level.
    """

    def __init__(
        self,
        denoiser: ModelMixin,
        formulation: Formulation,
        optimizer: OptimizerFactory,
        coefficients: Sequence[float] | None = None,
        ema: EMAProfiles | None = None,
        label_dropout: float | None = None,
        sampler: SchedulerMixin | None = None,
        sampling: DiffusionOptions = DiffusionOptions(),
        autoencoder: ModelMixin | None = None,
        representation_encoder: RepresentationEncoder | None = None,
        representation_diffusion: Path | None = None,
    ) -> None:
        levels = getattr(denoiser, "pyramid_levels", None)
        if not isinstance(levels, int):
            raise UserError(
                f"PyramidObjective needs a denoiser that predicts a pyramid, such as DiMR, got {type(denoiser).__name__}"
            )
        if coefficients is None:
            coefficients = [0.25**below for below in reversed(range(levels))]
        if len(coefficients) != levels or not all(0 <= weight < math.inf for weight in coefficients):
            raise UserError(f"coefficients must be one number of 0 or more for each of {levels} levels, got {list(coefficients)}")
        super().__init__(
            denoiser,
            formulation,
            optimizer,
            ema,
            label_dropout,
            sampler,
            sampling,
            autoencoder,
            representation_encoder=representation_encoder,
            representation_diffusion=representation_diffusion,
        )
        self.coefficients = tuple(coefficients)

    def compare(
        self, output: DenoiserOutput, x_start: Tensor, noise: Tensor, sample: Tensor, times: Tensor, condition: Condition
    ) -> dict[str, Tensor]:
        """The formulation's losses by name, and those of the levels below by name and size, such as ``mse_16``."""
        weights = self.coefficients
        whole = DenoiserOutput(output.prediction, output.variance, output.log_variance)
        parts = self.formulation.losses(whole, x_start, noise, sample, times)
        losses = {name: weights[-1] * value for name, value in parts.items()}
        for weight, prediction in zip(weights[:-1], output.pyramid, strict=True):
            size = prediction.shape[-1]
            level = (to_resolution(x_start, size), to_resolution(noise, size), to_resolution(sample, size))
            parts = self.formulation.losses(DenoiserOutput(prediction), *level, times)
            losses |= {f"{name}_{size}": weight * value for name, value in parts.items()}
        return losses

    def parameter_groups(self, optimizer: str) -> list[dict[str, Any]]:
        """All with the optimizer's weight decay but the gates of time-dependent parameters, as officially."""
        network = self.networks["denoiser"]
        timed = [module for module in network.modules() if isinstance(module, TimeDependentParameter)]
        gates = [gate for module in timed for gate in (module.gate_weight, module.gate_bias)]
        free = {id(gate) for gate in gates}
        decayed = [parameter for parameter in network.parameters() if id(parameter) not in free]
        return [{"params": decayed}, {"params": gates, "weight_decay": 0.0}] if gates else [{"params": decayed}]
