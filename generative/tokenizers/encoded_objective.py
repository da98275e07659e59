"""How a batch becomes what one class-conditional network is trained on: ids or latents of images, and labels, some dropped."""

from __future__ import annotations

import abc

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from generative.core.ema import EMAProfiles, average_specs
from generative.core.errors import UserError
from generative.core.objective import Objective, OptimizerFactory, Phase
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.tokenizers.base import ImageTokenizer, fingerprint
from generative.tokenizers.latents import draw_latents, encode_images, latent_stride


class EncodedObjective(Objective, abc.ABC):
    """One network, one phase, one optimizer; images pass a frozen encoder, and some labels are dropped.

    Args:
        name: Of the network, its phase, optimizer and average.
        network: Trained; its config has ``num_classes``, whose value is the label of the null condition.
        encoder: A tokenizer or an autoencoder, frozen; None trains on pixels.
        optimizer: Makes the optimizer.
        ema: Decay of the average that samples, or a list of several averages of which the first does; None samples from the
            network itself.
        label_dropout: Share of labels replaced by the null condition.

    Raises:
        UserError: If an option is out of range.
    """

    label_dropout: float

    def __init__(
        self,
        name: str,
        network: ModelMixin,
        encoder: ModelMixin | None,
        optimizer: OptimizerFactory,
        ema: EMAProfiles | None,
        label_dropout: float,
    ) -> None:
        if not 0 <= label_dropout < 1:
            raise UserError(f"label_dropout must be in [0, 1), got {label_dropout}")
        self.name = name
        self.encoder = FrozenEncoder(encoder)
        self.networks = {name: network}
        self.frozen = self.encoder.networks
        self.optimizers = {name: optimizer}
        self.ema = average_specs(name, ema)
        self.num_classes = self.null_label = int(network.config.num_classes)
        self.image_size = self.encoder.image_size(network)
        self.label_dropout = label_dropout

    def phases(self) -> list[Phase]:
        """One phase: the network."""
        return [Phase(name=self.name, networks=(self.name,), loss_fn=self.loss, optimizer=self.name)]

    @abc.abstractmethod
    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Loss of a micro-batch, see ``LossFn``."""

    def inputs(self, batch: Batch, context: StepContext) -> tuple[Tensor, Tensor]:
        """What the network is trained on.

        Args:
            batch: ``images``, or what a cache holds of them, and ``class_labels``.
            context: Its generator draws latents first, where the encoder does, and then which labels are dropped.

        Returns:
            Ids (B, L), latents (B, C, h, w) or images (B, 3, H, W), and class labels (B,), some of them dropped.
        """
        data = self.encoder.encode(batch, context.generator)
        return data, drop_labels(batch["class_labels"], self.null_label, self.label_dropout, context.generator)

    def encodings(self, batch: Batch, generator: torch.Generator) -> Batch:
        """``tokens`` or ``latents`` of a batch's images; see the base class."""
        if self.encoder.network is None:
            return {}
        encoded = self.encoder.encode(batch, generator)
        return {"tokens": encoded} if isinstance(self.encoder.network, ImageTokenizer) else {"latents": encoded}

    def encoder_fingerprint(self) -> str | None:
        """The encoder's."""
        return self.encoder.fingerprint


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
            batch: ``images``, or ``tokens`` or ``latents`` of this very encoder (the trainer compares fingerprints), perhaps
                with the images beside them.
            generator: Source of latents' randomness; tokenizers draw nothing.

        Returns:
            Ids (B, L) int64, latents (B, C, h, w) float32, or the images (B, 3, H, W).
        """
        if isinstance(self.network, ImageTokenizer):
            return batch["tokens"] if "tokens" in batch else self.network.encode(batch["images"])
        if "latents" in batch:
            # Drawn as ``encode_images`` draws: training from a cache takes the steps that training from its images takes.
            return draw_latents(batch["latents"], batch.get("latent_std"), generator)
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


def drop_labels(class_labels: Tensor, null_label: int, rate: float, generator: torch.Generator) -> Tensor:
    """Replace some labels by the null condition, for classifier-free guidance (arXiv 2207.12598, algorithm 1).

    Args:
        class_labels: (B,) int64.
        null_label: Label of the null condition, ``num_classes`` in this project's networks.
        rate: Probability of replacing a label, in [0, 1).
        generator: Source of the draw.

    Returns:
        (B,) int64.
    """
    if rate == 0:
        return class_labels
    dropped = torch.rand(class_labels.shape, generator=generator, device=generator.device) < rate
    return torch.where(dropped.to(class_labels.device), null_label, class_labels)
