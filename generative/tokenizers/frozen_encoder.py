"""What a network is trained on: ids or latents of images, from a cache or encoded now."""

from __future__ import annotations

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from generative.core.types import Batch
from generative.tokenizers.base import ImageTokenizer, fingerprint
from generative.tokenizers.latents import encode_images, latent_stride


class FrozenEncoder:
    """Images to token ids or latents by a network that is not trained.

    Args:
        network: A tokenizer, which is frozen here, or an autoencoder with continuous latents, likewise; None leaves images as
            they are.

    Raises:
        UserError: If the network is neither.
    """

    def __init__(self, network: ModelMixin | None) -> None:
        self.network = None if network is None else network.requires_grad_(False).eval()
        self.stride = 1 if network is None or isinstance(network, ImageTokenizer) else latent_stride(network)

    @torch.no_grad()
    def encode(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Ids or latents of a batch: those that it brings, or else those of its images.

        Args:
            batch: ``images``, or ``tokens`` or ``latents`` of this very encoder (the trainer compares fingerprints).
            generator: Source of latents' randomness; tokenizers draw nothing.

        Returns:
            Ids (B, L) int64, latents (B, C, h, w) float32, or the images (B, 3, H, W).
        """
        if isinstance(self.network, ImageTokenizer):
            return batch["tokens"] if "tokens" in batch else self.network.encode(batch["images"])
        if "latents" in batch:
            return batch["latents"]
        return batch["images"] if self.network is None else encode_images(self.network, batch["images"], generator)

    def image_size(self, network: ModelMixin) -> int:
        """Height and width of the images whose ids or latents a network works on, in pixels.

        Args:
            network: Where latents or pixels are encoded, its config has their ``sample_size``; a tokenizer knows alone.
        """
        if isinstance(self.network, ImageTokenizer):
            return self.network.image_size
        return int(network.config.sample_size) * self.stride

    @property
    def fingerprint(self) -> str | None:
        """sha256 of class, config and weights, which caches carry; None for images as they are."""
        return None if self.network is None else fingerprint(self.network)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network by the name of its kind, as objectives list what they hold fixed and pipelines their components."""
        if self.network is None:
            return {}
        return {"tokenizer" if isinstance(self.network, ImageTokenizer) else "autoencoder": self.network}
