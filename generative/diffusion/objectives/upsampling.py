"""Training of a denoiser that brings images to a higher resolution (arXiv 2105.05233, section 6.4)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.images import images_to_float, images_to_uint8
from generative.core.objective import Phase
from generative.core.seeding import sample_generators
from generative.core.types import Networks, StepContext
from generative.diffusion.denoiser import Condition
from generative.diffusion.objectives.denoising import DiffusionObjective

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline
    from pipelines.upsampler import UpsamplerPipeline

GRID_BATCH_SIZE = 50


class UpsamplingObjective(DiffusionObjective):
    """Denoising of images whose averages over small squares are given, as images of lower resolution.

    The denoiser's config has their ``low_resolution_size``; all else is as in ``DiffusionObjective``, but pixels only.
    """

    usage = "use it behind a run that makes small images: `generative sample BASE --upsampler {run}`"

    def phases(self) -> list[Phase]:
        """One phase: the denoiser.

        Raises:
            UserError: If the denoiser takes representations: its pipeline is handed images, and makes none of them.
        """
        if self.condition.encoder is not None:
            raise UserError(
                "an upsampler is handed images of lower resolution and makes no representations; set representation_dim of the "
                "denoiser to null and leave representation_encoder and representation_diffusion out"
            )
        return super().phases()

    def conditions(self, x_start: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Condition]:
        """Images, and under which labels and averages they are denoised."""
        size = cast("int", self.networks["denoiser"].config.low_resolution_size)  # type: ignore[union-attr]
        return x_start, Condition(labels, low_resolution=area_average(x_start, size))

    def pipeline(self, networks: Networks) -> UpsamplerPipeline:
        """Pipeline of the upsampler with the sampler.

        Raises:
            UserError: If the denoiser takes no images of lower resolution, or there is an autoencoder.
        """
        from pipelines.upsampler import UpsamplerPipeline

        formulation, sampler = copy.deepcopy((self.formulation, self.sampler))
        return UpsamplerPipeline(
            networks["denoiser"], sampler, self.frozen.get("autoencoder"), self.sampling_defaults(), formulation=formulation
        )

    def example_images(
        self, pipeline: ImagePipeline, requests: Sequence[SampleRequest], real: Tensor, seed: int, columns: int
    ) -> Tensor:
        """Pairs in each row: averages of a training image, enlarged, and what the upsampler makes of them.

        Raises:
            UserError: If a row has no room for a pair.
        """
        if columns < 2:
            raise UserError(f"trainer.grid_images_per_class must be at least 2 for pairs of images, got {columns}")
        upsampler = cast("UpsamplerPipeline", pipeline)
        shown = [place for place in range(len(requests)) if place % columns < columns // 2]
        small = images_to_uint8(area_average(images_to_float(real[shown].cpu()), upsampler.low_resolution_size))
        labels = [requests[place].class_label for place in shown]
        generators = sample_generators(seed, labels, [requests[place].index for place in shown])
        upsampler.set_progress_bar_config(disable=True)
        large = torch.cat(
            [
                upsampler(
                    labels[start : start + GRID_BATCH_SIZE],
                    low_resolution=small[start : start + GRID_BATCH_SIZE],
                    generator=generators[start : start + GRID_BATCH_SIZE],
                    output_type="uint8",
                ).images.cpu()
                for start in range(0, len(shown), GRID_BATCH_SIZE)
            ]
        )
        enlarged = F.interpolate(small, large.shape[2:], mode="nearest")
        grid = torch.zeros_like(real.cpu()).unflatten(0, (-1, columns))  # (rows, columns, 3, H, W)
        pairs = columns // 2
        for offset, images in enumerate((enlarged, large)):
            grid[:, offset : 2 * pairs : 2] = images.unflatten(0, (-1, pairs))
        return grid.flatten(0, 1)


def area_average(images: Tensor, size: int) -> Tensor:
    """Averages (B, C, size, size) of images (B, C, H, W) over the squares that become pixels."""
    return F.interpolate(images, (size, size), mode="area")
