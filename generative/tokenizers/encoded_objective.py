"""What objectives share that train one class-conditional network on ids or latents of images."""

from __future__ import annotations

import abc

from diffusers import ModelMixin
from torch import Tensor

from generative.core.ema import EMAProfile, EMASpec
from generative.core.errors import UserError
from generative.core.labels import drop_labels
from generative.core.objective import Objective, OptimizerFactory, Phase
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.tokenizers.frozen_encoder import FrozenEncoder


class EncodedObjective(Objective, abc.ABC):
    """One network, one phase, one optimizer; images pass a frozen encoder, and some labels are dropped.

    Args:
        name: Of the network, its phase, optimizer and average.
        network: Trained; its config has ``num_classes``, whose value is the label of the null condition.
        encoder: A tokenizer or an autoencoder, frozen; None trains on pixels.
        optimizer: Makes the optimizer.
        ema: Decay law of the average that samples; None samples from the network itself.
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
        ema: EMAProfile | None,
        label_dropout: float,
    ) -> None:
        if not 0 <= label_dropout < 1:
            raise UserError(f"label_dropout must be in [0, 1), got {label_dropout}")
        self.name = name
        self.encoder = FrozenEncoder(encoder)
        self.networks = {name: network}
        self.frozen = self.encoder.networks
        self.optimizers = {name: optimizer}
        self.ema = {} if ema is None else {name: EMASpec(name, ema)}
        self.num_classes = network.config.num_classes
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
        return data, drop_labels(batch["class_labels"], self.num_classes, self.label_dropout, context.generator)

    def encoder_fingerprint(self) -> str | None:
        """The encoder's."""
        return self.encoder.fingerprint
