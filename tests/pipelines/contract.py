"""What holds of every pipeline: a family's tests inherit it with a tiny pipeline and some of its options.

A class of tests derives from ``GenerationContract`` (or ``PipelineContract``), names its ``pipeline_class`` and makes one.
What is special to a family stays in its own file.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from generative.cli.main import main
from generative.core.errors import UserError
from generative.core.seeding import sample_generators
from pipelines import load_any_pipeline
from pipelines.base import ImagePipeline

ALL = (0, 1, 2, 3)  # four images, of which the second and the third differ in their noise alone
LABELS, COPIES = (0, 2, 2, 1), (0, 0, 1, 0)


def quiet(pipeline: Any) -> Any:
    """The pipeline, without a bar."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, order: Sequence[int] = ALL, **options: Any) -> Tensor:
    """(B, 3, H, W) float32 of some of the four images, in [0, 1]."""
    generators = sample_generators(0, LABELS, COPIES)
    options = {"generator": [generators[index] for index in order], "output_type": "pt"} | options
    images: Tensor = pipeline([LABELS[index] for index in order], **options).images
    return images


def networks_of(pipeline: Any) -> list[nn.Module]:
    """Networks of a pipeline, and of the pipelines that it is made of."""
    parts = pipeline.components.values()
    nested = [network for part in parts if isinstance(part, ImagePipeline) for network in networks_of(part)]
    return [part for part in parts if isinstance(part, nn.Module)] + nested


class PipelineContract(abc.ABC):
    """Tests of any pipeline that makes images.

    Attributes:
        pipeline_class: The class under test.
        options: Sets of options of a call; each gives other images.
        always: Options that every call gets beside them, to be quick.
        refused: Arguments of a call that are refused, and what the sentence says.
        tolerance: How far an image may move with its batch, in [0, 1].
    """

    pipeline_class: ClassVar[type]
    options: ClassVar[Sequence[dict[str, Any]]] = ({},)
    always: ClassVar[dict[str, Any]] = {}
    refused: ClassVar[Sequence[tuple[dict[str, Any], str]]] = ()
    refused_by_all: ClassVar[Sequence[tuple[dict[str, Any], str]]] = (
        ({"output_type": "jpeg"}, "output_type must be pil, np, pt or uint8, got 'jpeg'"),
    )
    tolerance: ClassVar[float] = 0.0

    @abc.abstractmethod
    def make(self) -> Any:
        """A new tiny pipeline, the same at every call; of three classes or more if it generates."""

    def prepare(self, pipeline: Any) -> Any:
        """What is done to a pipeline that was made or loaded, before images of it are compared."""
        return quiet(pipeline)

    @abc.abstractmethod
    def call(self, pipeline: Any, order: Sequence[int] = ALL, **options: Any) -> Any:
        """What the pipeline returns for some of the four images."""

    def draw(self, pipeline: Any, order: Sequence[int] = ALL, **options: Any) -> Tensor:
        """(B, 3, H, W) float32 of some of the four images, in [0, 1]."""
        images: Tensor = self.call(pipeline, order, output_type="pt", **options).images
        return images

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a test once for each set of options, or for each call that is refused."""
        if "some_options" in metafunc.fixturenames:
            metafunc.parametrize("some_options", self.options)
        if "sentence" in metafunc.fixturenames:
            metafunc.parametrize(("arguments", "sentence"), [*self.refused_by_all, *self.refused])

    @pytest.fixture(scope="class")
    @classmethod
    def pipeline(cls) -> Any:
        """A pipeline that no test changes."""
        contract = cls()
        return contract.prepare(contract.make())

    def test_an_image_does_not_depend_on_its_batch(self, pipeline: Any, some_options: dict[str, Any]) -> None:
        together = self.draw(pipeline, **some_options)
        assert together.std() > 0.01
        for order in ([0], [2], [2, 0, 3, 1], [3, 1]):
            images = self.draw(pipeline, order, **some_options)
            torch.testing.assert_close(images, together[order], rtol=0, atol=self.tolerance)
        assert (together[1] - together[2]).abs().max() > self.tolerance

    def test_options_matter(self, pipeline: Any) -> None:
        images = [self.draw(pipeline, **options) for options in self.options]
        assert all((a - b).abs().max() > self.tolerance for i, a in enumerate(images) for b in images[:i])

    def test_saving_and_loading_is_bit_equal(self, pipeline: Any, tmp_path: Path) -> None:
        pipeline.save_pretrained(tmp_path)
        loaded = self.prepare(load_any_pipeline(tmp_path))
        assert type(loaded) is self.pipeline_class and loaded.sampling_defaults == pipeline.sampling_defaults
        assert loaded.image_size == pipeline.image_size
        modules = networks_of(loaded)
        assert modules and not any(module.training for module in modules)
        for options in (self.options[0], self.options[-1]):
            assert torch.equal(self.draw(loaded, **options), self.draw(pipeline, **options))

    def test_output_types_agree(self, pipeline: Any) -> None:
        floats, array, levels, pictures = (
            self.call(pipeline, output_type=output_type).images for output_type in ("pt", "np", "uint8", "pil")
        )
        assert floats.shape == (4, 3, pipeline.image_size, pipeline.image_size) and floats.dtype == torch.float32
        assert 0 <= floats.min() and floats.max() <= 1
        np.testing.assert_array_equal(array, floats.permute(0, 2, 3, 1).numpy())
        assert levels.shape == floats.shape and levels.dtype == torch.uint8
        assert (levels - 255 * floats).abs().max() <= 0.501
        assert all(isinstance(picture, Image.Image) for picture in pictures)
        np.testing.assert_array_equal(np.stack([np.asarray(each) for each in pictures]), levels.permute(0, 2, 3, 1).numpy())

    def test_a_tuple_holds_the_same_images(self, pipeline: Any) -> None:
        result = self.call(pipeline, output_type="pt", return_dict=False)
        assert isinstance(result, tuple) and len(result) == 1 and torch.equal(result[0], self.draw(pipeline))

    def test_no_gradient_is_kept_and_global_randomness_is_untouched(self, pipeline: Any) -> None:
        before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
        images = self.draw(pipeline, **self.options[-1])
        assert not images.requires_grad
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (repr(np.random.get_state()), random.getstate()) == before[1:]

    def test_half_precision_runs(self) -> None:
        images = self.draw(self.prepare(self.make().to(torch.bfloat16)), **self.options[-1])
        assert images.dtype == torch.float32 and len(images) == 4 and images.isfinite().all()

    @abc.abstractmethod
    def call_with(self, pipeline: Any, **arguments: Any) -> Any:
        """Call with an image's arguments and others over them."""

    def test_wrong_arguments_are_refused_in_one_sentence(self, pipeline: Any, arguments: dict[str, Any], sentence: str) -> None:
        with pytest.raises(UserError, match=sentence) as caught:
            self.call_with(pipeline, **arguments)
        assert "\n" not in str(caught.value)


