"""Tiny objectives, networks and a pipeline that the tests of the core and of the command line share.

Tests get this module through the ``toy`` fixture; configurations name its classes as ``toy.ToyGAN`` and so on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from generative.core.ema import ConstantEMA, EMAProfile, EMASpec
from generative.core.evaluation import Evaluator
from generative.core.objective import Objective, OptimizerFactory, Phase
from generative.core.options import SamplingOptions
from generative.core.runtime import build_accelerator
from generative.core.sampling import SampleState, sample_loop, unguided
from generative.core.seeding import ImageNoise
from generative.core.trainer import Trainer
from generative.core.trainer_config import TrainerConfig
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.data.base import ImageDataset, hash_parts
from pipelines.base import ImageGenerationPipeline

PIXELS = 3 * 4 * 4


class ToyImages(ImageDataset):
    """Fixed random images, decoded one by one (no cache, so that empty selections are not forgiven)."""

    def __init__(self, num_images: int = 24, num_classes: int = 3, image_size: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (num_images, 3, image_size, image_size)
        self.pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        fingerprint = hash_parts("toy", num_images, num_classes, image_size, seed)
        super().__init__(torch.arange(num_images) % num_classes, num_classes, image_size, fingerprint)
        self.prepare(cache=False, verify=False)

    def load_image(self, index: int) -> Tensor:
        return self.pixels[index]

    def source_name(self, index: int) -> str:
        return f"toy image {index}"


class ToyGenerator(ModelMixin, ConfigMixin):
    """Noise and class to image, a linear map."""

    @register_to_config
    def __init__(self, z_dim: int = 4, num_classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, z_dim)
        self.linear = nn.Linear(z_dim, PIXELS)

    def forward(self, z: Tensor, class_labels: Tensor) -> Tensor:
        return torch.tanh(self.linear(z + self.embed(class_labels))).view(-1, 3, 4, 4)


class ToyDiscriminator(ModelMixin, ConfigMixin):
    """Image and class to logit, two layers."""

    @register_to_config
    def __init__(self, width: int = 8, num_classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, width)
        self.first = nn.Linear(PIXELS, width)
        self.last = nn.Linear(width, 1)

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(images.flatten(1)) + self.embed(class_labels)))[:, 0]


class ToyNet(ModelMixin, ConfigMixin):
    """Image to image, with dropout and batch norm."""

    @register_to_config
    def __init__(self, width: int = 8, num_classes: int = 3, dropout: float = 0.2, batch_norm: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, width)
        self.first = nn.Linear(PIXELS, width)
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(width, PIXELS)

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        hidden = self.drop(torch.relu(self.norm(self.first(images.flatten(1)) + self.embed(class_labels))))
        return self.last(hidden).view(-1, 3, 4, 4)


class OneStep:
    """A sampler of one step whose sample is the prediction."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> list[int]:
        return [0]

    def model_input(self, state: SampleState, timestep: Any) -> SampleState:
        return state

    def step(self, prediction: Tensor, timestep: Any, state: SampleState, noise: ImageNoise) -> SampleState:
        return SampleState(prediction)


@dataclass(frozen=True, kw_only=True)
class ToyOptions(SamplingOptions):
    """Options of ``ToyPipeline``."""

    truncation: float | None = None


class ToyPipeline(ImageGenerationPipeline):
    """Images from ``ToyNet`` on noise, or from ``ToyGenerator``."""

    options_class = ToyOptions

    def __init__(self, network: ModelMixin) -> None:
        super().__init__()
        self.register_modules(network=network)

    @property
    def num_classes(self) -> int:
        return self.network.config.num_classes

    @property
    def image_size(self) -> int:
        return 4

    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        shape = (self.network.config.z_dim,) if isinstance(self.network, ToyGenerator) else (3, 4, 4)
        return SampleState(noise.randn(*shape))

    def predict(self, state: SampleState, timestep: Any, class_labels: Tensor) -> Tensor:
        return torch.stack([self.network(state.sample, labels) for labels in class_labels])

    def decode(self, state: SampleState) -> Tensor:
        return state.sample.float()

    def sample(self, class_labels: Tensor, options: ToyOptions, noise: ImageNoise) -> SampleState:
        return sample_loop(unguided(self.predict, class_labels), OneStep(), self.prepare_state(class_labels, noise), 1, noise)


