"""Score identity distillation (SiD; Zhou et al., arXiv 2404.04057): a diffusion becomes a generator of one step, without data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from generative.core.ema import EMAProfiles, average_specs
from generative.core.errors import UserError
from generative.core.objective import Objective, OptimizerFactory, Phase
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import mean_over_image, over_image
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.networks.edm_unet import EDMUNet
from generative.diffusion.objectives.denoising import check_augment
from generative.diffusion.objectives.edm_augment import EDMAugment
from generative.diffusion.objectives.sid_adversary import Adversary
from generative.diffusion.objectives.teacher import Teacher
from generative.diffusion.options import DiffusionOptions
from generative.diffusion.samplers.one_step import OneStepSampler
from generative.tokenizers.encoded_objective import FrozenEncoder

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

MAX_TIME = 1000
"""What training times are counted in."""
LEAST_SCALE = 1e-5


class SiDObjective(Objective):
    """Generator and fake score network, both of which start as the teacher.

    Each training step first trains the fake score network to denoise what the generator makes (EDM's loss), then the generator
    so that the teacher and the fake score network denoise its noised images alike (eq. 23). Only the batch's labels are read,
    unless there is an adversary. Losses are sums over an image's elements, as the official ones, so that Adam's eps is theirs
    too; images that become NaN stop the run, where the official code leaves them out.

    Args:
        teacher: Distilled: trained under EDM's formulation. In YAML, ``load_teacher`` with a run or a pipeline folder.
        generator_optimizer: Makes the generator's optimizer: Adam with betas (0, 0.999) in the paper.
        fake_optimizer: Makes the fake score network's, likewise.
        alpha: Of eq. 23: 1.2 in the paper (1 on AFHQ-v2), and 1 with an adversary.
        max_time: ``tmax``: the generator's noise levels are at most this place of 1,000 on the teacher's grid.
        init_sigma: Noise level of the generator's input, and what it is told.
        generator_loss_scale: Factor on the generator's loss.
        fake_loss_scale: Factor on the fake score network's.
        ema: Decay of the generator's average, which samples; None samples from the generator itself.
        augment: Augments the generator's images for the fake score network, as the teacher was trained; None leaves them.
        adversary: Adversarial training on real images besides (SiDA, arXiv 2410.14919); None for none.
        generator: Where the generator starts, of the teacher's architecture (``load_generator``); None starts from the teacher.
        sampling: Options of samples drawn during training, kept with the run as its pipeline's defaults.

    Raises:
        UserError: If the teacher is of another formulation, or an option is out of range.
    """

    sampling_networks = ("generator",)

    def __init__(
        self,
        teacher: Teacher,
        generator_optimizer: OptimizerFactory,
        fake_optimizer: OptimizerFactory,
        alpha: float = 1.2,
        max_time: float = 800.0,
        init_sigma: float = 2.5,
        generator_loss_scale: float = 100.0,
        fake_loss_scale: float = 1.0,
        ema: EMAProfiles | None = None,
        augment: EDMAugment | None = None,
        adversary: Adversary | None = None,
        generator: ModelMixin | None = None,
        sampling: DiffusionOptions = DiffusionOptions(num_inference_steps=1),
    ) -> None:
        self.formulation = check_teacher(teacher)
        if not 0 < max_time <= MAX_TIME:
            raise UserError(f"max_time must be in (0, {MAX_TIME}], got {max_time}")
        for name, value in (("generator_loss_scale", generator_loss_scale), ("fake_loss_scale", fake_loss_scale)):
            if not value > 0:
                raise UserError(f"{name} must be positive, got {value}")
        if augment is not None:
            check_augment(teacher.network, teacher.autoencoder)
        if adversary is not None and not isinstance(teacher.network, EDMUNet):
            raise UserError(
                "an adversary looks through the encoder of a U-Net of EDM, and the teacher is a "
                f"{type(teacher.network).__name__}; leave it out"
            )
        self.sampler = OneStepSampler(init_sigma)
        self.encoder = FrozenEncoder(teacher.autoencoder)
        start = teacher.network if generator is None else check_generator(generator, teacher.network)
        self.networks = {
            "generator": copy.deepcopy(start).requires_grad_(True),
            "fake_score": copy.deepcopy(teacher.network).requires_grad_(True),
        }
        self.frozen = {"teacher": teacher.network, **self.encoder.networks}
        self.optimizers = {"generator": generator_optimizer, "fake_score": fake_optimizer}
        self.ema = average_specs("generator", ema)
        self.num_classes = teacher.network.config.num_classes
        self.image_size = self.encoder.image_size(teacher.network)
        self.alpha, self.max_time, self.init_sigma = alpha, max_time, init_sigma
        self.generator_loss_scale, self.fake_loss_scale = generator_loss_scale, fake_loss_scale
        self.augment, self.adversary, self.sampling = augment, adversary, sampling
        self._generator_waits = False
        if adversary is not None:
            self.shard_obstacle = "SiD's adversary calls a network's encoder alone"

    def phases(self) -> list[Phase]:
        """The fake score network, then the generator; each drops hidden values in its own phase only."""
        fake = Phase(
            name="fake_score",
            networks=("fake_score",),
            loss_fn=self.fake_loss,
            optimizer="fake_score",
            eval_networks=("generator",),
            before_step=None if self.adversary is None else self._limit_gradient,
        )
        generator = Phase(
            name="generator",
            networks=("generator",),
            loss_fn=self.generator_loss,
            optimizer="generator",
            eval_networks=("fake_score",),
            before_step=None if self.adversary is None else self._skip_if_waiting,
        )
        return [fake, generator]

    def _limit_gradient(self, networks: Networks, step: int) -> None:
        assert self.adversary is not None
        nn.utils.clip_grad_value_(networks["fake_score"].parameters(), self.adversary.max_gradient)

    def _skip_if_waiting(self, networks: Networks, step: int) -> None:
        """Leave no gradient, not even zeros, which an optimizer would remember."""
        if self._generator_waits:
            networks["generator"].zero_grad(set_to_none=True)

    # ------------------------------------------------------------------ losses

    def generate(self, generator: nn.Module, class_labels: Tensor, random: torch.Generator) -> Tensor:
        """Images (B, C, h, w) of labels (B,), one call of the network at ``init_sigma``."""
        config: Any = generator.config
        shape = (len(class_labels), config.in_channels, config.sample_size, config.sample_size)
        noise = torch.randn(shape, generator=random, device=random.device).to(class_labels.device)
        times = noise.new_full((len(noise),), self.init_sigma)
        return self.denoise(generator, self.init_sigma * noise, times, class_labels)

    def denoise(self, network: nn.Module, sample: Tensor, times: Tensor, class_labels: Tensor) -> Tensor:
        """D(x; sigma) of noised images (B, C, h, w), float32."""
        output = network(*self.formulation.network_input(sample, times), class_labels).float()
        return self.formulation.predict_start(output, sample, times)

    def fake_loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Denoising loss of the fake score network on generated images, and the discriminator's; see ``LossFn``."""
        labels, network = batch["class_labels"], networks["fake_score"]
        with torch.no_grad():
            images = self.generate(networks["generator"], labels, context.generator)
        images, told = self._augmented(images, context.generator)
        times = self.formulation.draw_times(len(images), context.generator).to(images.device)
        noise, sample = self.formulation.draw_noised(images, times, context.generator)
        inputs = (*self.formulation.network_input(sample, times), labels)
        losses: Losses = {}
        if self.adversary is None:
            output = network(*inputs, **told)
        else:
            output, fake = predict_and_encode(network, inputs, told)
            real, told = self._augmented(self.encoder.encode(batch, context.generator), context.generator)
            # The same noise as the generated images', as in the official code.
            real_sample = self.formulation.add_noise(real, noise, times)
            seen, *_ = encode(network, (*self.formulation.network_input(real_sample, times), labels), told)
            losses["discriminator"] = self.adversary.discriminator_loss(seen, fake, self.formulation.loss_weight(times))
        parts = self.formulation.losses(output.float(), images, noise, sample, times)
        error = torch.stack([part.mean() for part in parts.values()]).sum()
        loss = self.fake_loss_scale * images[0].numel() * error + sum(losses.values())
        return {"loss": loss, "error": error.detach(), **{name: value.detach() for name, value in losses.items()}}

    def _augmented(self, images: Tensor, random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Images and what the network is told of their augmentation."""
        if self.augment is None:
            return images, {}
        images, augment_labels = self.augment(images, random)
        return images, {"augment_labels": augment_labels}

    def generator_loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Loss of the generator by the identity of scores (eq. 23), and the adversarial one; see ``LossFn``."""
        labels, adversary = batch["class_labels"], self.adversary
        self._generator_waits = adversary is not None and context.images_seen < adversary.generator_start_images
        if self._generator_waits:
            return {"loss": 0 * next(networks["generator"].parameters()).sum()}
        images = self.generate(networks["generator"], labels, context.generator)
        uniform = torch.rand(len(images), generator=context.generator, device=context.generator.device)
        times = identity_times(self.formulation, uniform, self.max_time).to(images.device)
        _, sample = self.formulation.draw_noised(images, times, context.generator)
        real = self.denoise(self.frozen["teacher"], sample, times, labels)
        if adversary is None or context.images_seen < adversary.start_images:
            fake = self.denoise(networks["fake_score"], sample, times, labels)
            errors, _ = identity_errors(images, real, fake, self.alpha)
            loss = self.generator_loss_scale * errors.sum() / len(images)
            return {"loss": loss, "score_gap": (real - fake).detach().square().mean()}
        inputs = (*self.formulation.network_input(sample, times), labels)
        output, hidden = predict_and_encode(networks["fake_score"], inputs, {})
        fake = self.formulation.predict_start(output.float(), sample, times)
        errors, scale = identity_errors(images, real, fake, self.alpha)
        loss = self.generator_loss_scale * errors.sum() / len(images)
        adversarial = adversary.generator_loss(hidden, scale, images[0].numel())
        values = {"score_gap": (real - fake).square().mean(), "adversarial": adversarial}
        return {"loss": (loss + adversarial) / 2, **{name: value.detach() for name, value in values.items()}}

    # ------------------------------------------------------------------ what becomes of it

    def identity(self) -> Mapping[str, Any]:
        """The formulation and the noise level of the generator; the teacher is a frozen part."""
        return {"formulation": type(self.formulation).__name__, **self.formulation.identity(), "init_sigma": self.init_sigma}

    def encoder_fingerprint(self) -> str | None:
        """The autoencoder's."""
        return self.encoder.fingerprint

    def pipeline(self, networks: Networks) -> DiffusionImagePipeline:
        """Pipeline of the generator, which samples in one call."""
        from pipelines.diffusion import DiffusionImagePipeline

        formulation, sampler = copy.deepcopy((self.formulation, self.sampler))
        return DiffusionImagePipeline(
            networks["generator"], sampler, self.frozen.get("autoencoder"), self.sampling_defaults(), formulation=formulation
        )


def identity_times(formulation: EDM, uniform: Tensor, max_time: float) -> Tensor:
    """Noise levels of the generator's loss: even places on the teacher's grid from its end on.

    Args:
        formulation: Of the teacher.
        uniform: (B,) in [0, 1).
        max_time: Place of the largest, of 1,000.
    """
    return formulation.grid_level(1 - uniform * max_time / MAX_TIME)


def identity_errors(images: Tensor, real: Tensor, fake: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Each element's part of the generator's loss (eq. 23), over the mean distance of an image from what the teacher sees in it.

    Args:
        images: (B, C, h, w) generated.
        real: (B, C, h, w) what the teacher makes of them, noised.
        fake: (B, C, h, w) what the fake score network makes of them.
        alpha: Weight of the squared difference of the two.

    Returns:
        (B, C, h, w), and what each image's were divided by, (B,), which is not differentiated.
    """
    scale = mean_over_image((images - real).detach().abs()).clamp(min=LEAST_SCALE)
    return (real - fake) * ((real - images) - alpha * (real - fake)) / over_image(scale, images), scale


def encode(network: nn.Module, inputs: tuple[Tensor, ...], told: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
    """The encoder's half of a U-Net's forward pass."""
    assert isinstance(network, EDMUNet)
    return network.encode_conditioned(*inputs, **told)


def predict_and_encode(
    network: nn.Module, inputs: tuple[Tensor, ...], told: Mapping[str, Tensor]
) -> tuple[DenoiserOutput, Tensor]:
    """A U-Net's output and its lowest map."""
    assert isinstance(network, EDMUNet)
    hidden, skips, embedding = encode(network, inputs, told)
    return DenoiserOutput(network.decode(hidden, skips, embedding)), hidden


def check_teacher(teacher: Teacher) -> EDM:
    """The teacher's formulation.

    Raises:
        UserError: If it is another than EDM's.
    """
    if not isinstance(teacher.formulation, EDM):
        raise UserError(
            f"the teacher '{teacher.source}' was trained as {type(teacher.formulation).__name__}, and SiD distils a denoiser "
            "under EDM's formulation; give a run that was trained by EDM, or an official EDM checkpoint, converted"
        )
    return teacher.formulation


def check_generator(generator: ModelMixin, teacher: ModelMixin) -> ModelMixin:
    """A generator to start from.

    Raises:
        UserError: If it is of another architecture than the teacher.
    """
    shapes = [{name: tuple(value.shape) for name, value in network.state_dict().items()} for network in (generator, teacher)]
    if type(generator) is not type(teacher) or shapes[0] != shapes[1]:
        raise UserError(
            f"the generator to start from is a {type(generator).__name__} of other sizes than the teacher, a "
            f"{type(teacher).__name__}; give one that was distilled from this teacher"
        )
    return generator
