"""Differentiable augmentation: what it may change, what it must not, and that gradients pass."""

from __future__ import annotations

import pytest
import torch

from generative.core.seeding import keyed_generator
from generative.gan.augment import (
    AUGMENTATIONS,
    SMALL_CUTOUT_RATIO,
    ColorDraws,
    PlaceDraws,
    apply_color,
    apply_cutout,
    apply_translation,
    augment,
    draw_cutout,
)


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


def test_given_draws_move_by_rows_then_columns() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    moved = apply_translation(images, PlaceDraws(torch.tensor([[1]]), torch.tensor([[-2]])))
    expected = torch.tensor([[0, 0, 4, 5], [0, 0, 8, 9], [0, 0, 12, 13], [0, 0, 0, 0]])  # out[r, c] = in[r + 1, c - 2]
    assert torch.equal(moved[0, 0], expected.float())


def test_given_draws_cut_where_they_say() -> None:
    images = torch.ones(3, 1, 10, 10)
    draws = PlaceDraws(torch.tensor([[5], [0], [10]]), torch.tensor([[2], [9], [10]]))
    holes = apply_cutout(images, draws, SMALL_CUTOUT_RATIO)[:, 0] == 0
    # A hole of 2 pixels from centre - 1, what lies beyond an edge on the edge.
    assert [place.tolist() for place in holes[0].nonzero()] == [[4, 1], [4, 2], [5, 1], [5, 2]]
    assert [place.tolist() for place in holes[1].nonzero()] == [[0, 8], [0, 9]]
    assert [place.tolist() for place in holes[2].nonzero()] == [[9, 9]]


def test_given_draws_colour_as_the_paper_says() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 4, 4)
    same = ColorDraws(*(torch.full((2, 1, 1, 1), value) for value in (0.5, 0.5, 0.5)))
    torch.testing.assert_close(apply_color(images, same), images)
    grey = apply_color(images, same._replace(saturation=torch.zeros(2, 1, 1, 1)))
    torch.testing.assert_close(grey, images.mean(1, keepdim=True).expand_as(images))
    brighter = apply_color(images, same._replace(brightness=torch.ones(2, 1, 1, 1)))
    torch.testing.assert_close(brighter, images + 0.5)
    flat = apply_color(images, same._replace(contrast=torch.zeros(2, 1, 1, 1)))
    torch.testing.assert_close(flat.std((1, 2, 3)), images.std((1, 2, 3)) / 2)


def test_small_holes_are_a_fifth_of_the_size() -> None:
    images = augment(torch.ones(256, 3, 20, 20), ("small_cutout",), keyed_generator(0))
    counts = (images[:, 0] == 0).sum((1, 2))
    assert counts.max() == 16 and counts.min() >= 1
    assert (counts == 16).float().mean() > 0.5
    rows = draw_cutout(torch.ones(2000, 3, 10, 15), keyed_generator(0), SMALL_CUTOUT_RATIO)
    assert set(rows.rows.flatten().tolist()) == set(range(11))  # an even hole: its centre may lie on either outer edge
    assert set(rows.columns.flatten().tolist()) == set(range(15))
