"""Images brought to a higher resolution by a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Condition
from generative.diffusion.options import DiffusionOptions
from pipelines.base import OutputType
from pipelines.diffusion import DiffusionImagePipeline
from pipelines.image_input import Images, prepare_images


class UpsamplerPipeline(DiffusionImagePipeline):
    """Images of a class from images of it at lower resolution (ADM's upsampler, arXiv 2105.05233, section 6.4).

    Its denoiser is one whose config has a ``low_resolution_size``; all else is as in ``DiffusionImagePipeline``.

    Raises:
        UserError: If the denoiser is no upsampler, or works on latents.
    """

    purpose = "makes images of images of lower resolution"
    advice = "give it to `generative sample BASE --upsampler`"
    evaluator = "generative.diffusion.objectives.upsampling_evaluation.UpsamplingEvaluator"

    def register_modules(self, **modules: Any) -> None:
        """Register components; see the base class."""
        if "denoiser" in modules and modules["denoiser"].config.get("low_resolution_size") is None:
            name = type(modules["denoiser"]).__name__
            raise UserError(f"the denoiser is a {name} without low_resolution_size, which is no upsampler; set it")
        if modules.get("autoencoder") is not None:
            raise UserError("an upsampler works on pixels and takes no autoencoder; leave it out")
        super().register_modules(**modules)

    @property
    def low_resolution_size(self) -> int:
        """Height and width of the images that it takes, in pixels."""
        return int(self.denoiser.config.low_resolution_size)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Any,
        *,
        low_resolution: Images | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Bring one image per class label to the higher resolution.

        Args:
            class_labels: See ``ImageGenerationPipeline``.
            low_resolution: The images, see ``pipelines.image_input.prepare_images``.
            generator: See ``ImageGenerationPipeline``.
            output_type: Likewise.
            return_dict: Likewise.
            **options: Likewise.

        Raises:
            UserError: If an argument is out of range, or the images are of another size or number.
        """
        chosen = self.merge_options(options)
        labels = self.check_class_labels(class_labels)
        images = self.check_low_resolution(low_resolution, len(labels))
        state = self.upsample(images, labels, chosen, self.image_noise(generator, len(labels)))
        return self.postprocess(self.decode(state), output_type, return_dict)

    def check_low_resolution(self, images: Images | None, count: int) -> Tensor:
        """Images (B, 3, h, w) float32 in [-1, 1], as many as there are labels.

        Raises:
            UserError: If there are none, or they are of another size or number.
        """
        size = self.low_resolution_size
        if images is None:
            raise self.lacks_images()
        pixels = prepare_images(images, self.device)
        if pixels.shape[2:] != (size, size):
            raise UserError(f"this upsampler takes images of {size}x{size} pixels, got {pixels.shape[3]}x{pixels.shape[2]}")
        if len(pixels) != count:
            raise UserError(f"give one low_resolution image per class label, got {len(pixels)} for {count} labels")
        return pixels

    def upsample(self, images: Tensor, class_labels: Tensor, options: DiffusionOptions, noise: ImageNoise) -> SampleState:
        """Denoise from noise to images of the higher resolution.

        Args:
            images: (B, 3, h, w) of lower resolution, in [-1, 1].
            class_labels: (B,) int64.
            options: Of sampling.
            noise: One random stream per image.
        """
        return self.denoise(Condition(class_labels, low_resolution=images), options, noise)

    def sample(self, class_labels: Tensor, options: DiffusionOptions, noise: ImageNoise) -> SampleState:
        """Refused: there is no image to begin with, see ``upsample``."""
        raise self.lacks_images()

    def lacks_images(self) -> UserError:
        """Error of a call without images of lower resolution."""
        return UserError(
            f"an upsampler needs low_resolution images of {self.low_resolution_size} pixels; give them, or let another run make "
            "them: `generative sample BASE --upsampler`"
        )
