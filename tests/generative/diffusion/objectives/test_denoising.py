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
from generative.core.types import Batch, StepContext
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.dit import DiT
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.options import DiffusionOptions
from generative.diffusion.samplers.ancestral import AncestralSampler
from generative.diffusion.samplers.heun import HeunSampler
from generative.diffusion.samplers.ode import ODESampler
from generative.tokenizers.latents import decode_latents, encode_images, latent_stride

OPTIMIZER = partial(torch.optim.AdamW, lr=3e-3)


def make_denoiser(**options: Any) -> DiT:
    """A tiny DiT on 4x4 images."""
    torch.manual_seed(0)
    arguments = {"sample_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 1, "num_heads": 2}
    return DiT(**(arguments | {"num_classes": 3} | options))


def make_objective(formulation: Formulation | None = None, denoiser: DiT | None = None, **options: Any) -> DiffusionObjective:
    """An objective, by default a Gaussian chain on pixels."""
    given = {name: options.pop(name) for name in DiffusionOptions.names() if name in options and name != "sampler"}
    return DiffusionObjective(
        denoiser or make_denoiser(), formulation or GaussianDiffusion(), OPTIMIZER, sampling=DiffusionOptions(**given), **options
    )


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
    return objective.loss(networks, batch, StepContext(0, 0, torch.Generator().manual_seed(seed)))


class Recorder(torch.nn.Module):
    """Stands in for a denoiser: remembers its inputs and predicts zero."""

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> DenoiserOutput:
        self.sample, self.timestep, self.class_labels = sample, timestep, class_labels
        return DenoiserOutput(torch.zeros_like(sample))


def test_loss_of_a_zero_prediction_is_the_mean_square_of_the_target() -> None:
    objective, recorder = make_objective(Interpolant(time_scale=1000.0)), Recorder()
    batch = make_batch()
    loss = loss_of(objective, batch, network=recorder)["loss"]
    sigma = (recorder.timestep / 1000)[:, None, None, None]
    velocity = (recorder.sample - batch["images"]) / sigma  # from x = x_0 + sigma velocity
    assert loss.item() == pytest.approx(velocity.square().mean().item(), rel=1e-4)


def test_a_flow_loss_by_hand_on_two_pixels() -> None:
    data = torch.tensor([0.5, -0.5]).reshape(1, 1, 1, 2)
    noise = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    output = DenoiserOutput(torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2))
    losses = Interpolant(time_scale=1000.0).losses(output, data, noise, data, torch.tensor([300.0]))
    # Velocity is (0.5, 0.5): squared errors 0.25 and 0.25.
    assert losses["mse"].tolist() == [0.25]


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_gaussian_prediction_types(prediction_type: str) -> None:
    objective, recorder = make_objective(GaussianDiffusion(prediction_type=prediction_type)), Recorder()
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
    objective = make_objective(GaussianDiffusion(learned_variance=True), make_denoiser(learn_sigma=True))
    losses = loss_of(objective, make_batch())
    assert set(losses) == {"loss", "mse", "variational_bound"}
    assert losses["loss"].item() == pytest.approx((losses["mse"] + losses["variational_bound"]).item())


def test_min_snr_weight_lowers_the_loss() -> None:
    plain, weighted = make_objective(), make_objective(GaussianDiffusion(min_snr_gamma=5.0))
    assert loss_of(weighted, make_batch())["loss"] < loss_of(plain, make_batch())["loss"]


def test_weight_of_the_variance_scales_its_bound_alone() -> None:
    parts = {}
    for weight in (1.0, 0.5):
        formulation = GaussianDiffusion(learned_variance=True, variance_weight=weight)
        parts[weight] = loss_of(make_objective(formulation, make_denoiser(learn_sigma=True)), make_batch())
    assert parts[0.5]["mse"].item() == parts[1.0]["mse"].item()
    assert parts[0.5]["variational_bound"].item() == pytest.approx(0.5 * parts[1.0]["variational_bound"].item())


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_whole_bound_trains_mean_and_variance(learn_sigma: bool) -> None:
    formulation = GaussianDiffusion(learned_variance=learn_sigma, loss="variational_bound")
    objective = make_objective(formulation, make_denoiser(learn_sigma=learn_sigma))
    losses = loss_of(objective, make_batch())
    assert set(losses) == {"loss"}
    losses["loss"].backward()
    gradient = objective.networks["denoiser"].final_layer.linear.bias.grad.unflatten(0, (-1, 6 if learn_sigma else 3))
    assert gradient[:, :3].any() and (not learn_sigma or gradient[:, 3:].any())


