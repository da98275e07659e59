"""Two diffusion models in a row: one makes small images of classes, one brings them to a higher resolution."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.images import images_to_float
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.options import CascadeOptions, DiffusionOptions
from pipelines.base import ImageGenerationPipeline
from pipelines.diffusion import DiffusionImagePipeline
from pipelines.upsampler import UpsamplerPipeline

PREFIX = "upsampler_"
"""Of the upsampler's options among the cascade's."""


class CascadePipeline(ImageGenerationPipeline):
    """Images of classes by a base and an upsampler (arXiv 2105.05233, section 6.4; 2106.15282).

    The base's images are rounded to 8 bits in between, so that a cascade makes of them what the upsampler makes of their files.
    Of the upsampler's options a call takes those that ``CascadeOptions`` names ``upsampler_...`` only; the others (rules,
    channels and schedules of guidance, FreeU, a classifier) are as the upsampler was saved.

    Args:
        base: Makes the small images; its guide and classifier, if it has them, act on them.
        upsampler: Takes images of that size.
        sampling_defaults: Options of this pipeline, over those that base and upsampler were saved with.

    Raises:
        UserError: If the sizes do not meet, or the classes differ.
    """

    options_class = CascadeOptions

    def __init__(
        self,
        base: DiffusionImagePipeline,
        upsampler: UpsamplerPipeline,
        sampling_defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_stages(base, upsampler)
        self.register_to_config(sampling_defaults=sampling_defaults)
        self.register_modules(base=base, upsampler=upsampler)
        if self.class_names is None and base.class_names is not None:
            self.class_names = base.class_names

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """Options saved with the pipeline, over those of its stages."""
        stage = {PREFIX + name: value for name, value in self.upsampler.sampling_defaults.items()}
        known = {name: value for name, value in stage.items() if name in self.options_class.names()}
        return {**self.base.sampling_defaults, **known, **super().sampling_defaults}

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes). A stage without classes ignores them."""
        counts = [stage.num_classes for stage in (self.base, self.upsampler) if stage.minds_classes]
        return int(min(counts, default=self.base.num_classes))

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return int(self.upsampler.image_size)

    @property
    def device(self) -> torch.device:
        """Where the base is; ``to`` moves both."""
        device: torch.device = self.base.device
        return device

    def to(self, *place: Any, **settings: Any) -> Self:
        """Move both stages, see ``DiffusionPipeline.to``."""
        self.base.to(*place, **settings)
        self.upsampler.to(*place, **settings)
        return self

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Set how progress bars of both stages look."""
        super().set_progress_bar_config(**settings)
        self.base.set_progress_bar_config(**settings)
        self.upsampler.set_progress_bar_config(**settings)

    def plan(self, options: CascadeOptions) -> tuple[DiffusionOptions, DiffusionOptions]:
        """The options of base and upsampler, once both have checked theirs; see ``ImagePipeline.plan``."""
        if options.size is not None:
            raise UserError(f"size {options.size} cannot be made by a cascade, whose upsampler takes one size; leave it out")
        values = options.to_dict()
        base = DiffusionOptions.from_dict({name: values[name] for name in DiffusionOptions.names()})
        own = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
        upsampler = self.upsampler.merge_options({name: value for name, value in own.items() if value is not None})
        self.base.plan(base)
        self.upsampler.plan(upsampler)
        return base, upsampler

    def sample(self, class_labels: Tensor, options: CascadeOptions, noise: ImageNoise) -> SampleState:
        """Base, then upsampler, each image on its own stream of noise; see the base class."""
        base_options, upsampler_options = self.plan(options)
        images = self.base.decode(self.base.sample(class_labels, base_options, noise))
        (levels,) = self.base.postprocess(images, "uint8", return_dict=False)
        return self.upsampler.upsample(images_to_float(levels), class_labels, upsampler_options, noise)

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """The base's."""
        return self.base.prepare_state(class_labels, noise)

    def decode(self, state: SampleState) -> Tensor:
        """Images (B, 3, H, W) of the upsampler's final sample."""
        return self.upsampler.decode(state)


def check_stages(base: Any, upsampler: Any) -> None:
    """Refuse stages that do not meet.

    Raises:
        UserError: If one is not what its name says, the base makes images of another size than the upsampler takes, or their
            classes differ.
    """
    if not isinstance(upsampler, UpsamplerPipeline):
        raise UserError(f"the upsampler is a {type(upsampler).__name__}, which takes no images of lower resolution; train one")
    if not isinstance(base, DiffusionImagePipeline) or isinstance(base, UpsamplerPipeline):
        raise UserError(
            f"the base is a {type(base).__name__}; a cascade begins with a diffusion model that makes images of classes"
        )
    if base.image_size != upsampler.low_resolution_size:
        raise UserError(
            f"the base makes images of {base.image_size} pixels and the upsampler takes {upsampler.low_resolution_size}; give "
            "two that meet"
        )
    if base.minds_classes and upsampler.minds_classes and base.num_classes != upsampler.num_classes:
        raise UserError(
            f"the base has {base.num_classes} classes and the upsampler {upsampler.num_classes}; give two of the same classes"
        )
    if None not in (base.class_names, upsampler.class_names) and base.class_names != upsampler.class_names:
        raise UserError("base and upsampler have other names for their classes; give two of the same classes")
