"""How well held-out images are brought back to their resolution from their averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from generative.core.errors import UserError
from generative.core.evaluation import Evaluator
from generative.core.images import images_to_float, images_to_uint8
from generative.core.reconstruction import ReconstructionEvaluator
from generative.core.seeding import sample_generators
from generative.data.base import ImageDataset
from generative.diffusion.objectives.upsampling import area_average

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline
    from pipelines.upsampler import UpsamplerPipeline


class UpsamplingEvaluator(ReconstructionEvaluator):
    """Averages held-out images, lets an upsampler bring them back, and compares with the originals, as sets and one by one.

    Arguments and scores are those of ``ReconstructionEvaluator``; each image is told its class and has its own random stream.
    """

    def match_classes(self, training: ImageDataset) -> list[str]:
        """As ``Evaluator.match_classes``: an upsampler is told the classes."""
        return Evaluator.match_classes(self, training)

    def check_pipeline(self, pipeline: ImagePipeline) -> None:
        """Refuse a pipeline that brings no images to a higher resolution."""
        if not hasattr(pipeline, "low_resolution_size"):
            raise UserError(f"a {type(pipeline).__name__} is no upsampler; score it with {pipeline.evaluator}")

    def reconstruct(self, pipeline: ImagePipeline, originals: Tensor, indices: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Originals (B, 3, H, W) uint8 from their averages; see the base class."""
        upsampler = cast("UpsamplerPipeline", pipeline)
        upsampler.set_progress_bar_config(disable=True)
        small = images_to_uint8(area_average(images_to_float(originals), upsampler.low_resolution_size))
        labels = self.data.labels[indices].tolist()
        generators = sample_generators(self.seed, labels, indices.tolist())
        images: Tensor = upsampler(labels, low_resolution=small, generator=generators, output_type="uint8", **options).images
        return images
