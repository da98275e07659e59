"""Images per second of training's loader: prepared shards against torchvision's ImageFolder with ADM's crop, one thread.

    python tests/benchmarks/data_loading.py                          # crops of scikit-learn's photographs
    python tests/benchmarks/data_loading.py --parquet images.parquet --images 1000 --turns 5

The originals are JPEG files of 500x375 pixels, ImageNet's usual size (a parquet's images are enlarged to it), in two class
folders; shards of them are made by ``generative data prepare``'s functions. Every contender gives batches of 64 shuffled
images, float32 in [-1, 1], and their labels, in this process. They take turns, once each uncounted; times are of the process, so
that other programs on the machine hardly count. With webdataset installed, it reads the same tars (in their order, as it does).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from photographs import crops, parquet_images
from PIL import Image
from torch.utils.data import DataLoader

from generative.data import ImageFolderDataset, PreparedDataset, build_loader
from generative.data.base import ImageDataset
from generative.data.shard_folder import ShardFolder
from generative.data.shard_images import ShardSettings
from generative.data.shard_writer import finish_shards, write_shards
from generative.data.transforms import center_crop

BATCH = 64
ORIGINAL = (500, 375)
QUALITY = 90
"""Of the originals: about 100 KB each, as ImageNet's."""


def write_originals(folder: Path, images: Iterator[Image.Image]) -> Path:
    """Write the originals into two class folders."""
    for index, image in enumerate(images):
        place = folder / f"class-{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        image.resize(ORIGINAL, Image.Resampling.LANCZOS).save(place / f"{index:05d}.jpg", quality=QUALITY)
    return folder


def prepare(originals: Path, folder: Path, size: int, encode: Any) -> Path:
    """Make shards, in this process."""
    source = ImageFolderDataset(originals, size, verify=False)
    shards = ShardFolder(source, ShardSettings(size, encode=encode), folder)
    for _ in write_shards(shards, shards.start(), 0):
        pass
    finish_shards(shards)
    return folder


def ours(dataset: ImageDataset) -> Callable[[int], None]:
    """Reads some batches as training does."""

    def read(batches: int) -> None:
        loader = build_loader(dataset, seed=0, batch_size=BATCH, num_slots=1, rank=0, world_size=1, horizontal_flip=True)
        for batch in itertools.islice(loader, batches):
            assert batch["images"].shape[0] == BATCH

    return read


def torchvision_folder(root: Path, size: int) -> Callable[[int], None]:
    """ImageFolder as DiT's and SiT's training scripts use it."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Lambda(lambda image: center_crop(image, size)), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps.append(transforms.Normalize(mean=[0.5] * 3, std=[0.5] * 3, inplace=True))
    dataset = ImageFolder(str(root), transforms.Compose(steps))

    def read(batches: int) -> None:
        for images, _ in itertools.islice(DataLoader(dataset, BATCH, shuffle=True, drop_last=True), batches):
            assert images.shape[0] == BATCH

    return read


def webdataset_tars(folder: Path) -> Callable[[int], None] | None:
    """webdataset on the same tars, None where it is not installed."""
    try:
        import webdataset  # type: ignore[import-not-found]
    except ImportError:
        return None
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def read(batches: int) -> None:
        stream = webdataset.WebDataset(urls, shardshuffle=False).decode("torchrgb").to_tuple("jpg", "cls").batched(BATCH)
        for images, _ in itertools.islice(stream, batches):
            assert images.mul_(2).sub_(1).shape[0] == BATCH

    return read


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path, help="images to use instead of scikit-learn's photographs")
    parser.add_argument("--images", type=int, default=256, help="default 256")
    parser.add_argument("--size", type=int, default=256, help="side of the training images (default 256)")
    parser.add_argument("--turns", type=int, default=3, help="turns that count (default 3)")
    parser.add_argument("--webp", action="store_true", help="lossless WebP as well, which takes long to make")
    given = parser.parse_args()
    torch.set_num_threads(1)
    batches = given.images // BATCH
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        images = (
            crops(given.images, 0, [(375, 500)]) if given.parquet is None else parquet_images(given.parquet, given.images, 0, 256)
        )
        originals = write_originals(root / "originals", images)
        kinds = ("jpeg", "webp-lossless", "raw") if given.webp else ("jpeg", "raw")
        shards = {kind: prepare(originals, root / kind, given.size, kind) for kind in kinds}
        contenders: dict[str, Callable[[int], None] | None] = {
            "torchvision ImageFolder": torchvision_folder(originals, given.size),
            "our ImageFolderDataset": ours(ImageFolderDataset(originals, given.size, verify=False)),
            **{f"prepared {kind}": ours(PreparedDataset(folder)) for kind, folder in shards.items()},
            "webdataset, prepared jpeg": webdataset_tars(shards["jpeg"]),
        }
        runs = {label: read for label, read in contenders.items() if read is not None}
        times: dict[str, list[float]] = {label: [] for label in runs}
        for turn in range(given.turns + 1):
            for label, read in runs.items():
                start = time.process_time()
                read(batches)
                if turn:
                    times[label].append(time.process_time() - start)
        megabytes = {f"prepared {kind}": sum(file.stat().st_size for file in folder.iterdir()) for kind, folder in shards.items()}
        megabytes["torchvision ImageFolder"] = sum(file.stat().st_size for file in originals.rglob("*.jpg"))
    print(
        f"{batches * BATCH} of {given.images} images of {ORIGINAL[0]}x{ORIGINAL[1]} to {given.size}, processor time, one thread,"
    )
    print(f"median of {given.turns} turns\n\n{'loader':<28}{'images/s':>10}{'ratio':>8}{'KB/image':>10}")
    first = times["torchvision ImageFolder"]
    for label, seconds in times.items():
        ratio = statistics.median([theirs / own for theirs, own in zip(first, seconds, strict=True)])
        size = f"{megabytes[label] / given.images / 1000:.0f}" if label in megabytes else ""
        print(f"{label:<28}{batches * BATCH / statistics.median(seconds):>10.0f}{ratio:>7.2f}x{size:>10}")


if __name__ == "__main__":
    main()