@pytest.mark.parametrize(
    "formulation", [GaussianDiffusion(), Interpolant(), EDM(), ContinuousDiffusion()], ids=lambda value: type(value).__name__
)
def test_loss_falls_on_one_batch(formulation: Formulation) -> None:
    objective = make_objective(formulation)
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
    objective, recorder = make_objective(Interpolant(time_scale=1000.0)), Recorder()
    latents = torch.randn(2, 3, 4, 4)
    loss_of(objective, {"latents": latents, "class_labels": torch.tensor([0, 1])}, network=recorder)
    assert recorder.sample.shape == latents.shape


def test_sizes_phases_average_and_defaults() -> None:
    objective = make_objective(autoencoder=make_autoencoder(), ema=ConstantEMA(0.99), guidance_scale=2.0)
    assert (objective.num_classes, objective.image_size) == (3, 8)
    assert [phase.networks for phase in objective.phases()] == [("denoiser",)]
    assert objective.ema["denoiser"].network == "denoiser"
    assert objective.sampling_defaults() == DiffusionOptions(guidance_scale=2.0).to_dict()
    pipeline = objective.pipeline(objective.networks)
    assert pipeline.image_size == 8 and pipeline.scheduler is not objective.sampler


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_objective(sampler=FlowMatchEulerDiscreteScheduler()), "FlowMatchEulerDiscreteScheduler does not"),
        (lambda: make_objective(Interpolant(), sampler=AncestralSampler()), "was trained as Interpolant"),
        (lambda: make_objective(sampler=AncestralSampler("learned")), "trained with learned_variance"),
        (lambda: make_objective(guidance_interval=(0.8, 0.2)), "guidance_interval must be"),
        (lambda: make_objective(label_dropout=1.0), r"label_dropout must be in \[0, 1\), got 1.0"),
        (lambda: make_objective(denoiser=make_denoiser(class_dropout_prob=0.0), guidance_scale=2.0), "guidance_scale 2.0 needs"),
        (lambda: make_objective(denoiser=make_denoiser(class_dropout_prob=0.0), label_dropout=0.1), "label_dropout 0.1 needs"),
        (
            lambda: loss_of(make_objective(denoiser=make_denoiser(learn_sigma=True)), make_batch()),
            "predicts a variance but the formulation has learned_variance=False",
        ),
        (lambda: GaussianDiffusion(loss="kl"), "loss must be mse or variational_bound, got 'kl'"),
        (lambda: GaussianDiffusion(loss="variational_bound", min_snr_gamma=5.0), "min_snr_gamma weights the mse"),
        (lambda: GaussianDiffusion(variance_weight=-1.0), "variance_weight must be 0 or more, got -1.0"),
        (lambda: GaussianDiffusion(fixed_variance="learned"), "fixed_variance must be small or large, got 'learned'"),
    ],
)
def test_options_that_contradict_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_identity_is_what_training_depends_on() -> None:
    """A checkpoint records it: what is predicted and of which noise, but not how samples are drawn."""
    plain = make_objective().identity()
    assert make_objective(sampler=DDIMScheduler(clip_sample=False)).identity() == plain
    assert make_objective(GaussianDiffusion(min_snr_gamma=5.0)).identity() == plain
    weighted = GaussianDiffusion(loss="variational_bound", variance_weight=2.0, fixed_variance="large")
    assert make_objective(weighted).identity() == plain
    assert make_objective(guidance_scale=1.0, num_inference_steps=7).identity() == plain
    for formulation in (
        GaussianDiffusion(prediction_type="v_prediction"),
        GaussianDiffusion(beta_schedule="squaredcos_cap_v2"),
        GaussianDiffusion(500),
        Interpolant(),
    ):
        assert make_objective(formulation).identity() != plain
    flow = make_objective(Interpolant()).identity()
    assert make_objective(Interpolant(density="logit_normal")).identity() == flow
    assert make_objective(Interpolant(shift=3.0)).identity() != flow


def test_a_scheduler_of_diffusers_samples_what_is_trained() -> None:
    formulation = GaussianDiffusion(100, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    objective = make_objective(formulation, sampler=DDIMScheduler())
    pipeline = objective.pipeline(objective.networks)
    assert isinstance(pipeline.scheduler, DDIMScheduler) and isinstance(pipeline.formulation, GaussianDiffusion)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(pipeline.scheduler.betas.double(), formulation.process.betas)


@pytest.mark.parametrize(
    ("formulation", "sampler"),
    [
        (GaussianDiffusion(), AncestralSampler),
        (Interpolant(), ODESampler),
        (EDM(), HeunSampler),
        (ContinuousDiffusion(), ODESampler),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_formulation_has_a_sampler(formulation: Formulation, sampler: type) -> None:
    objective = make_objective(formulation)
    pipeline = objective.pipeline(objective.networks)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.scheduler) is sampler
    images = pipeline([0, 1], num_inference_steps=3, guidance_scale=2.0, output_type="pt").images
    assert images.shape == (2, 3, 4, 4) and bool(torch.isfinite(images).all())
