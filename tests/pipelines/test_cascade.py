"""Upsampler and cascade: the contract of pipelines, and stages that do not meet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import ALL, COPIES, LABELS, GenerationContract, PipelineContract, quiet
from torch import Tensor

from generative.cli.main import main
from generative.core.errors import UserError
from generative.core.images import images_to_float
from generative.core.seeding import sample_generators
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.adm import ADMUNet
from generative.diffusion.samplers.ancestral import AncestralSampler
from pipelines import load_any_pipeline, load_pipeline
from pipelines.cascade import CascadePipeline
from pipelines.diffusion import DiffusionImagePipeline
from pipelines.upsampler import UpsamplerPipeline


def network(size: int, low_resolution_size: int | None = None, num_classes: int = 3, class_conditional: bool = True) -> ADMUNet:
    """As small as ADM's can be, with a null condition and random weights."""
    torch.manual_seed(size)
    net = ADMUNet(
        sample_size=size,
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        num_head_channels=32,
        num_classes=num_classes,
        class_conditional=class_conditional,
        class_dropout_prob=0.1 if class_conditional else 0.0,
        low_resolution_size=low_resolution_size,
    ).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return net


def make_base(size: int = 4, **options: Any) -> DiffusionImagePipeline:
    formulation = GaussianDiffusion(num_train_timesteps=20, learned_variance=True)
    return quiet(DiffusionImagePipeline(network(size, **options), AncestralSampler(clip_sample=True), formulation=formulation))


def make_upsampler(size: int = 8, low_resolution_size: int = 4, **options: Any) -> UpsamplerPipeline:
    formulation = GaussianDiffusion(num_train_timesteps=20, learned_variance=True)
    denoiser = network(size, low_resolution_size, **options)
    return quiet(UpsamplerPipeline(denoiser, AncestralSampler(clip_sample=True), formulation=formulation))


