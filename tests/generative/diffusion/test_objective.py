"""The denoising objective."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from generative.core.ema import ConstantEMA
from generative.core.errors import UserError
from generative.core.types import Batch
from generative.diffusion.dit import DiT
from generative.diffusion.objective import DiffusionObjective
from generative.tokenizers.latents import decode_latents, encode_images, latent_stride

OPTIMIZER = partial(torch.optim.AdamW, lr=3e-3)


def make_denoiser(**options: Any) -> DiT:
    """A tiny DiT on 4x4 images."""
    torch.manual_seed(0)
    arguments = {"sample_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 1, "num_heads": 2}
    return DiT(**(arguments | {"num_classes": 3} | options))


def make_objective(scheduler: Any = None, denoiser: DiT | None = None, **options: Any) -> DiffusionObjective:
    """An objective, by default DDPM on pixels."""
    return DiffusionObjective(denoiser or make_denoiser(), scheduler or DDPMScheduler(), OPTIMIZER, **options)


def make_autoencoder() -> AutoencoderKL:
    """A tiny autoencoder of stride 2."""
    torch.manual_seed(1)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 4),
    }
    return AutoencoderKL(**blocks, latent_channels=3, norm_num_groups=2, scaling_factor=0.5, shift_factor=0.1)


def make_batch(size: int = 8, image_size: int = 4) -> Batch:
    """Random images with labels."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(size, 3, image_size, image_size, generator=generator) * 2 - 1
    return {"images": images, "class_labels": torch.arange(size) % 3}


def loss_of(objective: DiffusionObjective, batch: Batch, seed: int = 0, network: Any = None) -> dict[str, Tensor]:
    """Loss with a fresh generator."""
    networks = {"denoiser": network or objective.networks["denoiser"]}
    return objective.loss(networks, batch, torch.Generator().manual_seed(seed), {})


class Recorder(torch.nn.Module):
    """Stands in for a denoiser: remembers its inputs and predicts zero."""

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        self.sample, self.timestep, self.class_labels = sample, timestep, class_labels
        return torch.zeros_like(sample)


def test_loss_of_a_zero_prediction_is_the_mean_square_of_the_target() -> None:
    objective, recorder = make_objective(FlowMatchEulerDiscreteScheduler()), Recorder()
    batch = make_batch()
    loss = loss_of(objective, batch, network=recorder)["loss"]
    sigma = (recorder.timestep / 1000)[:, None, None, None]
    velocity = (recorder.sample - batch["images"]) / sigma  # from x = x_0 + sigma velocity
    assert loss.item() == pytest.approx(velocity.square().mean().item(), rel=1e-4)


def test_a_flow_loss_by_hand_on_two_pixels() -> None:
    objective = make_objective(FlowMatchEulerDiscreteScheduler())
    data = torch.tensor([0.5, -0.5]).reshape(1, 1, 1, 2)
    noise = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    output = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    losses = objective.denoising_losses(output, data, noise, data, torch.tensor([300.0]))
    # Velocity is (0.5, 0.5): squared errors 0.25 and 0.25.
    assert losses["mse"].tolist() == [0.25]


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_gaussian_prediction_types(prediction_type: str) -> None:
    objective, recorder = make_objective(DDPMScheduler(prediction_type=prediction_type)), Recorder()
    batch = make_batch()
    loss = loss_of(objective, batch, network=recorder)["loss"].item()
    abar = DDPMScheduler().alphas_cumprod[recorder.timestep][:, None, None, None]
    noise = (recorder.sample - abar.sqrt() * batch["images"]) / (1 - abar).sqrt()
    targets = {
        "epsilon": noise,
        "sample": batch["images"],
        "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * batch["images"],
    }
    assert loss == pytest.approx(targets[prediction_type].square().mean().item(), rel=1e-3)


def test_learned_variance_adds_the_bound() -> None:
    objective = make_objective(denoiser=make_denoiser(learn_sigma=True))
    losses = loss_of(objective, make_batch())
    assert set(losses) == {"loss", "mse", "variational_bound"}
    assert losses["loss"].item() == pytest.approx((losses["mse"] + losses["variational_bound"]).item())


