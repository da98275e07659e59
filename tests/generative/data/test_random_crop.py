"""Random crops: functions of the position alone, cut from the whole picture, and with the geometry of the official recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from generative.core.errors import UserError
from generative.core.images import images_to_uint8
from generative.data.digits import DigitsDataset
from generative.data.image_folder import ImageFolderDataset
from generative.data.parquet import ParquetDataset
from generative.data.random_crop import RandomCropDataset
from generative.data.sampler import PositionDataset, build_loader, position_words
from generative.data.transforms import random_crop, short_side_size

WIDTH, HEIGHT = 40, 24


def gradient() -> Image.Image:
    """Red tells a pixel's column, green its row."""
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return Image.fromarray(np.stack([columns * 6, rows * 10, columns * 0], axis=-1).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(3):
            gradient().save(root / name / f"{number}.png")
    return root


def examples(data: RandomCropDataset, positions: list[int], flip: bool = False) -> torch.Tensor:
    return images_to_uint8(PositionDataset(data, seed=4, horizontal_flip=flip).__getitems__(positions)["images"])


def test_crops_lie_anywhere_in_the_whole_picture(folder: Path) -> None:
    data = RandomCropDataset(ImageFolderDataset(folder, image_size=16), resize_size=HEIGHT)
    crops = examples(data, list(range(600)))
    assert crops.shape == (600, 3, 16, 16)
    left, top = crops[:, 0, 0, 0] // 6, crops[:, 1, 0, 0] // 10
    for crop, x, y in zip(crops[:50], left, top, strict=False):
        expected = torch.from_numpy(np.array(gradient().crop((int(x), int(y), int(x) + 16, int(y) + 16)))).permute(2, 0, 1)
        assert torch.equal(crop, expected)
    for values, number in ((left, WIDTH - 16 + 1), (top, HEIGHT - 16 + 1)):
        counts = torch.bincount(values.long(), minlength=number)
        assert len(counts) == number and int(counts.min()) > 0  # both ends are reached
        expected_count = 600 / number
        assert float(((counts - expected_count) ** 2 / expected_count).sum()) < number + 5 * (2 * number) ** 0.5  # chi squared


def test_positions_alone_decide(folder: Path) -> None:
    data = RandomCropDataset(ImageFolderDataset(folder, image_size=16), resize_size=20)
    together = examples(data, list(range(20)), flip=True)
    alone = torch.cat([examples(data, [position], flip=True) for position in reversed(range(20))]).flip(0)
    assert torch.equal(together, alone)
    kwargs: dict[str, Any] = {"seed": 4, "batch_size": 10, "num_slots": 1, "rank": 0, "world_size": 1, "horizontal_flip": True}
    batches = iter(build_loader(data, num_workers=1, **kwargs))
    assert torch.equal(images_to_uint8(torch.cat([next(batches)["images"] for _ in range(2)])), together)
    unmirrored = examples(data, list(range(20)))
    mirrored = torch.from_numpy((position_words(range(20), seed=4) >> np.uint64(63)).astype(bool))
    assert torch.equal(together, torch.where(mirrored[:, None, None, None], unmirrored.flip(-1), unmirrored))


@pytest.mark.parametrize("interpolation", ["lanczos", "bilinear"])
@pytest.mark.parametrize("size", [(40, 24), (24, 41), (33, 33), (500, 375)])
def test_resizing_is_that_of_torchvision(interpolation: str, size: tuple[int, int]) -> None:
    """VAR and Open-MAGVIT2 resize with it."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    from generative.data.random_crop import FILTERS

    picture = gradient().resize(size)
    theirs = resize(picture, [18], InterpolationMode(interpolation))
    ours = picture.resize(short_side_size(picture, 18), FILTERS[interpolation])
    assert ours.size == theirs.size and ours.tobytes() == theirs.tobytes()


def test_drawn_short_sides_are_those_of_adm(folder: Path) -> None:
    data = RandomCropDataset(ImageFolderDataset(folder, image_size=16), crop_fractions=(0.7, 1.0))
    word = 123456789
    generator = torch.Generator().manual_seed(word)
    expected = np.array(random_crop(gradient(), 16, generator, 0.7, 1.0))
    assert torch.equal(data.crop(0, word), torch.from_numpy(expected).permute(2, 0, 1))


def test_single_images_stay_centre_crops(folder: Path) -> None:
    images = ImageFolderDataset(folder, image_size=16)
    data = RandomCropDataset(images, resize_size=18)
    assert torch.equal(data.images_uint8(), images.images_uint8())
    assert torch.equal(data.image(2), images.image(2)) and torch.equal(data.images([1, 4]), images.images([1, 4]))
    assert (
        len(data) == 6 and data.num_classes == 2 and data.class_names == ["a", "b"] and data.labels.tolist() == [0] * 3 + [1] * 3
    )
    others = [images, RandomCropDataset(images), RandomCropDataset(images, 18, "bilinear"), RandomCropDataset(images, 19)]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_other_kinds_of_data(folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.rglob("*.png"))
    table = pa.table({"image": [path.read_bytes() for path in files], "label": [0, 0, 0, 1, 1, 1]})
    pq.write_table(table, tmp_path / "train-0.parquet")
    rows = RandomCropDataset(ParquetDataset(tmp_path / "train-0.parquet", image_size=16), resize_size=20)
    paths = RandomCropDataset(ImageFolderDataset(folder, image_size=16), resize_size=20)
    assert torch.equal(examples(rows, list(range(8))), examples(paths, list(range(8))))
    digits = RandomCropDataset(DigitsDataset(), resize_size=9)  # no files: from the square images
    assert examples(digits, [0, 1]).shape == (2, 3, 8, 8)


def test_wrong_arguments(folder: Path) -> None:
    images = ImageFolderDataset(folder, image_size=16)
    with pytest.raises(UserError, match=r"resize_size must be at least image_size of the images \(16\), got 15"):
        RandomCropDataset(images, resize_size=15)
    with pytest.raises(UserError, match="interpolation must be one of lanczos, bicubic, bilinear, got 'box'"):
        RandomCropDataset(images, resize_size=18, interpolation="box")  # type: ignore[arg-type]
    for fractions in ((0.0, 1.0), (0.9, 0.8), (0.5, 1.1)):
        with pytest.raises(UserError, match="crop_fractions must satisfy"):
            RandomCropDataset(images, crop_fractions=fractions)
