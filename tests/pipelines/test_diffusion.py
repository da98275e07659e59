"""The diffusion pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import GenerationContract, quiet
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from generative.core.errors import UserError
from generative.core.seeding import sample_generators
from generative.diffusion.denoiser import Condition, Predict, evaluator
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.dit import DiT
from generative.diffusion.options import DiffusionOptions
from generative.diffusion.samplers.ancestral import AncestralSampler
from generative.diffusion.samplers.heun import HeunSampler
from pipelines.diffusion import DiffusionImagePipeline


def make_pipeline(scheduler: Any = None, autoencoder: AutoencoderKL | None = None, **options: Any) -> DiffusionImagePipeline:
    """A tiny pipeline with random weights."""
    torch.manual_seed(0)
    arguments = {"sample_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 1, "num_heads": 2}
    denoiser = DiT(**(arguments | {"num_classes": 3} | options)).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pipeline = DiffusionImagePipeline(denoiser, scheduler or FlowMatchEulerDiscreteScheduler(), autoencoder)
    return quiet(pipeline)


def generators(labels: list[int]) -> list[torch.Generator]:
    """A stream for each image, the first of its class."""
    return sample_generators(0, labels, [0] * len(labels))


def run(pipeline: DiffusionImagePipeline, labels: list[int], **options: Any) -> Tensor:
    """Images as a tensor in [0, 1]."""
    defaults: dict[str, Any] = {"num_inference_steps": 4, "generator": generators(labels), "output_type": "pt"}
    return pipeline(labels, **(defaults | options)).images


class TestDiffusionImagePipeline(GenerationContract):
    pipeline_class = DiffusionImagePipeline
    always = {"num_inference_steps": 4}
    options = (
        {},
        {"guidance_scale": 3.0, "guidance_interval": (0.0, 0.5)},
        {"guidance_scale": 3.0, "guidance_channels": 1},
        {"guidance_scale": 2.5},
    )
    tolerance = 1 / 255
    refused = (
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"guidance_channels": 4}, r"guidance_channels must be in 1..3, the channels of this denoiser, got 4"),
        ({"guidance_scale": 2.0, "guidance_interval": (0.9, 0.1)}, "guidance_interval must be"),
    )

    def make(self) -> DiffusionImagePipeline:
        return make_pipeline()


def test_a_learned_variance_is_saved_too(tmp_path: Path) -> None:
    pipeline = make_pipeline(DDPMScheduler(variance_type="learned_range", clip_sample=False), learn_sigma=True)
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(DiffusionImagePipeline.from_pretrained(tmp_path))
    assert torch.equal(run(loaded, [0, 1], guidance_scale=2.0), run(pipeline, [0, 1], guidance_scale=2.0))


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_images_do_not_depend_on_the_batch_under_other_schedulers(scheduler: Any, guidance_scale: float) -> None:
    pipeline = make_pipeline(scheduler())
    together = run(pipeline, [0, 1, 2], guidance_scale=guidance_scale)
    for order in ([0], [1], [2], [2, 0, 1]):
        assert (run(pipeline, order, guidance_scale=guidance_scale) - together[order]).abs().max() < 1 / 255


def test_an_interval_of_all_is_none() -> None:
    pipeline = make_pipeline()
    everywhere = run(pipeline, [0], guidance_scale=3.0, guidance_interval=(0.0, 1.0))
    assert torch.equal(everywhere, run(pipeline, [0], guidance_scale=3.0))


def test_save_and_load_with_an_autoencoder(tmp_path: Path) -> None:
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 4),
    }
    autoencoder = AutoencoderKL(**blocks, latent_channels=3, norm_num_groups=2).eval()
    pipeline = make_pipeline(autoencoder=autoencoder)
    assert pipeline.image_size == 8
    images = run(pipeline, [1])
    assert images.shape == (1, 3, 8, 8)
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(run(loaded, [1]), images)


def bind(pipeline: DiffusionImagePipeline, options: DiffusionOptions, labels: Tensor) -> Predict:
    """The guided prediction of a pipeline under labels."""
    evaluate = evaluator(pipeline.denoiser, pipeline.formulation)
    return pipeline.guidance(options).bind(evaluate, Condition(labels), pipeline.formulation)


def test_guidance_follows_its_formula_in_one_forward_pass() -> None:
    pipeline = make_pipeline()
    calls: list[int] = []
    pipeline.denoiser.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    labels = torch.tensor([0, 1])
    noise = pipeline.image_noise(generators([0, 1]), 2)
    state = pipeline.prepare_state(labels, noise)
    timestep = torch.tensor(700.0)

    def predict(**options: Any) -> Tensor:
        chosen = DiffusionOptions(guidance_scale=3.0, **options)
        return bind(pipeline, chosen, labels)(state, timestep).prediction

    guided = predict()
    assert calls == [4]
    with torch.no_grad():
        conditional = pipeline.denoiser(state.sample, timestep, labels).prediction
        null = pipeline.denoiser(state.sample, timestep, None).prediction
    torch.testing.assert_close(guided, null + 3 * (conditional - null))
    first = predict(guidance_channels=1)
    torch.testing.assert_close(first[:, :1], guided[:, :1])
    torch.testing.assert_close(first[:, 1:], conditional[:, 1:])
    torch.testing.assert_close(predict(guidance_interval=(0.0, 0.6)), conditional)


def test_guidance_leaves_the_variance_alone() -> None:
    pipeline = make_pipeline(DDPMScheduler(variance_type="learned_range"), learn_sigma=True)
    labels, timestep = torch.tensor([0]), torch.tensor(700)
    state = pipeline.prepare_state(labels, pipeline.image_noise(generators([0]), 1))
    options = [DiffusionOptions(guidance_scale=scale) for scale in (3.0, 1.0)]
    guided, conditional = (bind(pipeline, each, labels)(state, timestep) for each in options)
    assert guided.variance is not None and conditional.variance is not None
    torch.testing.assert_close(guided.variance, conditional.variance)
    assert not torch.allclose(guided.prediction, conditional.prediction)


def test_another_scheduler_can_take_over() -> None:
    pipeline = make_pipeline(DDPMScheduler(variance_type="learned_range"), learn_sigma=True)
    ancestral = run(pipeline, [0])
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    implicit = run(pipeline, [0])
    assert torch.isfinite(implicit).all() and not torch.allclose(implicit, ancestral)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    assert torch.isfinite(run(pipeline, [0])).all()


def test_another_scheduler_is_adapted_to_what_was_trained() -> None:
    betas: dict[str, Any] = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 500,
    }
    pipeline = make_pipeline(DDPMScheduler(prediction_type="v_prediction", clip_sample=False, **betas))
    expected = pipeline.scheduler
    pipeline.scheduler = DDIMScheduler(clip_sample=False)
    config = pipeline.scheduler.config
    assert config.prediction_type == "v_prediction" and torch.equal(pipeline.scheduler.betas, expected.betas)
    assert not config.clip_sample and pipeline.config["scheduler"][1] == "DDIMScheduler"


def test_the_docstrings_scheduler_takes_over_a_flow() -> None:
    pipeline = make_pipeline()
    euler = run(pipeline, [0, 1])
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    assert pipeline.scheduler.config.use_flow_sigmas and pipeline.scheduler.config.prediction_type == "flow_prediction"
    images = run(pipeline, [0, 1])
    assert torch.isfinite(images).all() and not torch.allclose(images, euler)


@pytest.mark.parametrize("how", ["assignment", "register_modules", "constructor", "from_pretrained"])
def test_a_scheduler_that_cannot_fit_is_refused_wherever_it_is_given(how: str, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    before, wrong = pipeline.scheduler, DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="DDIMScheduler does not fit this denoiser, which was trained for flow matching; use Flow"
    ):
        if how == "assignment":
            pipeline.scheduler = wrong
        elif how == "register_modules":
            pipeline.register_modules(scheduler=wrong)
        elif how == "constructor":
            DiffusionImagePipeline(pipeline.denoiser, wrong, formulation=pipeline.formulation)
        else:
            DiffusionImagePipeline.from_pretrained(tmp_path, scheduler=wrong)
    assert pipeline.scheduler is before and pipeline.config["scheduler"][1] == "FlowMatchEulerDiscreteScheduler"


def test_what_was_trained_is_saved_beside_the_sampler(tmp_path: Path) -> None:
    pipeline = make_pipeline()
    pipeline.scheduler = UniPCMultistepScheduler()
    pipeline.save_pretrained(tmp_path)
    expected = run(pipeline, [0])
    loaded = DiffusionImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.formulation, Interpolant) and loaded.formulation.config.time_scale == 1000
    assert isinstance(loaded.scheduler, UniPCMultistepScheduler) and torch.equal(run(loaded, [0]), expected)
    with pytest.raises(UserError, match="DDPMScheduler does not fit"):
        loaded.scheduler = DDPMScheduler()


@pytest.mark.parametrize("has_training_scheduler", [True, False])
def test_a_pipeline_of_before_says_what_was_trained_by_its_scheduler(tmp_path: Path, has_training_scheduler: bool) -> None:
    trained = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    pipeline = make_pipeline(trained)
    pipeline.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "formulation")
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["formulation"]
    if has_training_scheduler:
        trained.save_pretrained(tmp_path / "training_scheduler")
        index["training_scheduler"] = ["diffusers", "DDPMScheduler"]
    else:
        del index["training_scheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = DiffusionImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(run(loaded, [0]), run(pipeline, [0]))
    loaded.scheduler = EulerDiscreteScheduler()
    assert loaded.scheduler.config.prediction_type == "v_prediction"


def test_our_samplers_take_over_and_are_saved(tmp_path: Path) -> None:
    pipeline = make_pipeline()
    pipeline.scheduler = HeunSampler(churn=5.0)
    expected = run(pipeline, [0, 1], guidance_scale=2.0)
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, HeunSampler) and torch.equal(run(loaded, [0, 1], guidance_scale=2.0), expected)
    with pytest.raises(UserError, match="was trained as Interpolant"):
        loaded.scheduler = AncestralSampler()


def test_a_learned_variance_needs_a_network_that_learned_one() -> None:
    with pytest.raises(UserError, match="variance_type 'learned_range' but the network predicts no variance"):
        make_pipeline(DDPMScheduler(variance_type="learned_range"))


@pytest.mark.parametrize("kind", [EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, DDPMScheduler, EulerDiscreteScheduler])
def test_guidance_acts_on_the_steps_within_the_interval(kind: Any) -> None:
    pipeline = make_pipeline(kind())
    calls: list[int] = []
    pipeline.denoiser.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    run(pipeline, [0], num_inference_steps=8, guidance_scale=2.0, guidance_interval=(0.2, 0.8))
    # Of EDM's even steps in sigma^(1/7) two lie at these noise-to-signal ratios, 0.25 to 4.
    assert len(calls) == 8 and calls.count(2) in ((1, 2) if kind is EDMEulerScheduler else (4, 5))


def test_guidance_without_a_null_condition_is_refused() -> None:
    pipeline = make_pipeline(class_dropout_prob=0.0)
    assert run(pipeline, [0]).shape == (1, 3, 4, 4)
    with pytest.raises(UserError, match="guidance_scale 2.0 needs a denoiser with a null condition"):
        run(pipeline, [0], guidance_scale=2.0)


def test_latents_without_an_autoencoder_are_refused() -> None:
    denoiser = DiT(sample_size=4, patch_size=2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    with pytest.raises(UserError, match="latents of 4 channels"):
        DiffusionImagePipeline(denoiser, DDIMScheduler())(class_labels=[0], num_inference_steps=1)
