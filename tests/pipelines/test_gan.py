"""The GAN pipeline: saving, batch invariance, output types, wrong input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from generative.core.errors import UserError
from generative.core.seeding import sample_generators
from generative.gan.sagan import SAGANGenerator
from pipelines.gan import GANImagePipeline


@pytest.fixture
def pipeline() -> GANImagePipeline:
    torch.manual_seed(0)
    generator = SAGANGenerator(8, channels=4, z_dim=6, num_classes=4, attention_resolutions=(8,))
    generator(torch.randn(8, 6), torch.arange(8) % 4)  # moves the batch statistics away from their start
    return GANImagePipeline(generator.eval())


LABELS = [0, 3, 3, 1]


def draw(pipeline: GANImagePipeline, order: list[int], **options: object) -> torch.Tensor:
    generators = sample_generators(0, LABELS, [0, 0, 1, 0])
    picked = [generators[index] for index in order]
    return pipeline([LABELS[index] for index in order], generator=picked, output_type="pt", **options).images


@pytest.mark.parametrize("truncation", [None, 0.5])
def test_batch_equals_singles_in_any_order(pipeline: GANImagePipeline, truncation: float | None) -> None:
    together = draw(pipeline, [0, 1, 2, 3], truncation=truncation)
    for index in range(4):
        alone = draw(pipeline, [index], truncation=truncation)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-6)
    torch.testing.assert_close(draw(pipeline, [2, 0, 3, 1], truncation=truncation), together[[2, 0, 3, 1]], rtol=0, atol=1e-6)
    assert not torch.allclose(together[1], together[2])  # same class, other noise


def test_saving_and_loading_is_bit_equal(pipeline: GANImagePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = GANImagePipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(draw(loaded, [0, 1, 2, 3]), draw(pipeline, [0, 1, 2, 3]), rtol=0, atol=0)


def test_output_types_agree(pipeline: GANImagePipeline) -> None:
    def images(output_type: str) -> object:
        return pipeline([1, 2], generator=torch.Generator().manual_seed(5), output_type=output_type).images

    floats, array, bytes_, pil = images("pt"), images("np"), images("uint8"), images("pil")
    np.testing.assert_array_equal(floats.permute(0, 2, 3, 1).numpy(), array)
    assert floats.shape == (2, 3, 8, 8) and floats.min() >= 0 and floats.max() <= 1
    assert bytes_.dtype == torch.uint8 and (bytes_.float() / 255 - floats).abs().max() <= 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in pil]), bytes_.permute(0, 2, 3, 1).numpy())


def test_tuple_equals_dict(pipeline: GANImagePipeline) -> None:
    (images,) = pipeline(2, generator=torch.Generator().manual_seed(0), output_type="pt", return_dict=False)
    same = pipeline(2, generator=torch.Generator().manual_seed(0), output_type="pt").images
    torch.testing.assert_close(images, same, rtol=0, atol=0)


def test_truncation_narrows_the_noise(pipeline: GANImagePipeline) -> None:
    labels = [1] * 64
    wide, narrow = (
        pipeline(labels, truncation=truncation, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for truncation in (None, 0.05)
    )
    assert narrow.std(0).mean() < 0.5 * wide.std(0).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": [4]}, "class label 4 is outside 0..3"),
        ({"class_labels": []}, "class_labels is empty"),
        ({"class_labels": [0], "truncation": 0.0}, "truncation must be a positive threshold"),
        ({"class_labels": [0, 1], "generator": [torch.Generator()]}, "list of 1 for 2 images"),
    ],
)
def test_wrong_input_is_told(pipeline: GANImagePipeline, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline(**options)
