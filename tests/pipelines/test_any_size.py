"""Images of sizes never trained on: options, refusals, saved pipelines, the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.dit import DiT
from generative.diffusion.networks.fit import FiT
from generative.diffusion.samplers.ode import ODESampler
from pipelines.diffusion import DiffusionImagePipeline

SMALL: dict[str, Any] = {"sample_size": 8, "patch_size": 4, "in_channels": 3, "hidden_size": 16, "depth": 1, "num_heads": 2}
SMALL |= {"num_classes": 3}


def make_pipeline(network: type[FiT] | type[DiT] = FiT, **components: Any) -> DiffusionImagePipeline:
    torch.manual_seed(0)
    denoiser = network(**SMALL).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline = DiffusionImagePipeline(denoiser, ODESampler(), formulation=Interpolant(data_time=1), **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: DiffusionImagePipeline, **options: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images: Tensor = pipeline([0, 2], generator=generators, output_type="pt", num_inference_steps=2, **options).images
    return images


def test_width_comes_before_height() -> None:
    pipeline = make_pipeline()
    assert draw(pipeline).shape == (2, 3, 8, 8)
    assert draw(pipeline, size="20x12", guidance_scale=2.0).shape == (2, 3, 12, 20)
    assert torch.equal(draw(pipeline, size="8x8"), draw(pipeline))


def test_a_saved_pipeline_keeps_its_size(tmp_path: Path) -> None:
    pipeline = make_pipeline(sampling_defaults={"size": "12x4"})
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    images = draw(loaded)
    assert images.shape == (2, 3, 4, 12) and torch.equal(images, draw(pipeline))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("320", r"size must be WIDTHxHEIGHT in pixels, such as 320x192 \(320 wide, 192 high\), got '320'"),
        ("8x0", "must be WIDTHxHEIGHT"),
        ("12x10", "WIDTHxHEIGHT in multiples of 4 pixels, the denoiser's patches, got 12x10"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_pipeline().check_options(size=size)


def test_networks_of_one_size_refuse_others() -> None:
    with pytest.raises(UserError, match="size 8x8 cannot be made: the denoiser is a DiT, which knows 8x8 only; leave size out"):
        make_pipeline(DiT).check_options(size="8x8")
    guided = make_pipeline(guide=DiT(**SMALL))
    guided.check_options(size="12x4")  # which does not run
    with pytest.raises(UserError, match="the guide is a DiT"):
        guided.check_options(size="12x4", guide_scale=2.0)


def test_the_command_takes_a_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from generative.cli.main import main

    make_pipeline().save_pretrained(tmp_path / "pipeline")
    base = ["sample", str(tmp_path / "pipeline"), "--num-images-per-class", "1", "--num-inference-steps", "2", "--size"]
    assert main([*base, "12x4", "--output", str(tmp_path / "samples")]) == 0
    (first, *_) = sorted((tmp_path / "samples").rglob("*.png"))
    assert Image.open(first).size == (12, 4)
    assert main([*base, "13x4", "--output", str(tmp_path / "others")]) == 2
    assert "size must be WIDTHxHEIGHT in multiples of 4 pixels" in capsys.readouterr().err
