"""Training of a classifier of noised images, whose gradient guides diffusion models (arXiv 2105.05233, section 4)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import ModelMixin
from torch import Tensor
from torch.nn import functional as F

from generative.core.ema import EMAProfile, EMASpec
from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.images import images_to_float, images_to_uint8
from generative.core.objective import Objective, OptimizerFactory, Phase
from generative.core.seeding import keyed_generator
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.objectives.noise_monitor import NoiseMonitor

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline
    from pipelines.classifier import NoisedClassifierPipeline

TOP_FIVE_CLASSES = 10
"""Least number of classes of which top-5 accuracy tells something."""
RECOGNISED, MISTAKEN = (0, 160, 60), (220, 30, 30)
"""Colours of frames in the grid."""


class NoisedClassifierObjective(Objective):
    """Cross-entropy of the classes of images noised to times drawn as for a denoiser.

    Loss and accuracy are logged, also apart by quarter of the noise level (``top1_q0`` the cleanest).

    Args:
        classifier: ``(sample (B, 3, H, W), time (B,)) -> logits (B, K)``; its config has ``sample_size``, ``in_channels`` and
            ``num_classes``.
        formulation: How images are noised, and what the classifier is told; that of the denoisers that it is to guide.
        optimizer: Makes the optimizer.
        noised: Noise the images; else they are clean, and the classifier is told so.
        ema: Decay of the average that is exported; None exports the classifier itself.

    Raises:
        UserError: If the classifier is not one of images.
    """

    usage = "guide a diffusion of the same formulation with `generative sample RUN --classifier {run} --classifier-scale 1`"

    def __init__(
        self,
        classifier: ModelMixin,
        formulation: Formulation,
        optimizer: OptimizerFactory,
        noised: bool = True,
        ema: EMAProfile | None = None,
    ) -> None:
        if classifier.config.in_channels != 3:
            raise UserError(f"the classifier is of images, whose in_channels are 3, got {classifier.config.in_channels}")
        self.networks = {"classifier": classifier}
        self.frozen = {}
        self.optimizers = {"classifier": optimizer}
        self.ema = {} if ema is None else {"classifier": EMASpec("classifier", ema)}
        self.num_classes = classifier.config.num_classes
        self.image_size = classifier.config.sample_size
        self.formulation = formulation
        self.noised = noised
        self.monitor = NoiseMonitor(("loss", *top_counts(self.num_classes)))
        self.buffers = {"by_noise_level": self.monitor.sums}

    def phases(self) -> list[Phase]:
        """One phase: the classifier."""
        return [
            Phase(
                name="classifier",
                networks=("classifier",),
                loss_fn=self.loss,
                optimizer="classifier",
                after_step=lambda networks, step: self.monitor.fold(),
            )
        ]

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Cross-entropy of a micro-batch, see ``LossFn``.

        Returns:
            ``loss``, and the shares of images whose class is the most probable (``top1``) or, of ten classes and more, among
            the five most probable (``top5``).
        """
        images, labels = batch["images"], batch["class_labels"]
        sample, times = self.noise(images, context.generator)
        logits = networks["classifier"](*self.formulation.network_input(sample, times)).float()  # (B, K)
        values = {"loss": F.cross_entropy(logits, labels, reduction="none")}
        values |= {name: is_among(logits.detach(), labels, count) for name, count in top_counts(self.num_classes).items()}
        self.monitor.record(self.formulation.noise_level(times), values)
        return {name: value.mean() for name, value in values.items()}

    def noise(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noised images (B, 3, H, W) and their times (B,)."""
        if not self.noised:
            time = self.formulation.nearest_time()
            time = time.float() if time.is_floating_point() else time
            return images, time.to(images.device).expand(len(images))
        times = self.formulation.draw_times(len(images), generator).to(images.device)
        _, sample = self.formulation.draw_noised(images, times, generator)
        return sample, times

    def identity(self) -> Mapping[str, Any]:
        """The formulation, and whether images are noised."""
        return {"formulation": type(self.formulation).__name__, **self.formulation.identity(), "noised": self.noised}

    def pipeline(self, networks: Networks) -> NoisedClassifierPipeline:
        """Pipeline of the classifier with its formulation."""
        from pipelines.classifier import NoisedClassifierPipeline

        return NoisedClassifierPipeline(cast("ModelMixin", networks["classifier"]), copy.deepcopy(self.formulation))

    def diagnose(self, networks: Networks, real: Batch) -> Losses:
        """Loss and accuracy lately, by quarter of the noise level: ``top1_q0`` and so on."""
        return self.monitor.means()

    def example_images(
        self, pipeline: ImagePipeline, requests: Sequence[SampleRequest], real: Tensor, seed: int, columns: int
    ) -> Tensor:
        """Training images, noised more from column to column; framed green where the classifier knows their class, else red."""
        classifier = cast("NoisedClassifierPipeline", pipeline)
        images = images_to_float(real.to(classifier.device))  # (N, 3, H, W)
        levels = (torch.arange(len(images)) % columns).float() / columns
        generator = keyed_generator(seed, "classifier grid")
        drawn = self.formulation.draw_times(1000, generator)
        drawn = drawn[self.formulation.noise_level(drawn).argsort()]
        times = drawn[(levels * len(drawn)).long()].to(images.device)
        _, noised = self.formulation.draw_noised(images, times, generator)
        labels = torch.tensor([request.class_label for request in requests], device=images.device)
        is_known = (classifier.logits(noised, times).argmax(1) == labels).cpu()
        shown = images_to_uint8((noised / noised.flatten(1).abs().amax(1).clamp(min=1)[:, None, None, None]).cpu())
        colours = torch.where(is_known[:, None], torch.tensor(RECOGNISED), torch.tensor(MISTAKEN)).to(torch.uint8)  # (N, 3)
        for edge in (shown[:, :, 0], shown[:, :, -1], shown[:, :, :, 0], shown[:, :, :, -1]):
            edge.copy_(colours[:, :, None].expand_as(edge))
        return shown


def top_counts(num_classes: int) -> dict[str, int]:
    """Accuracies that are measured: name, and among how many of the most probable classes the right one must be."""
    return {"top1": 1} | ({"top5": 5} if num_classes >= TOP_FIVE_CLASSES else {})


def is_among(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Whether the class (B,) is among the ``count`` most probable of logits (B, K), (B,) float32."""
    return (logits.topk(count, dim=1).indices == labels[:, None]).any(1).float()
