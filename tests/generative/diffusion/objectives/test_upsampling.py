"""The objective of upsamplers, its evaluation and its run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.logging import read_metrics
from generative.core.types import StepContext
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.adm import ADMUNet
from generative.diffusion.objectives.upsampling import UpsamplingObjective, area_average
from generative.diffusion.objectives.upsampling_evaluation import UpsamplingEvaluator
from generative.diffusion.options import DiffusionOptions
from pipelines import load_any_pipeline
from pipelines.upsampler import UpsamplerPipeline


def make_objective(low_resolution_size: int | None = 2, **options: Any) -> UpsamplingObjective:
    """From 2x2 to 4x4 pixels, as small as ADM's U-Net can be."""
    torch.manual_seed(0)
    denoiser = ADMUNet(
        sample_size=4,
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        num_head_channels=32,
        num_classes=3,
        low_resolution_size=low_resolution_size,
    )
    formulation = GaussianDiffusion(num_train_timesteps=20, learned_variance=True)
    sampling = DiffusionOptions(num_inference_steps=2)
    return UpsamplingObjective(denoiser, formulation, partial(torch.optim.AdamW, lr=1e-3), sampling=sampling, **options)


class Recorder(torch.nn.Module):
    """Stands in for a denoiser: remembers what it is given."""

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, low_resolution: Tensor) -> DenoiserOutput:
        self.low_resolution = low_resolution
        return DenoiserOutput(torch.zeros_like(sample), torch.zeros_like(sample))


def test_the_denoiser_is_given_averages_of_its_images() -> None:
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    recorder = Recorder()
    batch = {"images": images, "class_labels": torch.arange(3)}
    make_objective().loss({"denoiser": recorder}, batch, StepContext(0, 0, torch.Generator().manual_seed(0)))
    expected = images.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    torch.testing.assert_close(recorder.low_resolution, expected)
    assert area_average(images, 1).flatten(1) == pytest.approx(images.mean((2, 3)))


def test_a_run_is_drawn_scored_and_loaded(toy: ModuleType, tmp_path: Path) -> None:
    data = toy.ToyImages(seed=9)
    evaluator = UpsamplingEvaluator(data, extractor="efficientnet-lite0", input_size=32, num_images=12, batch_size=8)
    settings = {"evaluate_interval_steps": 3, "sample_interval_steps": 3, "grid_images_per_class": 5, "total_images": 24}
    trainer = toy.build_trainer(make_objective(), tmp_path, evaluator=evaluator, **settings)
    trainer.fit()
    scores = [entry for entry in read_metrics(tmp_path) if "evaluation/psnr" in entry]
    assert len(scores) == 2 and "evaluation/reconstruction_frechet_distance" in scores[0]
    assert np.asarray(Image.open(tmp_path / "samples" / "step-00000003.png")).any()
    pipeline = load_any_pipeline(tmp_path)
    assert isinstance(pipeline, UpsamplerPipeline) and pipeline.low_resolution_size == 2
    pipeline.set_progress_bar_config(disable=True)
    requests = [SampleRequest(label, index) for label in range(2) for index in range(3)]
    real = data.images(torch.arange(6))
    grids = [trainer.objective.example_images(pipeline, requests, real, 0, 3) for _ in range(2)]
    assert torch.equal(*grids) and grids[0].shape == (6, 3, 4, 4)
    enlarged = grids[0][0]
    assert torch.equal(enlarged[:, :2, :2], enlarged[:, :1, :1].expand(3, 2, 2)) and not grids[0][2].any()


def test_what_is_no_upsampler_is_refused_before_training(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without low_resolution_size, which is no upsampler; set it"):
        toy.build_trainer(make_objective(None), tmp_path)
    with pytest.raises(
        UserError, match="an? UpsamplerPipeline makes images of images of lower resolution; set evaluation.class_path"
    ):
        toy.build_trainer(make_objective(), tmp_path, evaluator=toy.evaluator())
    with pytest.raises(UserError, match="a ToyPipeline is no upsampler; score it with generative.core.evaluation.Evaluator"):
        toy.build_trainer(toy.denoiser(), tmp_path, evaluator=UpsamplingEvaluator(toy.ToyImages()))
