"""Names of classes in pipelines: kept when saved, and taken in place of labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import tiny_gan

from generative.core.class_names import find_label
from generative.core.errors import UserError
from pipelines import GANImagePipeline, load_pipeline
from pipelines.base import read_model_index


@pytest.fixture
def pipeline() -> GANImagePipeline:
    return tiny_gan()


def test_names_are_saved_and_loaded(pipeline: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert pipeline.class_names is None
    pipeline.save_pretrained(tmp_path / "old")
    assert load_pipeline(tmp_path / "old").class_names is None
    pipeline.class_names = ["zero", "cat", "2"]
    pipeline.save_pretrained(tmp_path / "new")
    loaded = load_pipeline(tmp_path / "new")
    assert loaded.class_names == ["zero", "cat", "2"] and not caplog.records
    loaded.save_pretrained(tmp_path / "again")
    assert load_pipeline(tmp_path / "again").class_names == ["zero", "cat", "2"]


@pytest.mark.parametrize("names", [["a", 1], {"0": "a"}, "ab", 3])
def test_damaged_names(pipeline: Any, tmp_path: Path, names: Any) -> None:
    pipeline.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_names": names}))
    with pytest.raises(UserError, match="damaged"):
        read_model_index(tmp_path)


def test_classes_by_name(pipeline: Any) -> None:
    pipeline.class_names = ["zero", "cat", "dog"]
    assert pipeline.check_class_labels(["dog", 0, "1", "cat"]).tolist() == [2, 0, 1, 1]
    assert pipeline.check_class_labels("cat").tolist() == [1]
    by_name, by_label = (
        pipeline(labels, generator=torch.Generator().manual_seed(0), output_type="pt").images for labels in ("dog", 2)
    )
    assert torch.equal(by_name, by_label)
    with pytest.raises(UserError, match="there is no class 'dgo'; did you mean dog"):
        pipeline(["dgo"])


@pytest.mark.parametrize(
    ("text", "label"),
    [("cat", 0), ("2", 2), ("7", 1), ("name=7", 1), ("label=1", 1), ("5", 5), ("-1", -1), ("name=label=1", 3)],
)
def test_what_a_text_stands_for(text: str, label: int) -> None:
    assert find_label(text, ["cat", "7", "2", "label=1"], 4) == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "'1' is the name of class 0 and the number of class 1; write name=1 or label=1"),
        ("crane", "'crane' is the name of classes 2, 3"),
        ("name=3", "there is no class '3'; there are 1, Katze, crane, crane"),
        ("katzen", "did you mean Katze"),
        ("label=cat", "must be label=NUMBER"),
    ],
)
def test_texts_that_name_no_single_class(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_label(text, ["1", "Katze", "crane", "crane"], 4)
