"""Classes of noised images, from a classifier that guides diffusion models."""

from __future__ import annotations

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.formulations.base import Formulation
from pipelines.base import ImagePipeline
from pipelines.image_input import Images, prepare_images


class NoisedClassifierPipeline(ImagePipeline):
    """Class probabilities of images at any noise level; its classifier guides denoisers of the same formulation.

    Args:
        classifier: ``(sample (B, 3, H, W), time (B,)) -> logits (B, K)``.
        formulation: How the images that it was trained on were noised.
    """

    purpose = "tells the classes of noised images and makes none"
    advice = "give it to `generative sample DIFFUSION --classifier`"
    evaluator = "generative.diffusion.objectives.classifier_evaluation.ClassifierEvaluator"

    def __init__(self, classifier: ModelMixin, formulation: Formulation) -> None:
        super().__init__()
        self.register_modules(classifier=classifier, formulation=formulation)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return int(self.classifier.config.num_classes)

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return int(self.classifier.config.sample_size)

    @torch.no_grad()
    def logits(self, sample: Tensor, times: Tensor) -> Tensor:
        """Logits (B, K) float32 of noised images (B, 3, H, W) at times (B,) of the formulation."""
        noised, told = self.formulation.network_input(sample, times)
        logits: Tensor = self.classifier(noised.to(self.classifier.dtype), told)
        return logits.float()

    @torch.no_grad()
    def __call__(self, images: Images, timestep: float | Tensor = 0) -> Tensor:
        """Tell the classes of images.

        Args:
            images: See ``pipelines.image_input.prepare_images``; noised images as floating point.
            timestep: Time of the formulation, one for all or (B,): how much the images are noised; 0 of a Gaussian diffusion is
                as good as not at all.

        Returns:
            Probabilities (B, K) float32; ``class_names`` are those of the columns.

        Raises:
            UserError: If the images are of another size, or there are not as many times.
        """
        pixels = prepare_images(images, self.device)
        if pixels.shape[2:] != (self.image_size, self.image_size):
            raise UserError(f"the classifier takes images of {self.image_size} pixels, got {tuple(pixels.shape[2:])}")
        times = torch.as_tensor(timestep, device=self.device).reshape(-1)
        if len(times) not in (1, len(pixels)):
            raise UserError(f"timestep must be one for all or one per image, got {len(times)} for {len(pixels)} images")
        return self.logits(pixels, times.expand(len(pixels))).softmax(1)
