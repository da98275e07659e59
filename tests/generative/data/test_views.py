"""Views: which there are, their pixels, and that the choice is a function of the position's word."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from generative.core.errors import UserError
from generative.data.sampler import position_words
from generative.data.views import Views, five_crops

WORDS = position_words(range(4000), seed=3)


@pytest.mark.parametrize(
    ("views", "count"), [(Views("plain"), 1), (Views("flip"), 2), (Views("ten-crop", (9,)), 10), (Views("ten-crop", (9, 10)), 20)]
)
def test_counts(views: Views, count: int) -> None:
    sources = [torch.zeros(3, 3, size, size, dtype=torch.uint8) for size in views.crop_sizes or (8,)]
    assert views.count == count
    assert views.make(sources, 8).shape == (3, count, 3, 8, 8)


def test_pixels_of_views() -> None:
    image = torch.arange(3 * 6 * 6, dtype=torch.uint8).reshape(1, 3, 6, 6)
    plain, mirrored = Views("flip").make([image], 6)[0]
    assert torch.equal(plain, image[0]) and torch.equal(mirrored, image[0].flip(-1))
    made = Views("ten-crop", (6,)).make([image], 4)[0]
    corners = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    for place, (top, left) in enumerate(corners):
        crop = image[0, :, top : top + 4, left : left + 4]
        assert torch.equal(made[2 * place], crop) and torch.equal(made[2 * place + 1], crop.flip(-1))


def test_ten_crops_are_those_of_torchvision() -> None:
    from torchvision.transforms.functional import ten_crop

    image = torch.randint(256, (1, 3, 10, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = {view.numpy().tobytes() for view in Views("ten-crop", (10,)).make([image], 8)[0]}
    theirs = {view.numpy().tobytes() for view in ten_crop(image[0], [8, 8])}
    assert ours == theirs and len(ours) == 10


def test_an_odd_surplus_is_cut_at_the_right_and_the_bottom() -> None:
    image = torch.arange(49).reshape(1, 1, 7, 7)
    assert torch.equal(five_crops(image, 4)[4], image[..., 1:5, 1:5])


def test_choice_follows_the_word() -> None:
    views = Views("ten-crop", (9,))
    chosen = views.choose(WORDS, flip=True)
    assert np.array_equal(chosen % 2, (WORDS >> np.uint64(63)).astype(np.int64))  # mirrored as ``flip_mask`` says
    counts = np.bincount(chosen, minlength=10)
    assert counts.min() > 320 and counts.max() < 480  # 400 each; 80 is four standard deviations
    assert np.array_equal(views.choose(WORDS[::-1], flip=True), chosen[::-1])
    unmirrored = views.choose(WORDS, flip=False)
    assert (unmirrored % 2 == 0).all() and np.array_equal(unmirrored, chosen - chosen % 2)
    assert (Views("plain").choose(WORDS, flip=False) == 0).all()
    assert set(Views("flip").choose(WORDS, flip=True)) == {0, 1}


def test_wrong_views() -> None:
    with pytest.raises(UserError, match="no mirrored views; encode with --views flip"):
        Views("plain").choose(WORDS, flip=True)
    with pytest.raises(UserError, match="one of plain, flip, ten-crop, got 'five'"):
        Views("five")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="crop sizes belong"):
        Views("ten-crop")