def test_min_snr_weight_lowers_the_loss() -> None:
    plain, weighted = make_objective(), make_objective(min_snr_gamma=5.0)
    assert loss_of(weighted, make_batch())["loss"] < loss_of(plain, make_batch())["loss"]


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), FlowMatchEulerDiscreteScheduler()])
def test_loss_falls_on_one_batch(scheduler: Any) -> None:
    objective = make_objective(scheduler)
    optimizer = objective.optimizers["denoiser"](objective.parameter_groups("denoiser"))
    batch, losses = make_batch(), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(objective, batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_all_randomness_comes_from_the_generator() -> None:
    objective, batch = make_objective(), make_batch()
    for parameter in objective.networks["denoiser"].parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = torch.get_rng_state()
    first, again, other = (loss_of(objective, batch, seed)["loss"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_label_dropout_defaults_to_the_denoisers() -> None:
    assert make_objective().label_dropout == 0.1
    assert make_objective(label_dropout=0.25).label_dropout == 0.25


def test_gradients_reach_the_denoiser_only() -> None:
    autoencoder = make_autoencoder()
    objective = make_objective(autoencoder=autoencoder)
    loss_of(objective, make_batch(image_size=8))["loss"].backward()
    assert all(parameter.grad is None for parameter in autoencoder.parameters())
    assert any(parameter.grad is not None for parameter in objective.networks["denoiser"].parameters())
    assert objective.frozen == {"autoencoder": autoencoder}


def test_latents_are_scaled_and_decoded_back() -> None:
    autoencoder = make_autoencoder()
    images = make_batch(image_size=8)["images"]
    assert latent_stride(autoencoder) == 2
    latents = encode_images(autoencoder, images, torch.Generator().manual_seed(0))
    assert latents.shape == (8, 3, 4, 4)
    distribution = autoencoder.encode(images).latent_dist
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    expected = (distribution.mean + distribution.std * noise - 0.1) * 0.5
    torch.testing.assert_close(latents, expected)
    decoded = autoencoder.decode(latents / 0.5 + 0.1).sample
    torch.testing.assert_close(decode_latents(autoencoder, latents), decoded)


def test_cached_latents_take_the_place_of_images() -> None:
    objective, recorder = make_objective(FlowMatchEulerDiscreteScheduler()), Recorder()
    latents = torch.randn(2, 3, 4, 4)
    loss_of(objective, {"latents": latents, "class_labels": torch.tensor([0, 1])}, network=recorder)
    assert recorder.sample.shape == latents.shape


def test_sizes_phases_average_and_defaults() -> None:
    objective = make_objective(autoencoder=make_autoencoder(), ema=ConstantEMA(0.99), guidance_scale=2.0)
    assert (objective.num_classes, objective.image_size) == (3, 8)
    assert [phase.networks for phase in objective.phases()] == [("denoiser",)]
    assert objective.ema["denoiser"].network == "denoiser"
    defaults = {"guidance_scale": 2.0, "guidance_interval": None, "num_inference_steps": 50}
    assert objective.sampling_defaults() == defaults
    pipeline = objective.pipeline(objective.networks)
    assert pipeline.image_size == 8 and pipeline.scheduler is not objective.scheduler


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_objective(min_snr_gamma=-1.0), "min_snr_gamma must be positive"),
        (lambda: make_objective(FlowMatchEulerDiscreteScheduler(), min_snr_gamma=5.0), "needs a Gaussian schedule"),
        (lambda: make_objective(timestep_density="logit_normal"), "timestep_density 'logit_normal' is for flow"),
        (
            lambda: make_objective(inference_scheduler=FlowMatchEulerDiscreteScheduler()),
            "FlowMatchEulerDiscreteScheduler does not",
        ),
        (lambda: make_objective(DDPMScheduler(rescale_betas_zero_snr=True)), "zero terminal signal .* prediction_type epsilon"),
        (lambda: make_objective(guidance_interval=(0.8, 0.2)), "guidance_interval must be"),
        (lambda: make_objective(label_dropout=1.0), r"label_dropout must be in \[0, 1\), got 1.0"),
        (lambda: make_objective(denoiser=make_denoiser(class_dropout_prob=0.0), guidance_scale=2.0), "guidance_scale 2.0 needs"),
        (lambda: make_objective(denoiser=make_denoiser(class_dropout_prob=0.0), label_dropout=0.1), "label_dropout 0.1 needs"),
        (
            lambda: loss_of(make_objective(FlowMatchEulerDiscreteScheduler(), make_denoiser(learn_sigma=True)), make_batch()),
            "predicts 6 channels for data of 3",
        ),
    ],
)
def test_options_that_contradict_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_identity_is_what_training_depends_on() -> None:
    """A checkpoint records it: what is predicted and of which noise, but not how samples are drawn."""
    plain = make_objective().identity()
    assert make_objective(DDPMScheduler(clip_sample=False, variance_type="fixed_large")).identity() == plain
    assert make_objective(guidance_scale=1.0, num_inference_steps=7).identity() == plain
    for scheduler in (
        DDPMScheduler(prediction_type="v_prediction"),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        DDPMScheduler(num_train_timesteps=500),
        FlowMatchEulerDiscreteScheduler(),
    ):
        assert make_objective(scheduler).identity() != plain


def test_the_inference_scheduler_samples_what_is_trained() -> None:
    training = DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", num_train_timesteps=100)
    objective = make_objective(training, inference_scheduler=DDIMScheduler())
    pipeline = objective.pipeline(objective.networks)
    assert isinstance(pipeline.scheduler, DDIMScheduler) and isinstance(pipeline.training_scheduler, DDPMScheduler)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(pipeline.scheduler.betas, training.betas)
