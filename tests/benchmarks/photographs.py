"""Real images to compare tools on: crops of the photographs that scikit-learn packages, or of a parquet of images."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

#: (height, width) of crops: smaller and larger than Inception's 299 px, square and not.
MIXED_SIZES = ((64, 64), (256, 256), (200, 320), (427, 300), (299, 299), (90, 120))
#: Radius in pixels of a blur that tells the second set of a pair from the first, as poor samples differ from reals.
BLUR = 3.0


def crops(
    count: int, seed: int, sizes: Sequence[tuple[int, int]] = MIXED_SIZES, blur: float = 0.0, gain: float = 1.0
) -> Iterator[Image.Image]:
    """Yield random crops of scikit-learn's two photographs (427 x 640).

    Args:
        count: How many.
        seed: Of places and flips.
        sizes: (height, width) of the crops, in turn.
        blur: Radius of a Gaussian blur in pixels.
        gain: Factor of all values.
    """
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    rng = np.random.default_rng(seed)
    for index in range(count):
        source = photographs[index % len(photographs)]
        height, width = sizes[index % len(sizes)]
        top = int(rng.integers(source.shape[0] - height + 1))
        left = int(rng.integers(source.shape[1] - width + 1))
        pixels = source[top : top + height, left : left + width]
        image = Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels))
        image = image.filter(ImageFilter.GaussianBlur(blur)) if blur else image
        yield ImageEnhance.Brightness(image).enhance(gain) if gain != 1.0 else image


def parquet_images(path: Path, count: int, start: int, size: int) -> Iterator[Image.Image]:
    """Yield ``count`` images of a Hugging Face parquet from row ``start`` on, brought to ``size`` px."""
    import pyarrow.parquet as pq

    column = pq.read_table(path, columns=["image"]).column("image")
    if start + count > len(column):
        raise ValueError(f"{path} holds {len(column)} images, {start + count} are needed: ask for fewer with --images.")
    for index in range(start, start + count):
        image = Image.open(io.BytesIO(column[index].as_py()["bytes"])).convert("RGB")
        yield image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def write_pngs(folder: Path, images: Iterator[Image.Image]) -> Path:
    """Write images as PNG files in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        image.save(folder / f"{index:05d}.png")
    return folder
