"""MAGE's, RCG's and the representation diffusion's pipelines: the contract, what joins them, and parts that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import GenerationContract, quiet
from rcg_parts import DIM, make_mage, make_rcg, make_representation

from generative.cli.main import main
from generative.core.errors import UserError
from pipelines import load_any_pipeline, load_pipeline
from pipelines.mage import MAGEPipeline
from pipelines.rcg import RCGPipeline
from pipelines.representation import RepresentationPipeline, load_representation

REPRESENTATION_REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"representation_num_inference_steps": 0}, r"num_inference_steps must be in 1\.\.20, got 0|must be at least 1, got 0"),
    ({"representation_guidance_scale": -1.0}, "guidance_scale must be"),
    ({"representation_sampler": "ldm"}, "there is no sampler named 'ldm'"),
    ({"guidance_scale": -1.0}, "guidance_scale must be"),
)


class TestMAGEPipeline(GenerationContract):
    pipeline_class = MAGEPipeline
    always = {"num_inference_steps": 4}
    options = (
        {},
        {"num_inference_steps": 3},
        {"guidance_scale": 8.0},
        {"guidance_scale": 8.0, "guidance_schedule": "constant"},
        {"guidance_scale": 8.0, "guidance_interval": (0.3, 0.8)},
        {"representation_num_inference_steps": 5},
        {"representation_guidance_scale": 6.0},
        {"representation_sampler": "ldm-ddim:eta=0"},
    )
    refused = (
        *REPRESENTATION_REFUSED,
        ({"num_inference_steps": 17}, r"num_inference_steps must be in 1\.\.16, .* got 17"),
        ({"choice_temperature": -1.0}, "choice_temperature must be"),
    )

    def make(self) -> MAGEPipeline:
        return make_mage()


class TestRCGPipeline(GenerationContract):
    pipeline_class = RCGPipeline
    always = {"num_inference_steps": 3}
    options = (
        {},
        {"guidance_scale": 8.0},
        {"num_inference_steps": 4},
        {"representation_num_inference_steps": 5},
        {"representation_guidance_scale": 6.0},
        {"representation_sampler": "ddim"},
    )
    tolerance = 2 / 255
    refused = (*REPRESENTATION_REFUSED, ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"))

    def make(self) -> RCGPipeline:
        return make_rcg()


class TestMAGEOfClasses(GenerationContract):
    pipeline_class = MAGEPipeline
    always = {"num_inference_steps": 4}
    options = ({}, {"guidance_scale": 8.0})
    refused = (({"representation_guidance_scale": 2.0}, "representation_guidance_scale is for a representation diffusion"),)

    def make(self) -> MAGEPipeline:
        return make_mage("class")


def test_an_unconditional_mage_has_one_class_and_no_guidance() -> None:
    pipeline = make_mage("none")
    images = pipeline([0, 0], num_inference_steps=4, output_type="pt").images
    assert pipeline.num_classes == 1 and images.shape == (2, 3, 4, 4)
    with pytest.raises(UserError, match="guidance_scale 2.0 needs a transformer with a null condition"):
        pipeline([0], num_inference_steps=4, guidance_scale=2.0)


@pytest.mark.parametrize("make", [make_mage, make_rcg])
def test_without_classes_there_is_one(make: Any) -> None:
    assert make(representation=make_representation(num_classes=1)).num_classes == 1


@pytest.mark.parametrize("make", [make_mage, make_rcg])
def test_representations_of_another_width_are_refused(make: Any) -> None:
    with pytest.raises(UserError, match=r"makes representations of 9 numbers and the \w+ takes 6") as caught:
        make(representation=make_representation(dim=9))
    assert "\n" not in str(caught.value)
    network = getattr(make(), "transformer", None) or make().denoiser
    with pytest.raises(UserError, match="takes representations of 6 numbers"):
        if hasattr(network, "head_bias"):
            network(torch.zeros(1, 16, dtype=torch.int64), vector=torch.zeros(1, 9))
        else:
            network(torch.zeros(1, 3, 4, 4), torch.zeros(1), vector=torch.zeros(1, 9))


@pytest.mark.parametrize("make", [make_mage, make_rcg])
def test_a_generator_without_its_representation_diffusion_says_so(make: Any) -> None:
    with pytest.raises(UserError, match="generative rcg"):
        make(representation=None)([0], num_inference_steps=3)


def test_representations_follow_seed_class_and_options() -> None:
    pipeline = make_representation()
    streams = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    same, other, third = pipeline([0, 1, 0], generator=streams)
    assert same.shape == (DIM,) and not torch.equal(same, other) and not torch.equal(same, third)
    alone = pipeline([0], generator=[torch.Generator().manual_seed(1)])
    torch.testing.assert_close(alone[0], same)
    guided = pipeline([0], generator=[torch.Generator().manual_seed(1)], guidance_scale=3.0)
    assert not torch.allclose(guided, alone)
    with pytest.raises(UserError, match=r"class labels must be in 0\.\.2, got \[3\]"):
        pipeline([3])
    with pytest.raises(UserError, match="size 8x8 is of images"):
        pipeline([0], size="8x8")
    with pytest.raises(UserError, match="free_u changes the decoder of a U-Net"):
        pipeline([0], free_u=(1.2, 1.4, 0.9, 0.2))


def test_a_representation_pipeline_survives_its_folder(tmp_path: Path) -> None:
    pipeline = make_representation()
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(load_representation(tmp_path))
    assert type(loaded) is RepresentationPipeline and loaded.config.representation_encoder["extractor"] == "resnet9"
    streams = [[torch.Generator().manual_seed(3)] for _ in range(2)]
    assert torch.equal(loaded([2], generator=streams[0]), pipeline([2], generator=streams[1]))
    with pytest.raises(UserError, match="makes representations of images and no images; train a generator on it"):
        load_pipeline(tmp_path)
    make_mage().save_pretrained(tmp_path / "mage")
    with pytest.raises(UserError, match="holds a MAGEPipeline, which makes images of classes; give the run of a representation"):
        load_representation(tmp_path / "mage")


@pytest.mark.parametrize("make", [make_mage, make_rcg])
def test_the_command_joins_two_folders(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_representation().save_pretrained(tmp_path / "rdm")
    make(representation=None).save_pretrained(tmp_path / "generator")
    command = ["rcg", str(tmp_path / "rdm"), str(tmp_path / "generator"), "--output", str(tmp_path / "joined")]
    assert main(command) == 0
    joined, whole = quiet(load_any_pipeline(tmp_path / "joined")), make()
    streams = [[torch.Generator().manual_seed(3)] for _ in range(2)]
    images = [
        each([1], num_inference_steps=3, generator=s, output_type="pt").images
        for each, s in zip((joined, whole), streams, strict=True)
    ]
    assert torch.equal(*images)
    assert main(command) == 2 and "is already there" in capsys.readouterr().err
    backwards = ["rcg", str(tmp_path / "rdm"), str(tmp_path / "rdm"), "--output", str(tmp_path / "other")]
    assert main(backwards) == 2 and "whose generator takes no representations" in capsys.readouterr().err