class GenerationContract(PipelineContract):
    """Tests of a pipeline that makes images of classes."""

    refused_by_all = (
        *PipelineContract.refused_by_all,
        ({"class_labels": [99]}, r"class label 99 is outside 0\.\.\d; this pipeline has \d classes"),
        ({"class_labels": [0, -1]}, r"class label -1 is outside 0\.\.\d"),
        ({"class_labels": []}, "class_labels is empty"),
        ({"class_labels": [0.5]}, "class_labels must be integers"),
        ({"class_labels": None}, "class_labels must be integers"),
        ({"class_labels": "cat"}, "class label 'cat' is a name, and the pipeline keeps no class names"),
        ({"class_labels": [0, 1], "generator": [torch.Generator()]}, "generator is a list of 1 for 2 images"),
    )

    def call(self, pipeline: Any, order: Sequence[int] = ALL, **options: Any) -> Any:
        generators = sample_generators(0, LABELS, COPIES)
        labels, picked = [LABELS[index] for index in order], [generators[index] for index in order]
        return pipeline(labels, generator=picked, **(self.always | options))

    def call_with(self, pipeline: Any, **arguments: Any) -> Any:
        return pipeline(**({"class_labels": [0]} | self.always | arguments))

    def test_seeds_decide(self, pipeline: Any) -> None:
        def seeded(seed: int | None, labels: Sequence[int] = LABELS) -> Tensor:
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            images: Tensor = pipeline(labels, generator=generator, output_type="pt", **self.always).images
            return images

        images = seeded(1)
        assert torch.equal(seeded(1), images) and not torch.equal(seeded(2), images)
        assert not torch.equal(seeded(None), seeded(None))
        # Drawn in order: an image does not depend on how many follow.
        torch.testing.assert_close(seeded(1, LABELS[:2]), images[:2], rtol=0, atol=self.tolerance)

    def test_classes_by_number_array_or_name(self) -> None:
        pipeline = self.prepare(self.make())
        pipeline.class_names = [f"class {label}" for label in range(pipeline.num_classes)]

        def draw(labels: Any) -> Tensor:
            generator = torch.Generator().manual_seed(0)
            images: Tensor = pipeline(labels, generator=generator, output_type="pt", **self.always).images
            return images

        expected = draw([2, 0])
        for same in (torch.tensor([2, 0]), np.array([2, 0], dtype=np.uint8), ["class 2", 0]):
            assert torch.equal(draw(same), expected)
        assert torch.equal(draw(2), draw("class 2"))
        assert not torch.equal(draw([0] * 8), draw([2] * 8))

    def test_saved_defaults_are_those_of_a_call_and_of_the_command_line(self, tmp_path: Path) -> None:
        plain, defaults = self.make(), self.always | self.options[1]
        plain.register_to_config(sampling_defaults=defaults)
        plain.save_pretrained(tmp_path / "run" / "pipeline")
        plain.register_to_config(sampling_defaults=None)
        pipeline = quiet(load_any_pipeline(tmp_path / "run"))
        labels = [label for label in range(pipeline.num_classes) for _ in range(2)]

        def draw(pipeline: Any, output_type: str = "pt", **options: Any) -> Tensor:
            generators = sample_generators(3, labels, [0, 1] * pipeline.num_classes)
            images: Tensor = pipeline(labels, generator=generators, output_type=output_type, **options).images
            return images

        expected = draw(pipeline, "uint8").permute(0, 2, 3, 1)
        arguments = ["--num-images-per-class", "2", "--seed", "3", "--output", str(tmp_path / "samples.npz"), "--device", "cpu"]
        assert main(["sample", str(tmp_path / "run"), *arguments]) == 0
        with np.load(tmp_path / "samples.npz", allow_pickle=False) as content:
            assert content["arr_1"].tolist() == labels
            assert (torch.from_numpy(content["arr_0"]).int() - expected.int()).abs().max() <= 1
        images, plain = draw(self.prepare(pipeline)), self.prepare(plain)
        assert torch.equal(images, draw(plain, **defaults)) and not torch.equal(images, draw(plain, **self.always))
        assert torch.equal(draw(pipeline, **self.options[-1]), draw(plain, **(defaults | self.options[-1])))
