"""What pipelines over continuous tokens share: tokens from a masked autoencoder and its diffusion head, then an autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.autoregressive.continuous.diffusion_head import HeadSampler, TokenNoise, draw_tokens
from generative.autoregressive.continuous.masked_autoencoder import MaskedAutoencoder
from generative.autoregressive.continuous.schedulers import DrawTokens, MaskedScheduler
from generative.core.errors import UserError
from generative.core.sampling import SampleState, sample_loop
from generative.core.seeding import ImageNoise
from generative.tokenizers.latents import check_latents, decode_latents, latent_stride
from pipelines.base import ImageGenerationPipeline

IMAGE_CHANNELS = 3


class ContinuousTokenPipeline(ImageGenerationPipeline):
    """Base of ``MARPipeline`` and ``EMIGMPipeline``.

    Args:
        network: Trained network.
        autoencoder: Decodes its latents; None if pixels are the latents.
        sampling_defaults: See ``ImageGenerationPipeline.sampling_defaults``.
    """

    _optional_components = ["autoencoder"]
    model_cpu_offload_seq = "network->autoencoder"

    network: MaskedAutoencoder
    autoencoder: ModelMixin | None

    def __init__(
        self, network: ModelMixin, autoencoder: ModelMixin | None = None, sampling_defaults: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.register_to_config(sampling_defaults=sampling_defaults)
        check_latents(network.config.in_channels, autoencoder)
        self.register_modules(network=network, autoencoder=autoencoder)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes)."""
        return int(self.network.config.num_classes)

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return int(self.network.config.sample_size) * (latent_stride(self.autoencoder) if self.autoencoder else 1)

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """No token is known."""
        shape = (len(class_labels), self.network.num_tokens)
        tokens = torch.zeros(*shape, self.network.token_size, device=class_labels.device)
        return SampleState(tokens, {"masked": torch.ones(shape, dtype=torch.bool, device=class_labels.device)})

    def predict(self, state: SampleState, timestep: Any, class_labels: Tensor) -> Tensor:
        """Vectors of the chosen positions for K guidance branches, in one forward pass.

        Args:
            state: Tokens (B, L, C); its memory has ``masked`` and ``chosen`` (B, L).
            timestep: Not used.
            class_labels: (K, B) int64; ``num_classes`` is the null condition.

        Returns:
            (K, N, D) for the N chosen positions of the batch, image by image.
        """
        branches = len(class_labels)
        tokens = state.sample.to(self.network.dtype).repeat(branches, 1, 1)  # (K B, L, C)
        masked, chosen = (state.memory[name].repeat(branches, 1) for name in ("masked", "chosen"))  # (K B, L)
        if not bool(chosen.any()):
            return tokens.new_zeros(branches, 0, self.network.config.decoder_hidden_size)
        return self.network(tokens, masked, class_labels.flatten(), chosen=chosen).unflatten(0, (branches, -1))

    def head_drawing(self, sampler: HeadSampler) -> DrawTokens:
        """Drawing of tokens by the network's head with a solver."""

        def draw(features: Tensor, guidance_scale: Tensor | None, counts: list[int], noise: ImageNoise) -> Tensor:
            tokens = TokenNoise(noise, counts, sampler.num_draws, self.network.token_size)
            return draw_tokens(self.network.head, features, guidance_scale, sampler, tokens)

        return draw

    def run(
        self, class_labels: Tensor, scheduler: MaskedScheduler, num_inference_steps: int, noise: ImageNoise, state: SampleState
    ) -> SampleState:
        """Draw all tokens.

        Args:
            class_labels: (B,) int64.
            scheduler: Chooses tokens and guidance.
            num_inference_steps: Iterations.
            noise: One stream per image.
            state: From ``prepare_state``.
        """
        branches = torch.stack([class_labels, torch.full_like(class_labels, self.num_classes)])  # (2, B)

        def predict(current: SampleState, timestep: int) -> Tensor:
            return self.predict(current, timestep, branches if scheduler.is_guided(timestep) else branches[:1])

        return sample_loop(predict, scheduler, state, num_inference_steps, noise, self.progress_bar)

    def check_decodable(self) -> None:
        """Refuse, before anything is drawn, to make latents that nothing decodes.

        Raises:
            UserError: If the network's channels are not those of images and there is no autoencoder.
        """
        if self.autoencoder is None and self.network.config.in_channels != IMAGE_CHANNELS:
            raise UserError(
                f"the network makes latents of {self.network.config.in_channels} channels (in_channels; images have "
                f"{IMAGE_CHANNELS}) and the pipeline has no autoencoder; convert with --autoencoder DIR, or build the "
                "pipeline with autoencoder=..."
            )

    def decode(self, state: SampleState) -> Tensor:
        """Images (B, 3, H, W) of the final tokens."""
        latents = self.network.unpatchify(state.sample)
        return latents if self.autoencoder is None else decode_latents(self.autoencoder, latents)
