from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metrics.scores.classification import LabelClassifier, grey_pixels

pytest.importorskip("sklearn")


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    return grey[:, None].repeat(1, 3, 1, 1), torch.from_numpy(digits.target).long()


def test_reads_held_out_digits_and_not_noise() -> None:
    images, labels = _digits()
    classifier = LabelClassifier().fit(images[:900], labels[:900])
    assert classifier.accuracy(images[900:], labels[900:]) > 0.95
    assert classifier.accuracy(images[900:], (labels[900:] + 1) % 10) < 0.05
    noise = torch.randint(0, 256, images[900:].shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert classifier.accuracy(noise, labels[900:]) < 0.3
    assert classifier.description == "SVM (RBF, gamma 0.001) on grey pixels of 900 real training images"


def test_grey_pixels_are_means_over_channels_up_to_16() -> None:
    image = torch.tensor([0, 255, 255], dtype=torch.uint8)[None, :, None, None].repeat(1, 1, 1, 2)
    assert grey_pixels(image).tolist() == [[pytest.approx(32 / 3)] * 2]


def test_refuses_to_score_before_it_is_fitted_or_without_labels() -> None:
    images, labels = _digits()
    with pytest.raises(ValueError, match="knows no classes yet"):
        LabelClassifier().accuracy(images, labels)
    with pytest.raises(ValueError, match="one label per image and at least one, got 5 and 4"):
        LabelClassifier().fit(images[:50], labels[:50]).accuracy(images[:5], labels[:4])
