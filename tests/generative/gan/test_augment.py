"""Differentiable augmentation: what it may change, what it must not, and that gradients pass."""

from __future__ import annotations

import pytest
import torch

from generative.core.seeding import keyed_generator
from generative.gan.augment import AUGMENTATIONS, augment


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_is_a_function_of_the_generator_and_passes_gradients(name: str) -> None:
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    first = augment(images, (name,), keyed_generator(1))
    torch.testing.assert_close(first, augment(images, (name,), keyed_generator(1)), rtol=0, atol=0)
    assert not torch.equal(first, augment(images, (name,), keyed_generator(2)))
    assert first.shape == images.shape
    first.sum().backward()
    assert images.grad.abs().sum() > 0


def test_empty_policy_changes_nothing() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert augment(images, (), keyed_generator(0)) is images


def test_translation_moves_whole_images_by_up_to_an_eighth() -> None:
    images = torch.zeros(64, 3, 16, 16)
    images[:, :, 5, 9] = torch.tensor([1.0, 2.0, 3.0])
    moved = augment(images, ("translation",), keyed_generator(0))
    places = moved[:, 0].nonzero()
    assert len(places) == 64  # one pixel each, none lost or doubled
    assert set((places[:, 1] - 5).tolist()) == set(range(-2, 3)) == set((places[:, 2] - 9).tolist())
    torch.testing.assert_close(moved.sum((2, 3)), torch.tensor([1.0, 2.0, 3.0]).expand(64, 3))


def test_translation_fills_with_zeros() -> None:
    moved = augment(torch.ones(32, 3, 8, 8), ("translation",), keyed_generator(0))
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    assert set(moved[:, 0].sum((1, 2)).tolist()) <= {64.0, 56.0, 49.0}


def test_cutout_makes_one_square_hole_at_most_half_the_size() -> None:
    images = augment(torch.ones(64, 3, 8, 8), ("cutout",), keyed_generator(0))
    for image in images[:, 0]:
        hole = (image == 0).nonzero()
        height, width = hole.amax(0) - hole.amin(0) + 1
        assert 1 <= height <= 4 and 1 <= width <= 4
        assert len(hole) == height * width
    assert (images == images[:, :1]).all()


def test_color_keeps_the_pattern_of_a_grey_image() -> None:
    torch.manual_seed(0)
    grey = torch.rand(8, 1, 6, 6).expand(8, 3, 6, 6)
    changed = augment(grey, ("color",), keyed_generator(0))
    torch.testing.assert_close(changed[:, 0], changed[:, 2])
    ratio = changed.std((1, 2, 3)) / grey.std((1, 2, 3))
    assert (ratio >= 0.5).all() and (ratio <= 1.5).all() and ratio.std() > 0.1
    shift = changed.mean((1, 2, 3)) - grey.mean((1, 2, 3))
    assert (shift.abs() <= 0.5).all() and shift.std() > 0.1