class ToyGAN(Objective):
    """Two phases, whose noise is taken from the batch: its maths does not depend on how a batch is split."""

    def __init__(
        self,
        generator_optimizer: OptimizerFactory,
        discriminator_optimizer: OptimizerFactory,
        z_dim: int = 4,
        discriminator_steps: int = 1,
        ema: EMAProfile | None = None,
        random_noise: bool = False,
    ) -> None:
        self.networks = {"generator": ToyGenerator(z_dim), "discriminator": ToyDiscriminator()}
        self.frozen = {}
        self.optimizers = {"generator": generator_optimizer, "discriminator": discriminator_optimizer}
        self.ema = {} if ema is None else {"generator": EMASpec("generator", ema)}
        self.num_classes, self.image_size = 3, 4
        self.z_dim = z_dim
        self.discriminator_steps = discriminator_steps
        self.random_noise = random_noise

    def phases(self) -> list[Phase]:
        return [
            Phase(
                name="discriminator",
                networks=("discriminator",),
                loss_fn=self.discriminator_loss,
                optimizer="discriminator",
                repeats=self.discriminator_steps,
            ),
            Phase(name="generator", networks=("generator",), loss_fn=self.generator_loss, optimizer="generator"),
        ]

    def fake(self, networks: Networks, batch: Batch, generator: torch.Generator) -> Tensor:
        z = batch["images"].flatten(1)[:, : self.z_dim]
        if self.random_noise:
            z = torch.randn(z.shape, generator=generator)
        return networks["generator"](z, batch["class_labels"])

    def discriminator_loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        labels = batch["class_labels"]
        real = networks["discriminator"](batch["images"], labels)
        fake = networks["discriminator"](self.fake(networks, batch, context.generator).detach(), labels)
        return {"loss": F.softplus(-real).mean() + F.softplus(fake).mean(), "real_logits": real.detach().mean()}

    def generator_loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        logits = networks["discriminator"](self.fake(networks, batch, context.generator), batch["class_labels"])
        return {"loss": F.softplus(-logits).mean()}

    def pipeline(self, networks: Networks) -> ToyPipeline:
        return ToyPipeline(networks["generator"])


class ToyDenoiser(Objective):
    """One phase with dropout, batch norm and random noise.

    Args:
        optimizer: Makes the optimizer.
        width: Width of the network.
        dropout: Share of hidden units dropped.
        batch_norm: Use batch norm.
        ema: Decay profile of the average.
        ema_buffers: What the average does with buffers.
        num_classes: Classes that the network knows.
        nan_at_call: From this call of the loss on, it is NaN.
        signal_at_call: During this call of the loss, the process sends itself ``signal_number``.
        signal_number: Number of that signal.
    """

    def __init__(
        self,
        optimizer: OptimizerFactory,
        width: int = 8,
        dropout: float = 0.2,
        batch_norm: bool = True,
        ema: EMAProfile | None = None,
        ema_buffers: Literal["copy", "average"] = "average",
        num_classes: int = 3,
        nan_at_call: int | None = None,
        signal_at_call: int | None = None,
        signal_number: int = 15,
    ) -> None:
        self.networks = {"net": ToyNet(width, num_classes, dropout, batch_norm)}
        self.frozen = {}
        self.optimizers = {"net": optimizer}
        self.ema = {} if ema is None else {"net": EMASpec("net", ema, ema_buffers)}
        self.num_classes, self.image_size = num_classes, 4
        self.nan_at_call = nan_at_call
        self.signal_at_call = signal_at_call
        self.signal_number = signal_number
        self.calls = 0
        self.on_call: Callable[[Batch], None] | None = None

    def phases(self) -> list[Phase]:
        return [Phase(name="denoise", networks=("net",), loss_fn=self.loss, optimizer="net")]

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        self.calls += 1
        if self.on_call is not None:
            self.on_call(batch)
        if self.calls == self.signal_at_call:
            os.kill(os.getpid(), self.signal_number)
        images = batch["images"]
        noise = torch.randn(images.shape, generator=context.generator, device=context.generator.device)
        loss = (networks["net"](images + 0.1 * noise, batch["class_labels"]).float() - images).square().mean()
        if self.nan_at_call is not None and self.calls >= self.nan_at_call:
            loss = loss * float("nan")
        return {"loss": loss, "noise": noise.mean()}

    def pipeline(self, networks: Networks) -> ToyPipeline:
        return ToyPipeline(networks["net"])


