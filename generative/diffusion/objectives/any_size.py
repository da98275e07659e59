"""Training on images of several sizes in one batch, padded or packed (FiT, arXiv 2402.12376; FiTv2, 2410.13925)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.objective import Phase
from generative.core.types import Batch, StepContext
from generative.diffusion.denoiser import Condition, DenoiserOutput
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.layers.packing import to_images, to_patches, valid_tokens
from generative.tokenizers.encoded_objective import drop_labels
from generative.tokenizers.latents import encode_images


def masked_losses(
    formulation: Formulation,
    output: DenoiserOutput,
    x_start: Tensor,
    noise: Tensor,
    sample: Tensor,
    times: Tensor,
    sizes: Tensor,
) -> dict[str, Tensor]:
    """Parts of the loss of each image, (B,) by name, over its own tokens: the mean over all N places times N / valid.

    Args:
        formulation: What is trained under.
        output: Of the network, zero in the padding.
        x_start: (B, C, N, p^2) clean patches.
        noise: (B, C, N, p^2).
        sample: (B, C, N, p^2) x_t.
        times: (B,).
        sizes: (B, 2) int64 height and width in tokens.
    """
    is_valid = valid_tokens(sizes, sample.shape[2])  # (B, N)
    mask = is_valid[:, None, :, None]
    x_start, noise, sample = (values * mask for values in (x_start, noise, sample))
    share = is_valid.float().mean(1)
    parts = formulation.losses(output, x_start, noise, sample, times)
    return {name: value / share for name, value in parts.items()}


def by_size(images: Tensor, sizes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Places (b,) and pictures (b, 3, H, W) of the images of each size, since an encoder looks at what is beside an image.

    Args:
        images: (B, 3, N, q^2) patches of pixels.
        sizes: (B, 2) in tokens.
    """
    side = math.isqrt(images.shape[3])
    for height, width in sorted(set(map(tuple, sizes.tolist()))):  # asked for on the CPU
        members = ((sizes[:, 0] == height) & (sizes[:, 1] == width)).nonzero()[:, 0]
        yield members, to_images(images[members], height, width, side)


class AnySizeObjective(DiffusionObjective):
    """Denoising of images of several sizes at once; its arguments are those of ``DiffusionObjective``.

    Its data is an ``AspectDataset``, whose tokens are patches of the denoiser's: of pixels, or of the pixels that a patch of
    latents stands for. The denoiser takes ``sizes`` and ``packing`` (``generative.diffusion.networks.fit.FiT``) and predicts no
    variance.
    """

    def phases(self) -> list[Phase]:
        """One phase: the denoiser.

        Raises:
            UserError: If the denoiser takes images of one size only, or predicts a variance, or images are augmented.
        """
        denoiser: Any = self.networks["denoiser"]
        if getattr(denoiser, "size_multiple", None) is None:
            raise UserError(f"AnySizeObjective trains on several sizes, and {type(denoiser).__name__} takes one; use a FiT")
        if denoiser.config.get("learn_sigma"):
            raise UserError("AnySizeObjective trains no variance; set learn_sigma of the denoiser to false")
        if self.augment is not None:
            raise UserError("augment takes images of one size, and AnySizeObjective trains on several; leave augment out")
        return super().phases()

    def inputs(self, batch: Batch, context: StepContext) -> tuple[Tensor, Tensor]:
        """Patches (B, C, N, p^2) of pixels or latents, and labels (B,), some of them dropped; see the base class.

        Raises:
            UserError: If the batch is not of an ``AspectDataset``, or its tokens are none of this denoiser's.
        """
        denoiser: Any = self.networks["denoiser"]
        if "sizes" not in batch:
            raise UserError("AnySizeObjective trains on images of several sizes; give it an AspectDataset")
        images, side = batch["images"], denoiser.size_multiple * self.encoder.stride
        if images.shape[3] != side**2:
            raise UserError(
                f"a token of this denoiser is {side}x{side} pixels, and the data's are {math.isqrt(images.shape[3])} wide; "
                f"set token_size of the data to {side}"
            )
        if images.shape[2] > denoiser.context_size:
            raise UserError(
                f"the data's images are up to {images.shape[2]} tokens long and the denoiser's context_size is "
                f"{denoiser.context_size}; lower max_tokens of the data, or raise context_size"
            )
        labels = batch["class_labels"]
        context.cache.update(sizes=batch["sizes"], packing=batch.get("packing"))
        patches = self.encode(images, batch["sizes"], context.generator)
        return patches, drop_labels(labels, self.null_label, self.label_dropout, context.generator)

    @torch.no_grad()
    def encode(self, images: Tensor, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """Patches (B, C, N, p^2) of what the denoiser works on: pixels as they are, latents of each size by itself.

        Args:
            images: (B, 3, N, q^2) patches of pixels.
            sizes: (B, 2) in tokens.
            generator: Source of latents' randomness, image by image.
        """
        autoencoder = self.frozen.get("autoencoder")
        if autoencoder is None:
            return images
        denoiser: Any = self.networks["denoiser"]
        patch = denoiser.size_multiple
        patches = images.new_zeros(len(images), denoiser.config.in_channels, images.shape[2], patch**2)
        for members, pictures in by_size(images, sizes):
            encoded = to_patches(encode_images(autoencoder, pictures, generator), patch)
            patches[members, :, : encoded.shape[2]] = encoded
        return patches

    def represent(self, batch: Batch) -> Tensor | None:
        """Representations (B, D) of images of one size at a time, each brought to the encoder's square; see the base class."""
        if self.condition.encoder is None or "sizes" not in batch or "representations" in batch:
            return super().represent(batch)
        vectors = batch["images"].new_empty(len(batch["images"]), self.condition.encoder.dim)
        for members, pictures in by_size(batch["images"], batch["sizes"]):
            vectors[members] = self.condition.encoder(pictures)
        return vectors

    def conditions(self, x_start: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Condition]:
        """The patches, and their sizes and packing beside the labels; see the base class."""
        return x_start, Condition(labels, sizes=context.cache["sizes"], packing=context.cache["packing"])

    def compare(
        self, output: DenoiserOutput, x_start: Tensor, noise: Tensor, sample: Tensor, times: Tensor, condition: Condition
    ) -> dict[str, Tensor]:
        """See ``masked_losses``."""
        assert condition.sizes is not None
        return masked_losses(self.formulation, output, x_start, noise, sample, times, condition.sizes)
