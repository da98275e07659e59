"""What all pipelines share: labels, noise per image, output types, safe loading."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import pipelines
from generative.cli.option_flags import option_doc
from generative.core.errors import UserError
from pipelines import PIPELINES, GANImagePipeline, find_pipeline_folder, load_pipeline, options_classes
from pipelines.base import ImageGenerationPipeline, read_model_index


@pytest.fixture
def pipeline(toy: ModuleType) -> Any:
    torch.manual_seed(0)
    return toy.ToyPipeline(toy.ToyNet().eval())


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(2, [2]), ([0, 2], [0, 2]), (torch.tensor([1, 1]), [1, 1]), (np.array([2], dtype=np.uint8), [2]), ((0,), [0])],
)
def test_class_labels(pipeline: Any, labels: Any, expected: list[int]) -> None:
    result = pipeline.check_class_labels(labels)
    assert result.tolist() == expected and result.dtype == torch.int64 and result.dim() == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3, r"class label 3 is outside 0\.\.2; this pipeline has 3 classes"),
        ([0, -1], r"class label -1 is outside 0\.\.2"),
        ([], "class_labels is empty"),
        ([1.0], "class_labels must be integers, got torch.float32"),
        ([True], "class_labels must be integers, got torch.bool"),
        ("cat", r"class label .cat. is a name, and the pipeline keeps no class names; give numbers in 0\.\.2"),
        ([None], "class_labels must be integers"),
        ([2**70], "class_labels must be integers"),
        (None, "class_labels must be integers"),
    ],
)
def test_wrong_class_labels(pipeline: Any, labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        pipeline(class_labels=labels)
    assert "\n" not in str(caught.value)


def test_postprocessing_clips(pipeline: Any) -> None:
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0, 5.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    (levels,) = pipeline.postprocess(images, "uint8", return_dict=False)
    assert levels[0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    (floats,) = pipeline.postprocess(images, "pt", return_dict=False)
    assert floats[0, 0, 0].tolist() == [0, 0, 0.5, 1, 1]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    from generative.gan.sagan import SAGANGenerator

    torch.manual_seed(0)
    network = SAGANGenerator(resolution=8, channels=4, z_dim=4, num_classes=3, attention_resolutions=()).eval()
    GANImagePipeline(network).save_pretrained(tmp_path / "run" / "pipeline")
    return tmp_path / "run"


def test_a_run_folder_or_a_pipeline_folder(saved: Path) -> None:
    assert find_pipeline_folder(saved) == find_pipeline_folder(saved / "pipeline") == saved / "pipeline"
    one, other = load_pipeline(saved), GANImagePipeline.from_pretrained(saved / "pipeline")
    assert type(one) is type(other) is GANImagePipeline
    for ours, theirs in zip(one.generator.parameters(), other.generator.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not one.generator.training


def edit_index(saved: Path, **values: Any) -> None:
    path = saved / "pipeline" / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_another_pipeline_class_is_refused(saved: Path) -> None:
    from pipelines import DiffusionImagePipeline

    with pytest.raises(UserError, match="holds a GANImagePipeline, not a DiffusionImagePipeline"):
        DiffusionImagePipeline.from_pretrained(saved / "pipeline")
    edit_index(saved, _class_name="SomethingElse")
    with pytest.raises(UserError, match="holds a SomethingElse; this project loads"):
        load_pipeline(saved)


@pytest.mark.parametrize("library", ["evil_module", "evil.generative", "os", "transformers"])
def test_components_of_foreign_libraries_are_not_imported(saved: Path, library: str) -> None:
    edit_index(saved, generator=[library, "Net"])
    with pytest.raises(UserError, match=f"component 'generator' of library '{library}'"):
        load_pipeline(saved)
    assert "evil_module" not in sys.modules


def test_pickled_weights_are_not_read(saved: Path) -> None:
    """diffusers would fall back to them where the safetensors file is missing."""
    folder = saved / "pipeline" / "generator"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded, a file of it is missing or damaged") as caught:
        load_pipeline(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "\x00"])
def test_a_damaged_index(saved: Path, content: str) -> None:
    (saved / "pipeline" / "model_index.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        read_model_index(saved / "pipeline")


@pytest.mark.parametrize("entry", ["x", [], [None], ["generative"], [1, 2], {"a": 1}])
def test_a_damaged_component(saved: Path, entry: Any) -> None:
    edit_index(saved, generator=entry)
    with pytest.raises(UserError):
        load_pipeline(saved)


@pytest.mark.parametrize("name", sorted(set(PIPELINES) - {"NoisedClassifierPipeline", "RepresentationPipeline"}))  # no images
def test_every_pipeline_keeps_the_contract(name: str) -> None:
    sources = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    kept = {each for source in sources for each in re.findall(r"^    pipeline_class = (\w+)$", source, re.MULTILINE)}
    assert name in kept, f"no class of tests derives from the contract of contract.py with pipeline_class = {name}"


def test_the_base_class_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ImageGenerationPipeline()  # type: ignore[abstract]


def test_every_pipeline_that_samples_names_its_options() -> None:
    generating = [each for each in map(pipelines.__getattr__, PIPELINES) if issubclass(each, ImageGenerationPipeline)]
    assert {each.options_class for each in generating} == set(options_classes().values())
    for name, options in options_classes().items():
        assert getattr(pipelines, name).options_class is options and all(option_doc(options, each) for each in options.names())


def test_options_that_a_pipeline_has_not_are_named(pipeline: Any) -> None:
    pipeline.check_options()
    with pytest.raises(UserError, match="ToyPipeline has no option guidance_scale; it takes truncation"):
        pipeline.check_options(guidance_scale=2.0)