class ToyMasked(Objective):
    """A masked loss: a sum over the bright pixels, whose number differs from image to image, and that number."""

    def __init__(self, optimizer: OptimizerFactory, threshold: float = 0.6, empty: bool = False) -> None:
        self.networks = {"net": ToyNet(8, 3, dropout=0.0, batch_norm=False)}
        self.frozen = {}
        self.optimizers = {"net": optimizer}
        self.ema = {}
        self.num_classes, self.image_size = 3, 4
        self.threshold = threshold
        self.empty = empty

    def phases(self) -> list[Phase]:
        return [Phase(name="masked", networks=("net",), loss_fn=self.loss, optimizer="net")]

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        images = batch["images"]
        # Classes differ much in how many pixels count, so micro-batches do too.
        mask = (images > self.threshold * (batch["class_labels"].view(-1, 1, 1, 1) - 1)) & (not self.empty)
        error = (networks["net"](images, batch["class_labels"]) - images).square()
        return {"loss": (error * mask).sum(), "denominator": mask.sum(), "share": mask.float().mean()}

    def pipeline(self, networks: Networks) -> ToyPipeline:
        return ToyPipeline(networks["net"])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Plain gradient descent: a step shows the gradient itself."""
    return torch.optim.SGD(parameters, lr=0.1)


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Adam, which has states to save."""
    return torch.optim.Adam(parameters, lr=1e-2)


def denoiser(**options: Any) -> ToyDenoiser:
    """The denoiser with an average, its weights always the same."""
    torch.manual_seed(0)
    return ToyDenoiser(adam, **{"ema": ConstantEMA(0.9), **options})


def gan(optimizer: OptimizerFactory = sgd, **options: Any) -> ToyGAN:
    """The GAN, its weights always the same."""
    torch.manual_seed(0)
    return ToyGAN(optimizer, optimizer, **options)


def masked(optimizer: OptimizerFactory = sgd, **options: Any) -> ToyMasked:
    """The masked objective, its weights always the same."""
    torch.manual_seed(0)
    return ToyMasked(optimizer, **options)


def evaluator(**options: Any) -> Evaluator:
    """A quick one on the packaged extractor."""
    defaults: dict[str, Any] = {
        "extractor": "efficientnet-lite0",
        "input_size": 32,
        "metrics": ("frechet", "kid"),
        "num_samples": 12,
    }
    return Evaluator(ToyImages(seed=9), **{**defaults, **options})


def build_trainer(
    objective: Objective,
    folder: Path,
    seed: int = 0,
    dataset: ImageDataset | None = None,
    evaluator: Evaluator | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer of 6 steps of 8 images that logs every step; ``settings`` are ``TrainerConfig``'s."""
    defaults = {
        "total_images": 48,
        "batch_size": 8,
        "log_interval_steps": 1,
        "checkpoint_interval_steps": 2,
        "grid_images_per_class": 2,
        "progress": False,
    }
    config = TrainerConfig(output_dir=folder, **{**defaults, **settings})
    return Trainer(objective, dataset or ToyImages(), config, build_accelerator(config.mixed_precision), seed, evaluator)


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor that a run must carry over an interruption: networks, averages, buffers, optimizer states."""
    tensors = {f"buffers.{name}": value.clone() for name, value in trainer.objective.buffers.items()}
    for name, network in [*trainer.objective.networks.items(), *((f"ema {n}", a) for n, a in trainer.averages.items())]:
        tensors |= {f"{name}.{key}": value.detach().clone() for key, value in network.state_dict().items()}
    for name, optimizer in trainer.optimizers.items():
        for index, state in optimizer.optimizer.state_dict()["state"].items():
            tensors |= {f"{name} {index}.{key}": value.clone() for key, value in state.items() if isinstance(value, Tensor)}
    return tensors
