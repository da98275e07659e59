"""Training of a denoiser: noise data, predict what the noise scheduler asks for, compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generative.core.ema import EMAProfile, EMASpec
from generative.core.errors import UserError
from generative.core.labels import drop_labels
from generative.core.objective import Objective, OptimizerFactory, Phase
from generative.core.types import Batch, Losses, Networks
from generative.diffusion.fit import fit_scheduler, noise_level_of
from generative.diffusion.flow import TimestepDensity
from generative.diffusion.gaussian import GaussianProcess, mean_over_image
from generative.diffusion.guidance import timestep_guidance
from generative.diffusion.schedule import training_process
from generative.tokenizers.base import fingerprint
from generative.tokenizers.latents import check_latents, encode_images, latent_stride

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline


class DiffusionObjective(Objective):
    """Denoising with any noise schedule of diffusers, Gaussian or flow matching, on pixels or latents.

    What is predicted follows from the scheduler: its ``prediction_type``, or the velocity for a flow-matching scheduler. A
    denoiser with twice the channels learns its variance too (loss = mean squared error + variational bound, arXiv 2102.09672).

    Args:
        denoiser: ``(sample (B, C, H, W), timestep (B,), class_labels (B,)) -> (B, C or 2C, H, W)``; its config has
            ``sample_size``, ``in_channels``, ``num_classes`` and perhaps ``class_dropout_prob``.
        scheduler: Training schedule.
        optimizer: Makes the optimizer.
        ema: Decay law of the average that samples; None samples from the denoiser itself.
        label_dropout: Share of labels replaced by the null condition; None takes the denoiser's ``class_dropout_prob``.
        timestep_density: How flow matching draws timesteps.
        min_snr_gamma: Cap of the signal-to-noise ratio in the loss weight of Gaussian schedules (arXiv 2303.09556); None
            weights all timesteps alike.
        inference_scheduler: Sampler of the pipeline, adapted to what is trained (betas, prediction type, flow) and refused if it
            cannot be; None samples with the training scheduler.
        guidance_scale: Classifier-free guidance of samples drawn during training; 1 is none.
        guidance_interval: Guide those samples only at these noise levels, ``(low, high)`` as fractions of the schedule.
        num_inference_steps: Steps of samples drawn during training.
        autoencoder: Frozen; the denoiser then works on its latents. None works on pixels.

    Raises:
        UserError: If options contradict one another.
    """

    label_dropout: float

    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        optimizer: OptimizerFactory,
        ema: EMAProfile | None = None,
        label_dropout: float | None = None,
        timestep_density: TimestepDensity = "uniform",
        min_snr_gamma: float | None = None,
        inference_scheduler: SchedulerMixin | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int = 50,
        autoencoder: ModelMixin | None = None,
    ) -> None:
        null_probability = getattr(denoiser.config, "class_dropout_prob", 0.0)
        if label_dropout is None:
            label_dropout = null_probability
        if not 0 <= label_dropout < 1:
            raise UserError(f"label_dropout must be in [0, 1), got {label_dropout}")
        if not null_probability and (label_dropout or guidance_scale != 1):
            option = f"label_dropout {label_dropout}" if label_dropout else f"guidance_scale {guidance_scale}"
            raise UserError(f"{option} needs a denoiser with a null condition; give it a class_dropout_prob above 0")
        check_latents(denoiser.config.in_channels, autoencoder)
        self.process = training_process(scheduler, timestep_density)
        if min_snr_gamma is not None and not (isinstance(self.process, GaussianProcess) and min_snr_gamma > 0):
            raise UserError(f"min_snr_gamma must be positive and needs a Gaussian schedule such as DDPM's, got {min_snr_gamma}")
        self.scheduler = scheduler
        self.inference_scheduler = fit_scheduler(inference_scheduler or scheduler, scheduler)  # refuses one that cannot sample
        self.label_dropout = label_dropout
        self.min_snr_gamma = min_snr_gamma
        timestep_guidance(guidance_scale, guidance_interval, noise_level_of(scheduler))  # refuses a bad interval now
        self.guidance_scale = guidance_scale
        self.guidance_interval = guidance_interval
        self.num_inference_steps = num_inference_steps
        self.denoiser_config = denoiser.config
        self.networks = {"denoiser": denoiser}
        self.frozen = {"autoencoder": autoencoder.requires_grad_(False).eval()} if autoencoder else {}
        self.optimizers = {"denoiser": optimizer}
        self.ema = {"denoiser": EMASpec("denoiser", ema)} if ema else {}
        self.num_classes = denoiser.config.num_classes
        self.image_size = denoiser.config.sample_size * (latent_stride(autoencoder) if autoencoder else 1)

    def phases(self) -> list[Phase]:
        """One phase: the denoiser's loss."""
        return [Phase(name="denoiser", networks=("denoiser",), loss_fn=self.loss, optimizer="denoiser")]

    def loss(self, networks: Networks, batch: Batch, generator: torch.Generator, cache: dict[str, Any]) -> Losses:
        """Denoising loss of a micro-batch, see ``LossFn``.

        Returns:
            ``loss``; with learned variance also its parts ``mse`` and ``variational_bound`` (bits per dimension).
        """
        x_start = self.data(batch, generator)  # (B, C, H, W)
        labels = drop_labels(batch["class_labels"], self.num_classes, self.label_dropout, generator)
        timesteps = self.process.draw_timesteps(len(x_start), generator).to(x_start.device)
        noise = torch.randn(x_start.shape, generator=generator, device=generator.device).to(x_start.device)
        sample = self.process.add_noise(x_start, noise, timesteps)
        output = networks["denoiser"](sample, timesteps, labels).float()  # (B, C or 2C, H, W)
        losses = {name: value.mean() for name, value in self.denoising_losses(output, x_start, noise, sample, timesteps).items()}
        return {"loss": sum(losses.values(), torch.zeros((), device=x_start.device)), **(losses if len(losses) > 1 else {})}

    def denoising_losses(
        self, output: Tensor, x_start: Tensor, noise: Tensor, sample: Tensor, timesteps: Tensor
    ) -> dict[str, Tensor]:
        """Parts of the loss for each image.

        Args:
            output: (B, C, H, W) prediction, or (B, 2C, H, W) with variance values.
            x_start: (B, C, H, W) clean data.
            noise: (B, C, H, W) standard normal.
            sample: (B, C, H, W) noised data.
            timesteps: (B,).

        Returns:
            ``mse`` (B,), and ``variational_bound`` (B,) in bits if the variance is learned; the loss is their sum.

        Raises:
            UserError: If the denoiser's channels fit neither, or a flow is asked to learn a variance.
        """
        channels = x_start.shape[1]
        prediction = output[:, :channels]
        losses = {"mse": mean_over_image((prediction - self.process.target(x_start, noise, timesteps)).square())}
        if isinstance(self.process, GaussianProcess):
            if self.min_snr_gamma is not None:
                losses["mse"] = losses["mse"] * self.process.min_snr_weight(timesteps, self.min_snr_gamma)
            if output.shape[1] == 2 * channels:
                losses["variational_bound"] = self.process.variance_loss(output, x_start, sample, timesteps)
                return losses
        if output.shape[1] != channels:
            raise UserError(
                f"the denoiser predicts {output.shape[1]} channels for data of {channels} under {type(self.process).__name__}"
            )
        return losses

    def data(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """What is noised, (B, C, H, W): cached latents, or images, or their latents."""
        if "latents" in batch:
            return batch["latents"]
        autoencoder = self.frozen.get("autoencoder")
        return batch["images"] if autoencoder is None else encode_images(autoencoder, batch["images"], generator)

    def identity(self) -> Mapping[str, Any]:
        """The noising process and what is predicted of it; samplers and the density of timesteps may change."""
        process = self.process
        known: dict[str, Any] = {"process": type(process).__name__, "prediction_type": process.prediction_type}
        known["num_train_timesteps"] = process.num_train_timesteps
        if isinstance(process, GaussianProcess):
            last = float(process.alphas_cumprod[-1])
            known["betas"] = f"{float(process.betas[0]):.6g} to {float(process.betas[-1]):.6g}, signal left {last:.6g}"
        return known

    def encoder_fingerprint(self) -> str | None:
        """Fingerprint of the autoencoder."""
        return fingerprint(self.frozen["autoencoder"]) if self.frozen else None

    def pipeline(self, networks: Networks) -> DiffusionImagePipeline:
        """Pipeline of a denoiser with the inference scheduler."""
        from pipelines.diffusion import DiffusionImagePipeline

        training, inference = (
            type(scheduler).from_config(scheduler.config) for scheduler in (self.scheduler, self.inference_scheduler)
        )
        return DiffusionImagePipeline(
            networks["denoiser"], inference, self.frozen.get("autoencoder"), dict(self.sampling_defaults()), training
        )

    def sampling_defaults(self) -> Mapping[str, Any]:
        """Guidance and steps of samples drawn during training."""
        return {
            "guidance_scale": self.guidance_scale,
            "guidance_interval": self.guidance_interval,
            "num_inference_steps": self.num_inference_steps,
        }
