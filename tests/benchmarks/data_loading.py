"""Images per second of training's loader: prepared shards and cached latents against torchvision's ImageFolder with ADM's crop.

    python tests/benchmarks/data_loading.py                          # crops of scikit-learn's photographs
    python tests/benchmarks/data_loading.py --parquet images.parquet --images 1000 --turns 5
    python tests/benchmarks/data_loading.py --workers                # also 2 workers against 1, by the clock: a machine at rest

The originals are JPEG files of 500x375 pixels, ImageNet's usual size (a parquet's images are enlarged to it), in two class
folders; shards of them are made by ``generative data prepare``'s functions. Every contender gives batches of 64 shuffled
images and their labels, in this process and one thread. They take turns, once each uncounted; times are of the process, so that
other programs on the machine hardly count.

Torchvision's batches are float32 in [-1, 1], mirrored, as DiT's script makes them; a second row leaves out the floats. Ours are
what ``Trainer`` takes from its loader: bytes, and which of them are to be mirrored, the training device's work; rows "finished
here" do it too, on this core.
Cached latents are those of Stable Diffusion's autoencoder, 4x32x32 means and deviations as float16, two views. With webdataset
installed, it reads the same tars (in their order, as it does; not mirrored).
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

import numpy as np
import torch
from photographs import crops, parquet_images
from PIL import Image
from torch.utils.data import DataLoader

from generative.data import ImageFolderDataset, PreparedDataset, build_loader
from generative.data.base import ImageDataset
from generative.data.cache_files import CacheSpec, shard_name
from generative.data.cache_writer import SHARD_IMAGES, finish_cache, partial_folder, start_cache, write_tensors
from generative.data.shard_folder import ShardFolder
from generative.data.shard_images import ShardSettings
from generative.data.shard_writer import finish_shards, write_shards
from generative.data.token_cache import TokenCacheDataset
from generative.data.transforms import center_crop

BATCH = 64
ORIGINAL = (500, 375)
QUALITY = 90
"""Of the originals: about 100 KB each, as ImageNet's."""
ROUNDS = {"prepared raw": 8, "cached latents": 64}
"""Times that these read the images in a turn: once takes milliseconds, which a clock of the process tells badly."""


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


def ours(dataset: ImageDataset, finish: bool = False, workers: int = 0) -> Callable[[int], None]:
    """Reads some batches as training does."""
    options: dict[str, Any] = {"seed": 0, "batch_size": BATCH, "num_slots": 1, "rank": 0, "world_size": 1}

    def read(batches: int) -> None:
        loader = build_loader(dataset, horizontal_flip=True, finish=finish, num_workers=workers, **options)
        for batch in itertools.islice(loader, batches):
            assert len(batch["class_labels"]) == BATCH

    return read


