"""The GAN pipeline: saving, batch invariance, truncation, mixtures, interpolation, output types, wrong input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from contract import GenerationContract, draw
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.core.seeding import keyed_generator, sample_generators
from generative.gan.sagan import SAGANGenerator
from pipelines.gan import GANImagePipeline


def make_pipeline() -> GANImagePipeline:
    torch.manual_seed(0)
    generator = SAGANGenerator(8, channels=4, z_dim=6, num_classes=4, attention_resolutions=(8,))
    generator(torch.randn(8, 6), torch.arange(8) % 4)  # moves the batch statistics away from their start
    return GANImagePipeline(generator.eval())


@pytest.fixture
def pipeline() -> GANImagePipeline:
    return make_pipeline()


class TestGANImagePipeline(GenerationContract):
    pipeline_class = GANImagePipeline
    options = ({}, {"truncation": 0.5})
    tolerance = 1e-6
    refused = (
        ({"truncation": 0.0}, "truncation must be a positive threshold"),
        ({"class_labels": [[0.5, 0.5]]}, r"shape \(1, 2\) are no mixtures: .* each of its 4 classes"),
        ({"class_labels": [[0.5, 0.5, 0.5, 0.0]]}, "row 0 is no mixture of classes"),
        ({"class_labels": [[1.0, 0, 0, 0], [1.5, -0.5, 0, 0]]}, "row 1 is no mixture of classes"),
        ({"class_labels": [[float("nan"), 0, 0, 1]]}, "row 0 is no mixture of classes"),
        ({"class_labels": [[1.0, 0], [1.0]]}, "class_labels must be integers, or weights of all classes"),
    )

    def make(self) -> GANImagePipeline:
        return make_pipeline()


def test_truncation_narrows_the_noise(pipeline: GANImagePipeline) -> None:
    labels = [1] * 64
    wide, narrow = (
        pipeline(labels, truncation=truncation, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for truncation in (None, 0.05)
    )
    assert narrow.std(0).mean() < 0.5 * wide.std(0).mean()


def test_images_are_what_they_were_before_truncation_had_options(pipeline: GANImagePipeline) -> None:
    """Pixels of the first two images, written down when pipelines had one distribution only."""
    for truncation, expected in (
        (None, [[0.4742279, 0.4001939, 0.5476213], [0.4645203, 0.4607915, 0.5144575]]),
        (0.5, [[0.4756846, 0.4263250, 0.5469577], [0.5113307, 0.4110242, 0.5480194]]),
    ):
        generators = sample_generators(0, [0, 3], [0, 0])
        images = pipeline([0, 3], truncation=truncation, generator=generators, output_type="pt").images
        pixels = images[:, 0, 3, ::3]
        torch.testing.assert_close(pixels, torch.tensor(expected), rtol=0, atol=2e-5)


def test_a_pipeline_saved_without_a_truncation_law_redraws(pipeline: GANImagePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    assert index.pop("truncation_law") == "truncated"
    path.write_text(json.dumps(index))
    loaded = GANImagePipeline.from_pretrained(tmp_path)
    assert loaded.truncation_law == "truncated"
    assert torch.equal(draw(loaded, [0, 1], truncation=0.5), draw(pipeline, [0, 1], truncation=0.5))
    path.write_text(json.dumps({**index, "truncation_law": "cut"}))
    with pytest.raises(UserError, match="truncation_law must be one of truncated, scaled_truncated, scaled, got 'cut'"):
        GANImagePipeline.from_pretrained(tmp_path)


def test_the_truncation_law_is_kept(pipeline: GANImagePipeline, tmp_path: Path) -> None:
    images = {"truncated": draw(pipeline, [0, 1], truncation=0.5)}
    for law in ("scaled_truncated", "scaled"):
        GANImagePipeline(pipeline.generator, truncation_law=law).save_pretrained(tmp_path / law)
        loaded = GANImagePipeline.from_pretrained(tmp_path / law)
        assert loaded.truncation_law == law
        images[law] = draw(loaded, [0, 1], truncation=0.5)
        assert torch.equal(draw(loaded, [0, 1]), draw(pipeline, [0, 1])), "without a truncation there is one distribution"
    assert not torch.equal(images["truncated"], images["scaled_truncated"])
    assert not torch.equal(images["scaled_truncated"], images["scaled"])


class EchoGenerator(ModelMixin, ConfigMixin):
    """Shows what it was given: red the noise vector, green the first noise map, blue the second one plus the truncation."""

    @register_to_config
    def __init__(self, num_statistics: int = 51) -> None:
        super().__init__()
        self.z_dim, self.num_classes, self.image_size = 16, 2, 4
        self.noise_shapes = ((1, 4, 4), (1, 2, 2))
        self.num_statistics = num_statistics
        self.scale = torch.nn.Parameter(torch.tensor(0.2))

    def forward(
        self, z: Tensor, class_labels: Tensor, noise: Sequence[Tensor] | None = None, truncation: float | None = None
    ) -> Tensor:
        assert noise is not None
        assert [tuple(map_.shape[1:]) for map_ in noise] == list(self.noise_shapes)
        coarse = noise[1].repeat_interleave(2, 2).repeat_interleave(2, 3) + (truncation or 0)
        return self.scale * torch.cat([z.reshape(-1, 1, 4, 4), noise[0], coarse], dim=1)


def test_noise_maps_belong_to_their_image() -> None:
    pipeline = GANImagePipeline(EchoGenerator(num_statistics=1))

    def images(seeds: list[int], output_type: str = "pt") -> Tensor:
        return pipeline([0] * len(seeds), generator=[keyed_generator(seed) for seed in seeds], output_type=output_type).images

    together = images([5, 6, 7])
    for index, seed in enumerate((5, 6, 7)):
        torch.testing.assert_close(images([seed])[0], together[index], rtol=0, atol=1e-6)
    assert torch.equal(images([7, 5], "uint8"), images([5, 6, 7], "uint8")[[2, 0]])
    assert not torch.equal(together[0, 1], together[1, 1]) and not torch.equal(together[0, 2], together[1, 2])
    # The vector is drawn first: a generator without maps makes the same of a seed.
    z = 0.2 * torch.randn(16, generator=keyed_generator(5)).reshape(4, 4)
    torch.testing.assert_close(together[0, 0], (z / 2 + 0.5).clamp(0, 1))


def test_truncation_reaches_generators_with_statistics_of_their_own() -> None:
    def blue(truncation: float | None, num_statistics: int) -> Tensor:
        pipeline = GANImagePipeline(EchoGenerator(num_statistics))
        return pipeline([0], truncation=truncation, generator=keyed_generator(1), output_type="pt").images[0, 2]

    assert torch.equal(blue(None, 51), blue(None, 1)) and not torch.equal(blue(0.5, 51), blue(0.5, 1))


def test_a_mixture_of_one_class_is_that_class(pipeline: GANImagePipeline) -> None:
    generators = [keyed_generator(seed) for seed in range(2)]
    plain = pipeline([1, 3], generator=generators, output_type="pt").images
    weights = [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    for mixtures in (weights, torch.tensor(weights, dtype=torch.float64)):
        generators = [keyed_generator(seed) for seed in range(2)]
        mixed = pipeline(mixtures, generator=generators, output_type="pt").images
        torch.testing.assert_close(mixed, plain, rtol=0, atol=1e-6)
    generators = [keyed_generator(seed) for seed in range(2)]
    between = pipeline([[0.5, 0.5, 0, 0]] * 2, generator=generators, output_type="pt").images
    assert (between[0] - plain[0]).abs().max() > 1e-3


def test_latent_interpolations_lead_from_image_to_image(pipeline: GANImagePipeline) -> None:
    def generators() -> list[torch.Generator]:
        return [keyed_generator(seed) for seed in range(4)]

    options = {"truncation": 0.8, "output_type": "pt"}
    ends = pipeline([0, 0, 2, 2], generator=generators(), **options).images
    for path in ("spherical", "linear"):
        frames = pipeline.interpolate_latents([0, 2], 5, path, generator=generators(), batch_size=3, **options).images
        assert frames.shape == (10, 3, 8, 8)
        torch.testing.assert_close(frames[[0, 4, 5, 9]], ends, rtol=0, atol=1e-5)
        steps = frames.unflatten(0, (2, 5)).diff(dim=1).abs().amax((2, 3, 4))
        jump = (ends[0::2] - ends[1::2]).abs().amax((1, 2, 3))
        assert (steps > 0).all() and (steps.amax(1) < jump).all(), "many small steps, no jump"
        again = pipeline.interpolate_latents([0, 2], 5, path, generator=generators(), batch_size=64, **options).images
        torch.testing.assert_close(again, frames, rtol=0, atol=1e-6)


def test_latent_interpolations_take_noise_maps_along() -> None:
    pipeline = GANImagePipeline(EchoGenerator())
    ends = pipeline([0, 0], generator=[keyed_generator(1), keyed_generator(2)], output_type="pt").images
    frames = pipeline.interpolate_latents([0], 3, generator=[keyed_generator(1), keyed_generator(2)], output_type="pt").images
    torch.testing.assert_close(frames[[0, 2]], ends, rtol=0, atol=1e-6)
    assert not torch.equal(frames[1, 1], frames[0, 1])


def test_class_interpolations_keep_the_noise(pipeline: GANImagePipeline) -> None:
    def generators() -> list[torch.Generator]:
        return [keyed_generator(seed) for seed in range(2)]

    starts = pipeline([0, 3], generator=generators(), output_type="pt").images
    ends = pipeline([1, 2], generator=generators(), output_type="pt").images
    frames = pipeline.interpolate_classes([0, 3], [1, 2], 3, generator=generators(), output_type="pt", batch_size=4).images
    frames = frames.unflatten(0, (2, 3))
    torch.testing.assert_close(frames[:, 0], starts, rtol=0, atol=1e-6)
    torch.testing.assert_close(frames[:, 2], ends, rtol=0, atol=1e-6)
    middle = pipeline([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], generator=generators(), output_type="pt").images
    torch.testing.assert_close(frames[:, 1], middle, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("interpolate_latents", {"class_labels": [0], "num_frames": 1}, "at least 2 frames, its two ends, got 1"),
        ("interpolate_latents", {"class_labels": [0], "path": "curved"}, "path must be one of spherical, linear, got 'curved'"),
        ("interpolate_latents", {"class_labels": [0], "generator": [torch.Generator()]}, "list of 1 for 1 rows; give two"),
        ("interpolate_latents", {"class_labels": [0], "truncation": 0}, "truncation must be a positive threshold"),
        ("interpolate_latents", {"class_labels": [0], "batch_size": 0}, "batch_size must be at least 1, got 0"),
        (
            "interpolate_classes",
            {"class_labels": [0], "end_class_labels": [1, 2]},
            "class_labels has 1 rows and end_class_labels 2",
        ),
        ("interpolate_classes", {"class_labels": [0], "end_class_labels": [4]}, "class label 4 is outside 0..3"),
    ],
)
def test_wrong_interpolations_are_told(pipeline: GANImagePipeline, method: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        getattr(pipeline, method)(**options)


def test_unknown_law(pipeline: GANImagePipeline) -> None:
    with pytest.raises(UserError, match="truncation_law must be one of truncated, scaled_truncated, scaled, got 'cut'"):
        GANImagePipeline(pipeline.generator, truncation_law="cut")
