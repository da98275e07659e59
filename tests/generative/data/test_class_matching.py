"""Held-out images take the training data's labels, by the names of their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from generative.core.errors import UserError
from generative.core.evaluation import Evaluator
from generative.data.base import ImageDataset
from generative.data.class_matching import match_classes
from generative.data.digits import DigitsDataset
from generative.data.image_folder import ImageFolderDataset


class Colours(ImageDataset):
    """Flat images of a few classes, each of its class's brightness."""

    def __init__(self, classes: list[int], num_classes: int, names: list[str] = []) -> None:  # noqa: B006
        super().__init__(torch.tensor(classes), num_classes, 8, "colours", names)

    def load_image(self, index: int) -> torch.Tensor:
        return torch.full((3, 8, 8), 10 * int(self.labels[index]), dtype=torch.uint8)

    def source_name(self, index: int) -> str:
        return f"colour {index}"


@pytest.mark.parametrize(
    ("labels", "names", "matched", "said"),
    [
        ([0, 1, 2, 2], ["cat", "dog", "owl"], [0, 1, 2, 2], ""),
        ([0, 1, 2, 2], ["owl", "cat", "dog"], [2, 0, 1, 1], ""),
        ([0, 1, 1], ["dog", "owl"], [1, 2, 2], "no images of 1 of the 3 classes: cat"),
        ([1, 1], ["bee", "owl"], [2, 2], "no images of 2 of the 3 classes: cat, dog"),  # no image of the unknown class
        ([0, 1, 2], [], [0, 1, 2], "matched to those of the training data by number"),
    ],
)
def test_labels_follow_the_names(labels: list[int], names: list[str], matched: list[int], said: str) -> None:
    training = Colours([0, 1, 2], 3, ["cat", "dog", "owl"])
    held_out = Colours(labels, len(names) or 3, names)
    notices = " ".join(match_classes(held_out, training, "evaluation data"))
    assert held_out.labels.tolist() == matched and said in notices and bool(said) == bool(notices)
    assert held_out.class_names == training.class_names and held_out.num_classes == 3
    assert match_classes(held_out, training, "evaluation data") == [n for n in [notices] if "no images" in n]


@pytest.mark.parametrize(
    ("names", "training_names", "message"),
    [
        (
            ["cat", "dog", "lynx"],
            ["cat", "dog", "owl"],
            "that the training data have not: lynx; they have cat, dog, lynx, the tr",
        ),
        ([], ["cat", "dog"], "the evaluation data have 3 classes and the training data 2, and without names"),
        (["crane", "owl", "ant"], ["crane", "crane", "owl", "ant"], "several classes of the training data are called crane"),
    ],
)
def test_what_cannot_be_matched(names: list[str], training_names: list[str], message: str) -> None:
    training = Colours(list(range(len(training_names))), len(training_names), training_names)
    with pytest.raises(UserError, match=message):
        match_classes(Colours([0, 1, 2], 3, names), training, "evaluation data")


def write_digits(root: Path, digits: DigitsDataset, names: dict[int, str]) -> ImageFolderDataset:
    for index, label in enumerate(digits.labels.tolist()):
        if label in names:
            (root / names[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.image(index).permute(1, 2, 0).numpy()).save(root / names[label] / f"{index}.png")
    return ImageFolderDataset(root, 8, cache=True)


def test_accuracy_survives_a_class_that_is_missing(tmp_path: Path) -> None:
    """Held-out folders without the first class: with shifted labels nearly every image would count as wrong."""
    training = write_digits(tmp_path / "train", DigitsDataset("train"), {0: "zero", 1: "one", 2: "two"})
    held_out = write_digits(tmp_path / "test", DigitsDataset("test"), {0: "zero", 2: "two"})
    evaluator = Evaluator(held_out, input_size=32, extractor="efficientnet-lite0", num_samples=20, classifier_data=training)
    assert evaluator.match_classes(training) == ["the evaluation data have no images of 1 of the 3 classes: one"]
    scores: Any = evaluator.score_real(training, Accelerator(cpu=True)).scores
    assert scores["classification_accuracy"] > 0.95
