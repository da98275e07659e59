from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metrics.scores import classification_accuracy as module
from metrics.scores.classification_accuracy import classification_accuracy_score
from metrics.sources.base import ImageBatch, ImageSource

_SIZE = 16
_OPTIONS = {"architecture": "resnet18", "image_size": _SIZE, "epochs": 6, "batch_size": 16, "lr": 0.03}


class _Source(ImageSource):
    kind = "list"
    has_labels = True

    def __init__(self, images: list[Tensor], labels: list[str] | None, gap: int | None = None) -> None:
        super().__init__(Path("list"))
        self.images, self.labels, self.gap = images, labels, gap
        self.has_labels = labels is not None

    def __len__(self) -> int:
        return len(self.images)

    def identity(self) -> str:
        return "list"

    def batches(self, batch_size: int, num_workers: int = 1, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        places = [place for place in range(len(self)) if place != self.gap]
        for first in range(0, len(places), batch_size):
            chosen = places[first : first + batch_size]
            labels = None if self.labels is None else [self.labels[place] for place in chosen]
            yield ImageBatch(chosen, [self.images[place] for place in chosen], labels)


def _images(count: int, seed: int, names: tuple[str, str] = ("dark", "light")) -> tuple[list[Tensor], list[str]]:
    """Two classes of noise of other brightness, in mixed sizes."""
    generator = torch.Generator().manual_seed(seed)
    images = [
        torch.randint(20, 90, (3, 18 + index % 5, 20), generator=generator, dtype=torch.uint8) + 120 * (index % 2)
        for index in range(count)
    ]
    return images, [names[index % 2] for index in range(count)]


def test_learns_what_can_be_learned_and_scores_by_name() -> None:
    state = torch.random.get_rng_state()
    train, test = _Source(*_images(64, 0), gap=3), _Source(*_images(20, 1))
    scores = classification_accuracy_score(train, test, **_OPTIONS)
    assert scores["cas_top1"] > 0.9
    assert scores["cas_top5"] == 1.0, "two classes"
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    images, labels = _images(20, 1)
    swapped = _Source(images, ["light" if label == "dark" else "dark" for label in labels])
    assert classification_accuracy_score(train, swapped, **_OPTIONS)["cas_top1"] == pytest.approx(1 - scores["cas_top1"])


def test_the_seed_fixes_weights_and_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def keep(network: torch.nn.Module, *rest: object) -> dict[str, float]:
        seen.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
        return {}

    monkeypatch.setattr(module, "_accuracy", keep)
    source = _Source(*_images(20, 0))
    for seed in (1, 1, 2):
        classification_accuracy_score(source, source, **{**_OPTIONS, "epochs": 1}, seed=seed)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_top5_counts_the_five_most_probable() -> None:
    class Ranked(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return -torch.arange(8.0).repeat(len(images), 1)

    data = module._LabelledImages(torch.zeros(8, 3, 4, 4, dtype=torch.uint8).numpy(), torch.arange(8))
    assert module._accuracy(Ranked(), data, 4, 3, torch.device("cpu")) == {"cas_top1": 1 / 8, "cas_top5": 5 / 8}


def test_crops_and_flips_stay_inside_the_image() -> None:
    row = torch.arange(10, dtype=torch.uint8).repeat(200, 3, 10, 1)
    result = (module._augment(row, 6, torch.Generator().manual_seed(0)) + 1.0) * 127.5
    first, last = result[:, 0, 0, 0].round(), result[:, 0, 0, -1].round()
    assert result.shape == (200, 3, 6, 6)
    assert set((last - first).tolist()) == {5.0, -5.0}
    assert set(torch.minimum(first, last).tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_refuses_what_can_not_be_scored() -> None:
    source = _Source(*_images(8, 0))
    with pytest.raises(ValueError, match="2 classes and list 2, light only in list and bright only in list"):
        classification_accuracy_score(source, _Source(*_images(8, 1, ("dark", "bright"))), **_OPTIONS)
    with pytest.raises(ValueError, match="train images at list have no labels"):
        classification_accuracy_score(_Source(_images(8, 0)[0], None), source, **_OPTIONS)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        dark = _Source(*_images(8, 0, ("dark", "dark")))
        classification_accuracy_score(dark, dark, **_OPTIONS)
    with pytest.raises(ValueError, match="architecture 'resnet51' is no torchvision classifier"):
        classification_accuracy_score(source, source, "resnet51")
    for name, value, least in (("batch_size", 1, 2), ("epochs", 0, 1), ("image_size", 0, 1)):
        with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {value}"):
            classification_accuracy_score(source, source, **{**_OPTIONS, name: value})
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        classification_accuracy_score(source, source, **{**_OPTIONS, "lr": 0.0})
