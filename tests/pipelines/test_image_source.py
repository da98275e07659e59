"""A saved pipeline as a source of images to score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from generative.gan.sagan import SAGANGenerator
from pipelines.gan import GANImagePipeline
from pipelines.image_source import PipelineSource, open_pipeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    generator = SAGANGenerator(8, channels=4, z_dim=6, num_classes=3, attention_resolutions=(8,))
    generator(torch.randn(8, 6), torch.arange(8) % 3)  # moves the batch statistics away from their start
    GANImagePipeline(generator.eval()).save_pretrained(tmp_path)
    return tmp_path


def test_any_range_gives_the_images_of_the_whole(folder: Path) -> None:
    source = open_pipeline(folder, num_samples=7, seed=5, batch_size=2, device="cpu")
    assert len(source) == 7 and source.has_labels and source.is_costly
    whole = list(source.batches(3))
    assert [batch.indices for batch in whole] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [label for batch in whole for label in batch.labels or []] == ["0", "0", "0", "1", "1", "2", "2"]
    images = torch.stack([image for batch in whole for image in batch.images])
    assert images.dtype == torch.uint8 and images.shape == (7, 3, 8, 8)
    (part,) = source.batches(4, start=2, stop=6)
    assert part.indices == [2, 3, 4, 5] and part.labels == ["0", "1", "1", "2"]
    assert (torch.stack(part.images).int() - images[2:6].int()).abs().max() <= 1  # rounding of another batch size
    with pytest.raises(ValueError, match="start and stop"):
        next(source.batches(4, start=2, stop=8))


def test_identity_is_that_of_the_samples(folder: Path) -> None:
    identity = PipelineSource(folder, 7, 5, "cpu").identity()
    assert PipelineSource(folder, 7, 5, "cpu").identity() == identity
    assert PipelineSource(folder, 7, 6, "cpu").identity() != identity
    assert PipelineSource(folder, 8, 5, "cpu").identity() != identity
    assert PipelineSource(folder, 7, 5, "cpu", "bfloat16").identity() != identity


def test_networks_sample_in_the_precision_asked_for(folder: Path) -> None:
    exact, half = (PipelineSource(folder, 6, 5, "cpu", precision) for precision in ("float32", "bfloat16"))
    (whole,), (rounded,) = (list(source.batches(6)) for source in (exact, half))
    difference = (torch.stack(whole.images).int() - torch.stack(rounded.images).int()).abs()
    assert 0 < difference.max() <= 16, "bfloat16 rounds, and makes the same images"
    assert half.kind.endswith("bfloat16") and "float32" not in exact.kind
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        PipelineSource(folder, 6, 5, "cpu", "float16")


def test_labels_have_the_names_of_the_pipeline(folder: Path) -> None:
    pipeline = GANImagePipeline.from_pretrained(folder)
    assert PipelineSource(folder, 3, 0, "cpu").class_names is None
    pipeline.class_names = ["cat", "ant", "007"]
    pipeline.save_pretrained(folder)
    source = PipelineSource(folder, 3, 0, "cpu")
    assert source.has_class_numbers and source.labels == ["0", "1", "2"]
    assert source.named(source.labels) == ["cat", "ant", "7"], "a number as folders' names have it"