def cached_latents(folder: Path, images: ImageDataset) -> TokenCacheDataset:
    """A cache as ``generative encode --views flip`` writes it, of random numbers in the place of latents."""
    spec = CacheSpec(
        kind="latents",
        encoder_class="AutoencoderKL",
        encoder_config={},
        encoder_fingerprint="0" * 64,
        data_class=type(images).__name__,
        data_fingerprint=images.fingerprint,
        num_images=len(images),
        num_classes=images.num_classes,
        class_names=tuple(images.class_names),
        image_size=images.image_size,
        views="flip",
        crop_sizes=(),
        shape=(4, images.image_size // 8, images.image_size // 8),
        num_codes=None,
        dtype="F16",
        has_std=True,
        mixed_precision="no",
        shard_images=SHARD_IMAGES,
    )
    start_cache(folder, spec)
    rng = np.random.default_rng(0)
    for shard in range(spec.num_shards):
        shape = (len(spec.images_of(shard)), 2, *spec.shape)
        tensors = {name: np.abs(rng.standard_normal(shape)).astype(np.float16) for name in spec.tensors}
        write_tensors(partial_folder(folder) / shard_name(shard), tensors)
    finish_cache(folder, spec, images)
    return TokenCacheDataset(folder)


def time_workers(dataset: ImageDataset, batches: int, turns: int) -> None:
    """Print images per second of 1 and 2 workers, by the clock, from the second batch on: starting them is not reading."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(turns):
        for workers, times in seconds.items():
            options: dict[str, Any] = {"seed": 0, "batch_size": BATCH, "num_slots": 1, "rank": 0, "world_size": 1}
            stream = iter(build_loader(dataset, horizontal_flip=True, finish=False, num_workers=workers, **options))
            for _ in range(workers):
                next(stream)
            start = time.perf_counter()
            for _ in range(batches):
                next(stream)
            times.append(time.perf_counter() - start)
            del stream
    ratio = statistics.median([one / two for one, two in zip(seconds[1], seconds[2], strict=True)])
    one, two = (batches * BATCH / statistics.median(seconds[workers]) for workers in (1, 2))
    print(f"\nprepared jpeg by the clock: 1 worker {one:.0f} images/s, 2 workers {two:.0f}, median ratio {ratio:.2f}x")


def torchvision_folder(root: Path, size: int, as_bytes: bool = False) -> Callable[[int], None]:
    """ImageFolder as DiT's and SiT's training scripts use it; ``as_bytes`` leaves out floats, which they do not."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Lambda(lambda image: center_crop(image, size)), transforms.RandomHorizontalFlip()]
    floats = [transforms.ToTensor(), transforms.Normalize(mean=[0.5] * 3, std=[0.5] * 3, inplace=True)]
    steps += [transforms.PILToTensor()] if as_bytes else floats
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
    parser.add_argument("--workers", action="store_true", help="2 workers against 1 as well, by the clock")
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
            "torchvision, bytes": torchvision_folder(originals, given.size, as_bytes=True),
            "our ImageFolderDataset": ours(ImageFolderDataset(originals, given.size, verify=False)),
            **{f"prepared {kind}": ours(PreparedDataset(folder)) for kind, folder in shards.items()},
            **{f"prepared {kind}, finished here": ours(PreparedDataset(folder), True) for kind, folder in shards.items()},
            "cached latents": ours(cached_latents(root / "latents", PreparedDataset(shards["raw"]))),
            "webdataset, prepared jpeg": webdataset_tars(shards["jpeg"]),
        }
        runs = {label: read for label, read in contenders.items() if read is not None}
        times: dict[str, list[float]] = {label: [] for label in runs}
        for turn in range(given.turns + 1):
            for label, read in runs.items():
                rounds = ROUNDS.get(label, 1)
                start = time.process_time()
                read(rounds * batches)
                if turn:
                    times[label].append((time.process_time() - start) / rounds)
        if given.workers:
            time_workers(PreparedDataset(shards["jpeg"]), 4 * batches, given.turns)
        megabytes = {f"prepared {kind}": sum(file.stat().st_size for file in folder.iterdir()) for kind, folder in shards.items()}
        megabytes["torchvision ImageFolder"] = sum(file.stat().st_size for file in originals.rglob("*.jpg"))
    print(
        f"{batches * BATCH} of {given.images} images of {ORIGINAL[0]}x{ORIGINAL[1]} to {given.size}, processor time, one thread,"
    )
    print(f"median of {given.turns} turns\n\n{'loader':<34}{'images/s':>10}{'ratio':>8}{'KB/image':>10}")
    first = times["torchvision ImageFolder"]
    for label, seconds in times.items():
        ratio = statistics.median([theirs / own for theirs, own in zip(first, seconds, strict=True)])
        size = f"{megabytes[label] / given.images / 1000:.0f}" if label in megabytes else ""
        print(f"{label:<34}{batches * BATCH / statistics.median(seconds):>10.0f}{ratio:>7.2f}x{size:>10}")


if __name__ == "__main__":
    main()
