"""Class-conditional images from a generator in one step, and paths between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import ImagePipelineOutput, ModelMixin
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import OneStepScheduler, SampleState, sample_loop, unguided
from generative.core.seeding import ImageNoise
from generative.gan.interpolation import InterpolationPath, frame_weights, interpolate, mix_classes
from generative.gan.options import GANOptions
from generative.gan.sampling import (
    TruncationLaw,
    check_truncation,
    check_truncation_law,
    generator_options,
    image_z,
    noise_shapes,
)
from pipelines.base import ClassLabels, ImageGenerationPipeline, OutputType

ClassMixture: TypeAlias = Tensor | Sequence[Sequence[float]]
"""(B, num_classes) weights in [0, 1], each row summing to 1: images between classes."""

Images: TypeAlias = ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]

MAX_WEIGHT_ERROR = 1e-3
"""By how much a row of mixture weights may miss a sum of 1: half precision of a thousand weights."""


class GANImagePipeline(ImageGenerationPipeline):
    """Samples a GAN's generator.

    Args:
        generator: ``(z (B, Z), class_labels (B,) or (B, num_classes) weights) -> (B, 3, H, W)`` in [-1, 1], with attributes
            ``z_dim``, ``num_classes`` and ``image_size``. One that injects noise has ``noise_shapes``, the shapes of its noise
            maps for one image, and takes ``noise``; one with batch-norm statistics for several truncations has ``num_statistics``
            above 1 and takes ``truncation``.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
        truncation_law: What the option ``truncation`` of a call, t, does to the noise vector. ``truncated``: standard normal
            numbers, those beyond +-t drawn again (the BigGAN paper, arXiv 1809.11096, section 3.1). ``scaled_truncated``: t times
            standard normal numbers truncated at +-2 (BigGAN's TF-Hub modules and pytorch-pretrained-biggan). ``scaled``: t times
            standard normal numbers (``z_var`` of BigGAN-PyTorch). Noise maps are never truncated.

    Raises:
        UserError: If there is no such distribution.
    """

    options_class = GANOptions

    def __init__(
        self,
        generator: ModelMixin,
        sampling_defaults: dict[str, Any] | None = None,
        truncation_law: str = "truncated",  # diffusers warns of a Literal
    ) -> None:
        super().__init__()
        check_truncation_law(truncation_law)
        self.register_modules(generator=generator)
        self.register_to_config(sampling_defaults=sampling_defaults, truncation_law=truncation_law)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes)."""
        return self.generator.num_classes

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.generator.image_size

    @property
    def truncation_law(self) -> TruncationLaw:
        """What ``truncation`` does; pipelines saved before there was a choice redraw."""
        return self.config.truncation_law

    def check_class_labels(self, class_labels: ClassLabels | ClassMixture) -> Tensor:
        """Validate class labels or mixtures of classes.

        Args:
            class_labels: One label or class name, a sequence or tensor (B,) of them, or (B, num_classes) weights.

        Returns:
            (B,) int64, or (B, num_classes) float32, on the pipeline's device.

        Raises:
            UserError: If there is none, a label is outside [0, num_classes), or weights are no mixture.
        """
        class_labels = self.number_classes(class_labels)
        try:
            labels = torch.as_tensor(class_labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"class_labels must be integers, or weights of all classes, got {class_labels!r}") from error
        if not labels.is_floating_point() or labels.ndim != 2:
            return super().check_class_labels(labels)
        if labels.shape[0] == 0 or labels.shape[1] != self.num_classes:
            raise UserError(
                f"class_labels of shape {tuple(labels.shape)} are no mixtures: this pipeline takes one weight for each of its "
                f"{self.num_classes} classes and image"
            )
        wrong = (labels < 0).any(1) | ~((labels.float().sum(1) - 1).abs() <= MAX_WEIGHT_ERROR)
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise UserError(f"class_labels row {first} is no mixture of classes: weights are at least 0 and sum to 1")
        return labels.to(self.device, torch.float32)

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise, truncation: float | None = None) -> SampleState:
        """Draw the noise: the vector first, then the maps in the generator's order.

        Args:
            class_labels: (B,) int64, or (B, num_classes) weights.
            noise: One random stream per image.
            truncation: Threshold or scale of the noise vector, or None.

        Returns:
            State whose sample is (B, Z); its memory holds the noise maps, (B, 1, h, w) each, and the truncation.
        """
        z = image_z(noise, self.generator.z_dim, truncation, self.truncation_law)
        maps = [noise.randn(*shape).to(self.generator.dtype) for shape in noise_shapes(self.generator)]
        return SampleState(z.to(self.generator.dtype), {"noise": maps, "truncation": truncation})

    def predict(self, state: SampleState, timestep: Any, class_labels: Tensor) -> Tensor:
        """Generate images (K, B, 3, H, W) for K rows of class labels, (K, B) or (K, B, num_classes); see the base class."""
        options = generator_options(self.generator, state.memory.get("noise", ()), state.memory.get("truncation"))
        return torch.stack([self.generator(state.sample, labels, **options) for labels in class_labels])

    def decode(self, state: SampleState) -> Tensor:
        """Images (B, 3, H, W), float32 in [-1, 1]."""
        return state.sample.float()

    def sample(self, class_labels: Tensor, options: GANOptions, noise: ImageNoise) -> SampleState:
        """One step from the noise; class labels may be mixtures, (B, num_classes) weights. See the base class."""
        self.plan(options)
        return self._generate(self.prepare_state(class_labels, noise, options.truncation), class_labels)

    def plan(self, options: GANOptions) -> None:
        """Check the option; see ``ImagePipeline.plan``."""
        check_truncation(options.truncation)

    @torch.no_grad()
    def interpolate_latents(
        self,
        class_labels: ClassLabels | ClassMixture,
        num_frames: int = 8,
        path: InterpolationPath = "spherical",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 64,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Images:
        """Interpolate from one noise to another, each row within its class.

        Args:
            class_labels: Class of each of B rows, or (B, num_classes) weights.
            num_frames: Images per row, F; the first and the last are those that ``__call__`` makes of the same generators.
            path: ``spherical`` or ``linear``; noise maps, where the generator injects some, go the same way.
            generator: Two CPU generators per row, its start's and its end's, row by row; or one for all; see ``image_noise``.
            batch_size: Images at a time; it does not change them.
            output_type: See ``postprocess``.
            return_dict: Return ``ImagePipelineOutput``, else a tuple of one.
            **options: As in ``__call__``.

        Returns:
            B * F images, row by row.

        Raises:
            UserError: As ``__call__``, or for fewer than two frames, or a path that is not known.
        """
        chosen = self.merge_options(options)
        self.plan(chosen)
        weights = frame_weights(num_frames)
        labels = self.check_class_labels(class_labels)
        if isinstance(generator, Sequence) and len(generator) != 2 * len(labels):
            raise UserError(
                f"generator is a list of {len(generator)} for {len(labels)} rows; give two generators per row, start and end"
            )
        noise = self.image_noise(generator, 2 * len(labels))
        ends = self.prepare_state(labels.repeat_interleave(2, dim=0), noise, chosen.truncation)  # (2B, ...)

        def frames(drawn: Tensor) -> Tensor:
            return interpolate(drawn[0::2], drawn[1::2], weights, path).flatten(0, 1)  # (B * F, ...)

        state = SampleState(frames(ends.sample), {**ends.memory, "noise": [frames(map_) for map_ in ends.memory["noise"]]})
        images = self._generate_in_batches(state, labels.repeat_interleave(num_frames, dim=0), batch_size)
        return self.postprocess(images, output_type, return_dict)

    @torch.no_grad()
    def interpolate_classes(
        self,
        class_labels: ClassLabels | ClassMixture,
        end_class_labels: ClassLabels | ClassMixture,
        num_frames: int = 8,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 64,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Images:
        """Interpolate from one class to another at fixed noise, along mixtures (1 - w, w) of the two.

        Args:
            class_labels: Class in which each of B rows starts.
            end_class_labels: Class in which it ends, B of them.
            num_frames: Images per row, F.
            generator: One CPU generator per row, or one for all; see ``image_noise``.
            batch_size: Images at a time; it does not change them.
            output_type: See ``postprocess``.
            return_dict: Return ``ImagePipelineOutput``, else a tuple of one.
            **options: As in ``__call__``.

        Returns:
            B * F images, row by row.

        Raises:
            UserError: As ``__call__``, or for fewer than two frames, or as many starts as there are no ends.
        """
        chosen = self.merge_options(options)
        self.plan(chosen)
        weights = frame_weights(num_frames)
        starts, ends = self.check_class_labels(class_labels), self.check_class_labels(end_class_labels)
        if len(starts) != len(ends):
            raise UserError(f"class_labels has {len(starts)} rows and end_class_labels {len(ends)}; give each start one end")
        drawn = self.prepare_state(starts, self.image_noise(generator, len(starts)), chosen.truncation)

        def repeat(value: Tensor) -> Tensor:
            return value.repeat_interleave(num_frames, dim=0)  # (B * F, ...)

        state = SampleState(repeat(drawn.sample), {**drawn.memory, "noise": [repeat(map_) for map_ in drawn.memory["noise"]]})
        mixtures = mix_classes(starts, ends, weights, self.num_classes).flatten(0, 1)  # (B * F, num_classes)
        return self.postprocess(self._generate_in_batches(state, mixtures, batch_size), output_type, return_dict)

    def _generate(self, state: SampleState, labels: Tensor) -> SampleState:
        """Images (B, 3, H, W) of a prepared state, as the sample of another."""
        return sample_loop(unguided(self.predict, labels), OneStepScheduler(), state, 1, ImageNoise([]))

    def _generate_in_batches(self, state: SampleState, labels: Tensor, batch_size: int) -> Tensor:
        """Images (B, 3, H, W) of a prepared state, in batches and with a progress bar."""
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        images = []
        for start in self.progress_bar(range(0, len(labels), batch_size)):
            part = slice(start, start + batch_size)
            memory = {**state.memory, "noise": [map_[part] for map_ in state.memory["noise"]]}
            images.append(self.decode(self._generate(SampleState(state.sample[part], memory), labels[part])))
        return torch.cat(images)
