"""Our side of ``gan_training.py``: the trainer's own step on one batch that stays, and sampling from its average."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from rival_gan import ADAM_EPS, BETAS, DISCRIMINATOR_LR, EMA_DECAY, GENERATOR_LR, NUM_CLASSES, official_options
from torch import Tensor, nn

from generative.convert import get_source
from generative.core.ema import ConstantEMA
from generative.core.runtime import Precision, build_accelerator
from generative.core.trainer import Trainer
from generative.core.trainer_config import TrainerConfig
from generative.data.base import ImageDataset
from generative.gan.objective import GANObjective


class OneImage(ImageDataset):
    """The trainer asks its data for their size and classes; the benchmark hands it batches itself."""

    def __init__(self, image_size: int, num_classes: int = NUM_CLASSES) -> None:
        super().__init__(torch.arange(num_classes), num_classes, image_size, "benchmark")

    def load_image(self, index: int) -> Tensor:
        """(3, H, W) uint8, black."""
        return torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)

    def source_name(self, index: int) -> str:
        """Never shown."""
        return "black image"


def build_networks(model: str, resolution: int, channels: int, state: dict[str, dict[str, Tensor]]) -> dict[str, nn.Module]:
    """Our networks with the rival's weights."""
    source = get_source(model)
    networks = source.build(official_options(model, resolution, channels))
    for name, network in networks.items():
        network.load_state_dict(source.convert_state(name, state[name], network))
    return dict(networks)


def build_objective(model: str, networks: dict[str, nn.Module]) -> GANObjective:
    """The rival's loss, optimizers and average; our Adam in one fused kernel."""
    options: dict[str, Any] = {"betas": BETAS, "eps": ADAM_EPS[model], "fused": True}
    return GANObjective(
        networks["generator"],
        networks["discriminator"],
        partial(torch.optim.Adam, lr=GENERATOR_LR, **options),
        partial(torch.optim.Adam, lr=DISCRIMINATOR_LR, **options),
        loss="hinge",
        ema=ConstantEMA(EMA_DECAY, warmup=False),
        ema_buffers="average",
    )


class OurGAN:
    """The trainer on our networks.

    Args:
        model: ``sagan`` or ``biggan``.
        resolution: Side of the images, in pixels.
        channels: Channel multiplier.
        images: (B, 3, H, W) real images in [-1, 1], for every step.
        labels: (B,) their classes.
        state: The rival's weights by network.
        precision: ``no`` for float32, or ``bf16``.
        channels_last: The trainer's option.
        compile: The trainer's option.
        folder: Never written to.
    """

    def __init__(
        self,
        model: str,
        resolution: int,
        channels: int,
        images: Tensor,
        labels: Tensor,
        state: dict[str, dict[str, Tensor]],
        precision: Precision,
        channels_last: bool,
        compile: bool,
        folder: Path,
    ) -> None:
        self.objective = build_objective(model, build_networks(model, resolution, channels, state))
        config = TrainerConfig(
            output_dir=folder,
            total_images=10**9,
            batch_size=len(images),
            mixed_precision=precision,
            channels_last=channels_last,
            compile=compile,
        )
        self.accelerator = build_accelerator(precision)
        self.trainer = Trainer(self.objective, OneImage(resolution), config, self.accelerator)
        self.batch: Any = {"images": images, "class_labels": labels}
        self.average = self.trainer.averages["generator"]
        if compile:
            self.average.compile()

    def step(self) -> None:
        """One step of the trainer: both phases and the average."""
        self.trainer.train_step([[self.batch]])

    @torch.no_grad()
    def sample(self) -> Tensor:
        """As many images (B, 3, H, W) as the batch has, from the average."""
        batch_size = len(self.batch["images"])
        with self.accelerator.autocast():
            return self.average(torch.randn(batch_size, self.objective.z_dim), torch.randint(NUM_CLASSES, (batch_size,)))
