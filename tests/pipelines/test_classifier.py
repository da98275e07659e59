"""The pipeline of a noised classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from generative.core.errors import UserError
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.adm_classifier import ADMClassifier
from pipelines import load_any_pipeline, load_pipeline
from pipelines.classifier import NoisedClassifierPipeline


@pytest.fixture
def pipeline() -> NoisedClassifierPipeline:
    torch.manual_seed(0)
    sizes = {"sample_size": 4, "num_classes": 3, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    classifier = ADMClassifier(**sizes, attention_resolutions=(), num_head_channels=32).eval()
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return NoisedClassifierPipeline(classifier, GaussianDiffusion(beta_schedule="squaredcos_cap_v2"))


def images(count: int = 4) -> torch.Tensor:
    return torch.randint(256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_probabilities_of_every_kind_of_images(pipeline: NoisedClassifierPipeline) -> None:
    expected = pipeline(images())
    assert expected.shape == (4, 3) and expected.dtype == torch.float32
    torch.testing.assert_close(expected.sum(1), torch.ones(4))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images()]
    torch.testing.assert_close(pipeline(pictures), expected)
    torch.testing.assert_close(pipeline(images() / 127.5 - 1), expected)
    torch.testing.assert_close(pipeline(images()[:1]), expected[:1])
    noisy = pipeline(images(), timestep=500)
    assert not torch.equal(noisy, expected)
    torch.testing.assert_close(pipeline(images(), timestep=torch.tensor([0, 500, 0, 500]))[1::2], noisy[1::2])


def test_saving_and_loading_keeps_the_formulation(pipeline: NoisedClassifierPipeline, tmp_path: Path) -> None:
    pipeline.class_names = ["a", "b", "c"]
    pipeline.save_pretrained(tmp_path)
    loaded = load_any_pipeline(tmp_path)
    assert type(loaded) is NoisedClassifierPipeline and loaded.class_names == ["a", "b", "c"]
    assert loaded.formulation.identity() == pipeline.formulation.identity() and loaded.image_size == 4
    assert torch.equal(loaded(images()), pipeline(images()))
    with pytest.raises(UserError, match="which tells the classes of noised images and makes none; give it to `generative sample"):
        load_pipeline(tmp_path)


def test_wrong_arguments(pipeline: NoisedClassifierPipeline) -> None:
    with pytest.raises(UserError, match=r"takes images of 4 pixels, got \(8, 8\)"):
        pipeline(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match="one for all or one per image, got 2 for 4 images"):
        pipeline(images(), timestep=torch.tensor([0, 1]))
