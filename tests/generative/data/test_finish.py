"""Loaders may hand on bytes: finished on the training device they are the examples that a loader finishes itself, bit by bit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from generative.core.images import images_to_float
from generative.data.aspect import AspectDataset
from generative.data.base import ImageDataset
from generative.data.digits import DigitsDataset
from generative.data.finish import finish_batch
from generative.data.random_crop import RandomCropDataset
from generative.data.sampler import build_loader, flip_mask


def batches(images: ImageDataset, flip: bool, **options: Any) -> list[Any]:
    loader = build_loader(images, seed=2, batch_size=12, num_slots=1, rank=0, world_size=1, horizontal_flip=flip, **options)
    return list(itertools.islice(loader, 3))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_bytes_become_what_a_loader_finishes(flip: bool, workers: int) -> None:
    images = DigitsDataset("test", image_size=12)
    finished, raw = batches(images, flip), batches(images, flip, finish=False, num_workers=workers)
    for number, (ours, theirs) in enumerate(zip(raw, finished, strict=True)):
        assert ours["images"].dtype == torch.uint8 and theirs["images"].dtype == torch.float32
        assert ("mirrored" in ours) == flip and "mirrored" not in theirs
        if flip:
            assert ours["mirrored"].tolist() == flip_mask(range(12 * number, 12 * number + 12), 2).tolist()
        done = finish_batch(ours)
        assert set(done) == set(theirs) and all(torch.equal(done[name], theirs[name]) for name in theirs)  # type: ignore[literal-required]


def test_crops_too() -> None:
    images = RandomCropDataset(DigitsDataset("test", image_size=12), 14)
    for ours, theirs in zip(batches(images, True, finish=False), batches(images, True), strict=True):
        assert ours["images"].dtype == torch.uint8 and torch.equal(finish_batch(ours)["images"], theirs["images"])


def test_what_has_no_bytes_stays_as_it_is() -> None:
    for batch in batches(AspectDataset(DigitsDataset("test", image_size=8), 2, 16), True, finish=False):
        assert finish_batch(batch) is batch and batch["images"].dtype == torch.float32
    tokens: Any = {"tokens": torch.zeros(2, 3, dtype=torch.int64), "class_labels": torch.zeros(2, dtype=torch.int64)}
    assert finish_batch(tokens) is tokens


def test_the_flip_is_of_the_width() -> None:
    images = torch.arange(2 * 3 * 2 * 4, dtype=torch.uint8).view(2, 3, 2, 4)
    batch: Any = {"images": images, "mirrored": torch.tensor([True, False]), "class_labels": torch.zeros(2, dtype=torch.int64)}
    finished = finish_batch(batch)["images"]
    assert torch.equal(finished[0], images_to_float(images[0].flip(-1))) and torch.equal(finished[1], images_to_float(images[1]))
    assert "mirrored" in batch and batch["images"] is images
