"""Images of many aspect ratios: sizes within the budget, buckets, packing, and positions alone deciding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from generative.core.errors import UserError
from generative.core.images import images_to_uint8
from generative.data.aspect import AspectDataset, fit_size
from generative.data.digits import DigitsDataset
from generative.data.image_folder import ImageFolderDataset
from generative.data.sampler import PositionDataset, build_loader
from generative.layers.packing import to_images

SIDES = [(40, 24), (24, 40), (20, 20), (12, 8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    (root / "a").mkdir()
    for number, (width, height) in enumerate(SIDES):
        levels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(levels).save(root / "a" / f"{number}.png")
    return root


def batch(data: AspectDataset, positions: list[int], flip: bool = False) -> dict[str, Any]:
    return dict(PositionDataset(data, seed=4, horizontal_flip=flip).__getitems__(positions))


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((512, 512), (16, 16)), ((640, 320), (22, 11)), ((320, 640), (11, 22)), ((100, 60), (6, 3)), ((7, 9000), (1, 256))],
)
def test_sizes_keep_the_aspect_within_the_budget(size: tuple[int, int], tokens: tuple[int, int]) -> None:
    assert fit_size(*size, 16, 256) == tokens


def test_every_size_is_within_the_budget() -> None:
    generator = np.random.default_rng(0)
    for width, height in generator.integers(1, 900, (500, 2)).tolist():
        columns, rows = fit_size(width, height, 8, 50)
        assert 1 <= columns * rows <= 50 and columns >= 1 and rows >= 1


def test_small_images_come_whole_and_mirrored_where_asked(folder: Path) -> None:
    data = AspectDataset(ImageFolderDataset(folder, image_size=8), token_size=4, max_tokens=60)
    for flip in (False, True):
        found = batch(data, list(range(4)), flip)
        assert found["images"].shape == (4, 3, 60, 16) and found["packing"].shape[1] == 60
        mirrored = 0
        for row, (height, width) in enumerate(found["sizes"].tolist()):
            number = SIDES.index((4 * width, 4 * height))
            image = images_to_uint8(to_images(found["images"][row : row + 1], height, width, 4))[0]
            whole = torch.from_numpy(np.array(Image.open(folder / "a" / f"{number}.png"))).permute(2, 0, 1)
            mirrored += not torch.equal(image, whole)
            assert torch.equal(image, whole) or (flip and torch.equal(image, whole.flip(-1)))
            assert not found["images"][row, :, height * width :].any()
        assert (0 < mirrored) == flip


def test_buckets_are_the_nearest_ratio_or_a_random_one(folder: Path) -> None:
    images = ImageFolderDataset(folder, image_size=8)
    nearest = AspectDataset(images, 4, 24, aspect_ratios=[1.0, 2.0, 0.5])
    sizes = set(map(tuple, batch(nearest, list(range(4)))["sizes"].tolist()))
    assert sizes == {(3, 6), (6, 3), (4, 4), (1, 3)}  # 12x8 is nearer to 2 than to 1
    chosen = AspectDataset(images, 4, 24, aspect_ratios=[1.0, 2.0, 0.5], bucket="random", packed=False)
    found = batch(chosen, list(range(90)))
    assert "packing" not in found and len(set(map(tuple, found["sizes"].tolist()))) >= 6


def test_positions_alone_decide_and_single_images_stay_square(folder: Path) -> None:
    data = AspectDataset(ImageFolderDataset(folder, image_size=8), 4, 24, aspect_ratios=[1.0, 2.0], bucket="random")
    whole = batch(data, list(range(8)), flip=True)
    parts = [batch(data, list(range(start, start + 4)), flip=True) for start in (0, 4)]
    assert torch.equal(whole["images"], torch.cat([part["images"] for part in parts]))
    loader = build_loader(data, seed=4, batch_size=8, num_slots=1, rank=0, world_size=1, horizontal_flip=True)
    assert torch.equal(next(iter(loader))["images"], whole["images"])
    assert data.image(0).shape == (3, 8, 8) and data.images([0, 1]).shape == data.images_uint8()[:2].shape


def test_nothing_is_packed_where_that_saves_no_rows() -> None:
    full = AspectDataset(DigitsDataset(split="test", image_size=8), token_size=2, max_tokens=16)
    assert "packing" not in batch(full, [0, 1, 2])


def test_images_without_files_are_their_squares() -> None:
    data = AspectDataset(DigitsDataset(split="test", image_size=8), token_size=2, max_tokens=8, aspect_ratios=[2.0])
    assert batch(data, [0, 1])["sizes"].tolist() == [[2, 4], [2, 4]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_size": 0}, "token_size must be at least 1, got 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"aspect_ratios": []}, "aspect_ratios must be numbers between 1/16 and 16"),
        ({"aspect_ratios": [40.0]}, "aspect_ratios must be numbers between 1/16 and 16"),
        ({"bucket": "best"}, "bucket must be nearest or random, got 'best'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AspectDataset(DigitsDataset(split="test", image_size=8), **({"token_size": 2, "max_tokens": 16} | options))
