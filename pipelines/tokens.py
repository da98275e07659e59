"""What the pipelines of a transformer and a tokenizer share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import ModelMixin

from generative.tokenizers.base import ImageTokenizer, check_match
from pipelines.base import ImageGenerationPipeline


class TokenPipeline(ImageGenerationPipeline):
    """Tokens from a transformer, images from a tokenizer; how the tokens are drawn is the subclass's.

    Args:
        transformer: Predicts tokens.
        tokenizer: Turns tokens into images.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.

    Attributes:
        check_components: Refuses a transformer and a tokenizer that do not speak of the same tokens, with a ``UserError``.
    """

    model_cpu_offload_seq = "transformer->tokenizer"
    check_components: Callable[[Any, Any], object] = staticmethod(check_match)

    def __init__(
        self, transformer: ModelMixin, tokenizer: ImageTokenizer, sampling_defaults: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.register_to_config(sampling_defaults=sampling_defaults)
        self.check_components(transformer, tokenizer)
        self.register_modules(transformer=transformer, tokenizer=tokenizer)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes)."""
        return self.transformer.config.num_classes

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.tokenizer.image_size
