"""Class-conditional images from a generator in one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput, ModelMixin
from PIL import Image
from torch import Tensor

from generative.core.sampling import SampleState, sample_loop, unguided
from generative.core.seeding import ImageNoise
from generative.gan.sampling import OneStepScheduler, check_truncation, image_z
from pipelines.base import ClassLabels, ImageGenerationPipeline, OutputType


class GANImagePipeline(ImageGenerationPipeline):
    """Samples a GAN's generator.

    Args:
        generator: ``(z (B, Z), class_labels (B,)) -> (B, 3, H, W)`` in [-1, 1], with attributes ``z_dim``, ``num_classes`` and
            ``image_size``.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
    """

    def __init__(self, generator: ModelMixin, sampling_defaults: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.register_modules(generator=generator)
        self.register_to_config(sampling_defaults=sampling_defaults)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes)."""
        return self.generator.num_classes

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.generator.image_size

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise, truncation: float | None = None) -> SampleState:
        """Draw the noise.

        Args:
            class_labels: (B,) int64.
            noise: One random stream per image.
            truncation: Threshold of the noise, or None.

        Returns:
            State whose sample is (B, Z).
        """
        return SampleState(image_z(noise, self.generator.z_dim, truncation).to(self.generator.dtype))

    def predict(self, state: SampleState, timestep: Any, class_labels: Tensor) -> Tensor:
        """Generate images (K, B, 3, H, W) for K rows of class labels (K, B); see the base class."""
        return torch.stack([self.generator(state.sample, labels) for labels in class_labels])

    def decode(self, state: SampleState) -> Tensor:
        """Images (B, 3, H, W), float32 in [-1, 1]."""
        return state.sample.float()

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels,
        truncation: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Generate images.

        Args:
            class_labels: One class per image.
            truncation: Draw the noise from a normal law truncated at +- this threshold (arXiv 1809.11096, section 3.1): smaller
                gives better and less varied images. None does not truncate.
            generator: One CPU generator per image, or one for all; see ``image_noise``.
            output_type: ``pil``, ``np``, ``pt`` or ``uint8``; see ``postprocess``.
            return_dict: Return ``ImagePipelineOutput``, else a tuple of one.

        Returns:
            The images.

        Raises:
            UserError: For wrong labels, a wrong number of generators or a threshold that is not positive.

        Example:
            >>> pipeline = GANImagePipeline.from_pretrained("runs/quickstart/sagan/pipeline")
            >>> images = pipeline(class_labels=[3, 5], truncation=0.8).images
        """
        check_truncation(truncation)
        labels = self.check_class_labels(class_labels)
        noise = self.image_noise(generator, len(labels))
        state = self.prepare_state(labels, noise, truncation)
        state = sample_loop(unguided(self.predict, labels), OneStepScheduler(), state, 1, noise)
        return self.postprocess(self.decode(state), output_type, return_dict)