def small(count: int = 4, size: int = 4) -> Tensor:
    return torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class TestUpsamplerPipeline(PipelineContract):
    pipeline_class = UpsamplerPipeline
    always = {"num_inference_steps": 3}
    options = ({}, {"guidance_scale": 3.0}, {"num_inference_steps": 4})
    tolerance = 1 / 255
    refused = (
        ({"low_resolution": None}, "an upsampler needs low_resolution images of 4 pixels; give them"),
        ({"low_resolution": small(1, 8)}, "takes images of 4x4 pixels, got 8x8"),
        ({"low_resolution": small(2)}, "one low_resolution image per class label, got 2 for 1 labels"),
        ({"class_labels": [5]}, r"class label 5 is outside 0\.\.2"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
    )

    def make(self) -> UpsamplerPipeline:
        return make_upsampler()

    def call(self, pipeline: Any, order: Sequence[int] = ALL, **options: Any) -> Any:
        picked = [sample_generators(0, LABELS, COPIES)[index] for index in order]
        labels = [LABELS[index] for index in order]
        images = small()[list(order)]
        return pipeline(labels, low_resolution=images, generator=picked, **(self.always | options))

    def call_with(self, pipeline: Any, **arguments: Any) -> Any:
        return pipeline(**({"class_labels": [0], "low_resolution": small(1)} | self.always | arguments))

    def test_the_small_image_matters(self, pipeline: Any) -> None:
        one, other = (
            pipeline(
                [0], low_resolution=images, generator=[torch.Generator().manual_seed(0)], output_type="pt", **self.always
            ).images
            for images in (small()[:1], small()[1:2])
        )
        assert (one - other).abs().max() > 0.01


class TestCascadePipeline(GenerationContract):
    pipeline_class = CascadePipeline
    always = {"num_inference_steps": 3, "upsampler_num_inference_steps": 3}
    options = (
        {},
        {"guidance_scale": 8.0},
        {"upsampler_guidance_scale": 3.0},
        {"upsampler_num_inference_steps": 4},
    )
    tolerance = 2 / 255
    refused = (
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"upsampler_num_inference_steps": 21}, "num_inference_steps must be in 1..20, got 21"),
        ({"upsampler_guidance_interval": (0.9, 0.1)}, "guidance_interval must be two numbers with 0 <= low"),
    )

    def make(self) -> CascadePipeline:
        return CascadePipeline(make_base(), make_upsampler())

    def test_it_is_base_and_upsampler_one_after_the_other(self, pipeline: Any) -> None:
        labels = [0, 2]
        streams = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        together = pipeline(labels, generator=streams, output_type="pt", **self.always).images
        streams = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        images = pipeline.base(labels, generator=streams, num_inference_steps=3, output_type="uint8").images
        options = {"num_inference_steps": 3, "output_type": "pt"}
        # The upsampler goes on with the streams of the base.
        assert torch.equal(pipeline.upsampler(labels, low_resolution=images, generator=streams, **options).images, together)
        floats = images_to_float(images)
        assert pipeline.image_size == 8 and floats.shape[-1] == 4

    def test_options_of_the_stages_are_kept(self) -> None:
        base, upsampler = make_base(), make_upsampler()
        base.register_to_config(sampling_defaults={"num_inference_steps": 5})
        upsampler.register_to_config(sampling_defaults={"num_inference_steps": 7, "guidance_scale": 2.0})
        options = CascadePipeline(base, upsampler).merge_options()
        assert (options.num_inference_steps, options.upsampler_num_inference_steps) == (5, 7)
        assert (options.guidance_scale, options.upsampler_guidance_scale) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("base", "upsampler", "sentence"),
    [
        (lambda: make_base(8), make_upsampler, "the base makes images of 8 pixels and the upsampler takes 4; give two that meet"),
        (lambda: make_base(num_classes=2), make_upsampler, "the base has 2 classes and the upsampler 3; give two of the same"),
        (make_base, lambda: make_base(8), "the upsampler is a DiffusionImagePipeline, which takes no images of lower resolution"),
        (
            make_upsampler,
            lambda: make_upsampler(16, 8),
            "the base is a UpsamplerPipeline; a cascade begins with a diffusion model",
        ),
    ],
)
def test_stages_that_do_not_meet(base: Any, upsampler: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        CascadePipeline(base(), upsampler())


def test_a_stage_without_classes_ignores_labels() -> None:
    unconditional = {"num_classes": 1, "class_conditional": False}
    assert CascadePipeline(make_base(**unconditional), make_upsampler()).num_classes == 3
    assert CascadePipeline(make_base(), make_upsampler(**unconditional)).num_classes == 3
    assert CascadePipeline(make_base(**unconditional), make_upsampler(**unconditional)).num_classes == 1


def test_names_of_classes_must_agree() -> None:
    base, upsampler = make_base(), make_upsampler()
    base.class_names, upsampler.class_names = ["a", "b", "c"], ["a", "c", "b"]
    with pytest.raises(UserError, match="other names for their classes"):
        CascadePipeline(base, upsampler)
    upsampler.class_names = ["a", "b", "c"]
    assert CascadePipeline(base, upsampler).class_names == ["a", "b", "c"]


def test_a_denoiser_that_is_no_upsampler() -> None:
    formulation = GaussianDiffusion(num_train_timesteps=20, learned_variance=True)
    with pytest.raises(UserError, match="the denoiser is a ADMUNet without low_resolution_size, which is no upsampler"):
        UpsamplerPipeline(network(8), AncestralSampler(), formulation=formulation)


def test_one_command_runs_both_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_base().save_pretrained(tmp_path / "base")
    make_upsampler().save_pretrained(tmp_path / "up")
    make_upsampler(16, 8).save_pretrained(tmp_path / "other")
    common = [
        "--num-images-per-class",
        "2",
        "--num-inference-steps",
        "3",
        "--upsampler-num-inference-steps",
        "2",
        "--device",
        "cpu",
    ]
    base, up = str(tmp_path / "base"), str(tmp_path / "up")
    assert main(["sample", base, "--upsampler", up, *common, "--output", str(tmp_path / "a.npz")]) == 0
    assert main(["cascade", base, up, "--output", str(tmp_path / "both")]) == 0
    assert main(["sample", str(tmp_path / "both"), *common, "--batch-size", "1", "--output", str(tmp_path / "b.npz")]) == 0
    one, other = (np.load(tmp_path / name)["arr_0"].astype(int) for name in ("a.npz", "b.npz"))
    assert one.shape == (6, 8, 8, 3) and np.abs(one - other).max() <= 2
    generators = sample_generators(0, [0, 0, 1, 1, 2, 2], [0, 1] * 3)
    pipeline = quiet(load_pipeline(tmp_path / "both"))
    steps = {"num_inference_steps": 3, "upsampler_num_inference_steps": 2}
    images = pipeline([0, 0, 1, 1, 2, 2], generator=generators, output_type="uint8", **steps).images
    assert np.abs(images.permute(0, 2, 3, 1).numpy().astype(int) - one).max() <= 2
    capsys.readouterr()
    for arguments, sentence in (
        (["sample", base, "--upsampler", str(tmp_path / "other")], "makes images of 4 pixels and the upsampler takes 8"),
        (["sample", base, "--upsampler-num-inference-steps", "2"], "DiffusionImagePipeline has no use for --upsampler-num"),
        (["sample", up, "--num-inference-steps", "3"], "an upsampler needs low_resolution images of 4 pixels"),
        (["cascade", base, up, "--output", str(tmp_path / "both")], "is already there; choose another folder"),
        (["cascade", base, base, "--output", str(tmp_path / "new")], "which takes no images of lower resolution"),
    ):
        output = ["--output", str(tmp_path / "none")] if "--output" not in arguments else []
        assert main([*arguments, *output]) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1, error


def test_a_saved_cascade_keeps_both_stages(tmp_path: Path) -> None:
    CascadePipeline(make_base(), make_upsampler()).save_pretrained(tmp_path)
    assert (tmp_path / "base" / "model_index.json").is_file() and (tmp_path / "upsampler" / "denoiser").is_dir()
    loaded = load_any_pipeline(tmp_path)
    assert isinstance(loaded, CascadePipeline) and isinstance(loaded.upsampler, UpsamplerPipeline)
