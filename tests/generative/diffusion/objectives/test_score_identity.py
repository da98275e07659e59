"""Score identity distillation: its losses, its two phases, its adversary, its one-step pipeline and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from generative.cli.main import main
from generative.core import checkpoint as ckpt
from generative.core.ema import HalfLifeEMA
from generative.core.errors import UserError
from generative.core.types import Batch, Losses, StepContext
from generative.data.labels import LabelsDataset
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.dit import DiT
from generative.diffusion.networks.song_unet import SongUNet
from generative.diffusion.objectives.score_identity import SiDObjective, identity_errors, identity_times
from generative.diffusion.objectives.sid_adversary import Adversary
from generative.diffusion.objectives.teacher import Teacher, load_generator, load_teacher
from generative.diffusion.samplers.choose import default_sampler
from generative.diffusion.samplers.one_step import OneStepSampler
from pipelines import load_pipeline
from pipelines.diffusion import DiffusionImagePipeline

OPTIMIZER = partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.999))
AT_ONCE = {"generator_start_images": 0, "start_images": 0}


def network(**options: Any) -> SongUNet:
    """A tiny DDPM++ whose last layers are not zero."""
    torch.manual_seed(0)
    small = {"sample_size": 4, "num_classes": 3, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
    made = SongUNet(**(small | {"attn_resolutions": (2,)} | options))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def objective(made: Any = None, **options: Any) -> SiDObjective:
    teacher = Teacher(network() if made is None else made, EDM())
    return SiDObjective(teacher, OPTIMIZER, OPTIMIZER, ema=HalfLifeEMA(100), **options)


def batch(size: int = 4) -> Batch:
    images = torch.rand(size, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return {"images": images, "class_labels": torch.arange(size) % 3}


def loss_of(made: SiDObjective, phase: str, images_seen: int = 0) -> Losses:
    (chosen,) = [each for each in made.phases() if each.name == phase]
    context = StepContext(0, images_seen, torch.Generator().manual_seed(1))
    return chosen.loss_fn(made.networks, batch(), context)


def save_teacher(folder: Path, denoiser: Any = None, formulation: Any = None) -> Path:
    formulation = formulation or EDM()
    made = network() if denoiser is None else denoiser
    DiffusionImagePipeline(made, default_sampler(formulation), formulation=formulation).save_pretrained(folder)
    return folder


def test_both_networks_start_as_the_teacher_and_the_losses_are_sums() -> None:
    made = objective(generator_loss_scale=10.0, fake_loss_scale=3.0)
    fake = loss_of(made, "fake_score")
    torch.testing.assert_close(fake["loss"].detach(), 3 * 48 * fake["error"])
    generator = loss_of(made, "generator")
    assert generator["loss"] == 0 and generator["score_gap"] == 0, "the fake score network still is the teacher"
    with torch.no_grad():
        for parameter in made.networks["fake_score"].parameters():
            parameter.mul_(1.1)
    assert loss_of(made, "generator")["loss"] != 0


def test_the_errors_are_those_of_the_identity() -> None:
    images, real, fake = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    errors, scale = identity_errors(images, real, fake, 1.2)
    torch.testing.assert_close(scale, (images - real).abs().mean((1, 2, 3)))
    expected = ((real - fake) * (real - images) - 1.2 * (real - fake) ** 2) / scale[:, None, None, None]
    torch.testing.assert_close(errors, expected)
    _, least = identity_errors(images, images, fake, 1.0)
    assert least.tolist() == [1e-5, 1e-5]


def test_noise_levels_of_the_generator_are_on_the_teachers_grid() -> None:
    levels = identity_times(EDM(), torch.tensor([0.0, 1.0], dtype=torch.float64), 1000)
    torch.testing.assert_close(levels, torch.tensor([0.002, 80.0], dtype=torch.float64))
    grid = EDM().sampling_times(11)[:-1]
    torch.testing.assert_close(identity_times(EDM(), torch.tensor([1.0], dtype=torch.float64), 800), grid[2:3])


def test_only_its_own_network_gets_a_gradient_and_the_teacher_none() -> None:
    for adversary in (None, Adversary(**AT_ONCE)):
        made = objective(adversary=adversary)
        with torch.no_grad():
            for parameter in made.networks["fake_score"].parameters():
                parameter.mul_(1.1)
        for phase in made.phases():
            for name, each in made.networks.items():
                each.zero_grad()
                each.requires_grad_(name in phase.networks)
            loss_of(made, phase.name)["loss"].backward()
            for name, each in made.networks.items():
                assert any(p.grad is not None for p in each.parameters()) == (name in phase.networks)
            assert all(p.grad is None for p in made.frozen["teacher"].parameters())


def test_the_adversary_waits() -> None:
    made = objective(adversary=Adversary(generator_start_images=10, start_images=20))
    generator = made.phases()[1]
    assert generator.before_step is not None
    loss_of(made, "generator", 9)["loss"].backward()
    generator.before_step(made.networks, 0)
    assert all(p.grad is None for p in made.networks["generator"].parameters()), "not even zeros, which Adam would average"
    assert "adversarial" not in loss_of(made, "generator", 10)
    losses = loss_of(made, "generator", 20)
    assert losses["loss"].item() == pytest.approx(losses["adversarial"].item() / 2, rel=1e-5), "SiD's own is still zero"


def test_the_discriminator_is_the_encoder() -> None:
    made = objective(adversary=Adversary(discriminator_weight=2.0, max_gradient=1e-3, **AT_ONCE))
    losses = loss_of(made, "fake_score")
    torch.testing.assert_close(losses["loss"].detach(), 48 * losses["error"] + losses["discriminator"])
    plain = objective()
    torch.testing.assert_close(loss_of(plain, "fake_score")["error"], losses["error"])
    losses["loss"].backward()
    hook = made.phases()[0].before_step
    assert hook is not None
    hook(made.networks, 0)
    assert max(p.grad.abs().max() for p in made.networks["fake_score"].parameters() if p.grad is not None) <= 1e-3


def test_a_discriminator_that_knows_nothing_loses_one_bit() -> None:
    adversary = Adversary(discriminator_weight=2.0, generator_weight=0.5)
    nothing, ones = torch.zeros(2, 4, 2, 2), torch.ones(2)
    assert adversary.discriminator_loss(nothing, nothing, 3 * ones).item() == pytest.approx(2 * 3 * 0.6931472)
    assert adversary.generator_loss(nothing, ones / 4, 48).item() == pytest.approx(0.5 * 48 * 0.6931472 * 4)
    assert adversary.generator_loss(nothing - 100, ones, 1).item() == pytest.approx(0.5 * 10.0000454)


def test_a_resumed_run_is_bit_equal_and_samples_in_one_call(toy: ModuleType, tmp_path: Path) -> None:
    def trained(run: Path, images: int, resume: Path | None = None) -> dict[str, torch.Tensor]:
        trainer = toy.build_trainer(objective(adversary=Adversary(**AT_ONCE)), run, total_images=images)
        trainer.fit(resume)
        state: dict[str, torch.Tensor] = toy.snapshot(trainer)
        return state

    whole = trained(tmp_path / "whole", 24)
    trained(tmp_path / "parts", 16)
    parts = trained(tmp_path / "parts", 24, ckpt.resolve_checkpoint(tmp_path / "parts", "latest"))
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)
    pipeline = load_pipeline(tmp_path / "whole")
    images = pipeline([0, 2], generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert images.shape == (2, 3, 4, 4) and pipeline.num_evaluations.tolist() == [1, 1]
    with pytest.raises(UserError, match="in one call of its network, got num_inference_steps 2"):
        pipeline([0], num_inference_steps=2)
    with pytest.raises(UserError, match="is a one-step generator, which predicts at one noise level only"):
        load_teacher(tmp_path / "whole")
    again = objective(generator=load_generator(tmp_path / "whole"))
    name, weight = next(iter(load_generator(tmp_path / "whole").named_parameters()))
    assert torch.equal(again.networks["generator"].get_parameter(name), weight)


def test_the_sample_is_what_the_network_sees_in_the_noise() -> None:
    made = objective()
    pipeline = made.pipeline({"generator": made.networks["generator"]})
    noise = 2.5 * torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    times = torch.tensor([2.5])
    with torch.no_grad():
        output: DenoiserOutput = made.networks["generator"](*made.formulation.network_input(noise, times), torch.tensor([1]))
    expected = made.formulation.predict_start(output, noise, times)
    options = pipeline.merge_options({})
    state = pipeline.sample(torch.tensor([1]), options, pipeline.image_noise([torch.Generator().manual_seed(3)], 1))
    torch.testing.assert_close(state.sample, expected)


def test_it_is_free_of_data(tmp_path: Path) -> None:
    data = LabelsDataset(num_classes=3, image_size=4)
    assert data.labels.bincount().unique().numel() == 1 and data.image(0).unique().tolist() == [128]
    folder = save_teacher(tmp_path / "teacher")
    arguments = ["--objective.teacher.folder", str(folder), "--trainer.output_dir", str(tmp_path / "run"), "--evaluation", "null"]
    labels = ["--data", "generative.data.labels.LabelsDataset", "--data.num_classes", "3", "--data.image_size", "4"]
    short = ["--trainer.total_images", "8", "--trainer.batch_size", "4", "--trainer.progress", "false"]
    quiet = ["--trainer.sample_interval_steps", "null", "--trainer.evaluate_interval_steps", "null"]
    assert main(["train", "digits/sid", *arguments, *labels, *short, *quiet]) == 0
    assert (tmp_path / "run" / "pipeline" / "denoiser").is_dir()


def refusals(tmp_path: Path) -> dict[str, Callable[[], Any]]:
    dit = DiT(sample_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    return {
        "was trained as Interpolant, and SiD distils a denoiser under EDM's formulation": lambda: objective_of(
            load_teacher(save_teacher(tmp_path / "flow", dit, Interpolant()))
        ),
        "an adversary looks through the encoder of a U-Net of EDM, and the teacher is a DiT": lambda: objective(
            dit, adversary=Adversary()
        ),
        "does not exist": lambda: load_teacher(tmp_path / "nowhere"),
        r"max_time must be in \(0, 1000\], got 1001": lambda: objective(max_time=1001),
        "sigma must be a positive number, got 0": lambda: objective(init_sigma=0),
        "generator_loss_scale must be positive, got 0": lambda: objective(generator_loss_scale=0),
        "of other sizes than the teacher": lambda: objective(generator=network(model_channels=16)),
        "augment needs a denoiser with augment_dim 9": lambda: objective(augment=object()),
        "the generator starts before its adversarial loss": lambda: Adversary(start_images=10),
        "max_gradient must be positive, got 0": lambda: Adversary(max_gradient=0),
        "generator_weight must not be negative, got -1": lambda: Adversary(generator_weight=-1),
    }


def objective_of(teacher: Teacher) -> SiDObjective:
    return SiDObjective(teacher, OPTIMIZER, OPTIMIZER)


@pytest.mark.parametrize("message", list(refusals(Path())))
def test_what_cannot_be_distilled_is_refused(message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        refusals(tmp_path)[message]()


def test_a_network_without_its_pipeline_is_no_teacher(tmp_path: Path) -> None:
    network().save_pretrained(tmp_path / "denoiser")
    with pytest.raises(UserError, match="holds no pipeline of a diffusion that says what it was trained under"):
        load_teacher(tmp_path / "denoiser")


def test_one_step_is_of_a_positive_noise_level() -> None:
    with pytest.raises(UserError, match="sigma must be a positive number, got -1"):
        OneStepSampler(-1)
