"""``generative data``: shards of images that training reads, made once and checked."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from generative.cli.arguments import CommandParser
from generative.core.errors import UserError

CACHE_FILE = "cache.json"
"""What a folder of ``generative encode`` has (``generative.data.cache_files``, not imported for ``--help``)."""

if TYPE_CHECKING:
    from generative.data.shard_folder import ShardFolder
    from metrics.files.shards import ShardIndex

USAGE = """usage: generative data prepare SRC OUT ...    decode, crop and store images once, as shards that training reads
       generative data check DIR              read all shards, or a cache, and compare them with their index

`generative data prepare --help` explains each.
"""

PREPARE_EPILOG = """SRC is what people have; it is recognised by what it holds:
  class folders            numbered by their sorted names; ImageNet's ids (n01440764) get their words, and stay in index.json
  ILSVRC2012_img_train.tar ImageNet as it is published, a tar of one tar for each class; nothing is unpacked
  ILSVRC2012_img_val.tar   or its flat folder of 50,000 JPEG files, with --devkit ILSVRC2012_devkit_t12(.tar.gz) for classes
  .zip, .tar               classes by folders, .cls or .json members, dataset.json; or a folder of WebDataset's shards
  parquet                  a file or folder of Hugging Face's layout
  CIFAR-10, CIFAR-100      the python versions (or parquet), of which nothing is executed; --split test for the other half
  ImageNet 16, 32, 64      downsampled, npz or pickles (at 64 pixels npz); --devkit numbers its classes as everybody does
  prepared shards          made anew in another way

  generative data prepare imagenet/train shards/train-256 --resolution 256 --num-classes 1000
  generative data prepare ILSVRC2012_img_val.tar shards/val-256 --resolution 256 --devkit ILSVRC2012_devkit_t12.tar.gz
  generative data prepare cifar10/ shards/cifar10-test --resolution 32 --encode raw --split test
  generative data check shards/train-256
  generative train imagenet/dit_256 --data generative.data.prepared.PreparedDataset --data.folder shards/train-256

How they are stored:
  jpeg           files in tars, as WebDataset reads them; a JPEG file that needs no change is kept byte by byte
  webp-lossless  the same, without loss
  raw            pixels, uint8 (n, 3, H, W), which numpy.load maps: nothing to decode, 196,608 bytes an image of 256 pixels

How they are cropped:
  adm             halved by a box filter while twice too large, then bicubic, then the centre (the published ImageNet figures)
  center          one bicubic step, then the centre (torchvision's Resize and CenterCrop)
  random-resized  one of Inception's random crops for each image, by --seed
  none            whole pictures, made smaller where the short side is longer than --resolution; the data set then needs
                  image_size, and random crops and aspect ratios are drawn while training

A killed command goes on when it is repeated: shards that are whole are kept. Images that cannot be read are listed by name."""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    actions = {"prepare": run_prepare, "check": run_check}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] not in actions:
        raise UserError(f"there is no 'generative data {arguments[0]}'; choose prepare or check")
    return actions[arguments[0]](arguments[1:])


def run_prepare(arguments: list[str]) -> int:
    """Run ``generative data prepare``; returns the exit code."""
    parser = CommandParser("generative data prepare", "Store images once as shards that training reads.", PREPARE_EPILOG)
    parser.add_argument("source", metavar="SRC", type=Path, help="the images")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder of the shards")
    parser.add_argument("--resolution", type=int, metavar="R", help="side of the images in pixels; needed but for --crop none")
    parser.add_argument("--crop", choices=("adm", "center", "random-resized", "none"), default="adm", help="default adm")
    parser.add_argument("--encode", choices=("jpeg", "webp-lossless", "raw"), default="jpeg", help="default jpeg")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG files that are written anew (default 95, colour 4:4:4)")
    parser.add_argument("--seed", type=int, default=0, help="of random crops (default 0)")
    parser.add_argument("--split", choices=("train", "test"), help="of CIFAR and downsampled ImageNet (default train)")
    parser.add_argument(
        "--devkit", type=Path, metavar="PATH", help="ImageNet's development kit (ILSVRC2012_devkit_t12, or its .tar.gz)"
    )
    parser.add_argument(
        "--class-names",
        metavar="NAMES",
        help="imagenet, source, or a text file of one name a line (default: words for WordNet ids, else the source's)",
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="refuse a source of another number of classes")
    parser.add_argument("--shard-images", type=int, default=4096, metavar="N", help="images to a shard (default 4096)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core); 0 works in this one")
    parser.add_argument("--skip-corrupt", action="store_true", help="finish without images that cannot be read; they are listed")
    parser.add_argument("--overwrite", action="store_true", help="replace other shards in OUT, once these are whole")
    given = parser.parse_args(arguments)
    check_arguments(given)
    return prepare(given)


def check_arguments(given: argparse.Namespace) -> None:
    """Refuse numbers out of range, before anything is loaded.

    Raises:
        UserError: If one is.
    """
    if given.workers is not None and given.workers < 0:
        raise UserError(f"--workers must not be negative, got {given.workers}")
    if given.output.exists() and not given.output.is_dir():
        raise UserError(f"output '{given.output}' is a file; give a folder, for example shards/NAME")
    if given.output.name in ("", ".."):
        raise UserError(f"output '{given.output}' must be a folder with a name, for example shards/NAME")
    source, output = given.source.resolve(), given.output.resolve()
    if source == output or source in output.parents or output in source.parents:
        raise UserError(f"OUT '{given.output}' and SRC '{given.source}' lie in one another; choose another folder for the shards")


def prepare(given: argparse.Namespace) -> int:
    """Open, make and store; returns the exit code."""
    from generative.data.imagenet import name_classes
    from generative.data.open_images import open_images
    from generative.data.prepared import open_index
    from generative.data.shard_folder import ShardFolder, clean_up
    from generative.data.shard_images import ShardSettings
    from generative.data.shard_writer import finish_shards
    from generative.data.summary import plural, summarise_data

    settings = ShardSettings(
        given.resolution, given.crop, given.encode, given.quality, given.seed, shard_images=given.shard_images
    )
    images = open_images(given.source, given.split, given.devkit)
    if given.num_classes not in (None, images.num_classes):
        raise UserError(
            f"'{given.source}' has {images.num_classes} classes, and --num-classes is {given.num_classes}; complete the source, "
            "or leave --num-classes out"
        )
    own_names = images.class_names
    name_classes(images, given.class_names)
    class_ids = images.class_ids or (own_names if own_names != images.class_names else None)
    folder = ShardFolder(images, settings, given.output, given.overwrite, class_ids)
    if folder.is_complete:
        clean_up(folder.output)
        try:
            open_index(given.output)
        except UserError as error:
            raise UserError(f"{error}; --overwrite prepares them anew here") from error
        print(f"'{given.output}' is complete already: {plural(len(images))}")
        return 0
    print("\n".join([*summarise_data(images, "source"), *images.notices]), flush=True)
    workers = available_cores() if given.workers is None else given.workers
    seconds, count = work(folder, workers)
    bad = folder.left_out()
    for entry in bad:
        print(f"left out: {entry['reason']}", file=sys.stderr)
    if bad and not given.skip_corrupt:
        raise UserError(
            f"{len(bad)} of {plural(len(images))} cannot be read, listed above; all others are stored: repeat the command with "
            "--skip-corrupt, which finishes without them at once, or mend them and start anew with --overwrite"
        )
    index = finish_shards(folder)
    size = sum(shard.bytes for shard in index.shards)
    speed = f", {count / seconds:.0f} images/s" if count else ""
    print(
        f"'{given.output}': {plural(len(index))} of {len(index.class_names)} classes in {shards_of(index)}, "
        f"{size / 2**20:,.1f} MiB{speed}"
    )
    return 0


def shards_of(index: ShardIndex) -> str:
    """A number of shards."""
    return "1 shard" if len(index.shards) == 1 else f"{len(index.shards)} shards"


def available_cores() -> int:
    """Processes to work with: the cores that this one may use; 0, this process itself, for a single one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores > 1 else 0


def work(folder: ShardFolder, workers: int) -> tuple[float, int]:
    """Write what is missing of a folder of shards, behind a progress bar; returns seconds and number of images."""
    from tqdm.auto import tqdm

    from generative.core.logging import progress_interval
    from generative.data.shard_writer import write_shards

    missing = folder.start()
    total = sum(len(folder.images_of(shard)) for shard in missing)
    if len(missing) < folder.num_shards:
        print(f"going on: {folder.num_shards - len(missing)} of {folder.num_shards} shards are whole", flush=True)
    start = time.perf_counter()
    with tqdm(total=total, desc=f"preparing {folder.output.name}", unit="img", mininterval=progress_interval()) as bar:
        for count in write_shards(folder, missing, workers):
            bar.update(count)
    return time.perf_counter() - start, total


def run_check(arguments: list[str]) -> int:
    """Run ``generative data check``; returns the exit code."""
    parser = CommandParser(
        "generative data check",
        "Read all shards of `generative data prepare`, or a cache of `generative encode`, and compare counts, sizes and sha256 "
        "with the index.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the shards, or of the cache")
    parser.add_argument("--decode", action="store_true", help="decode every image as well, and look at its size")
    given = parser.parse_args(arguments)
    if (given.folder / CACHE_FILE).is_file():
        if given.decode:
            raise UserError(f"--decode looks at images, and '{given.folder}' is a cache of ids or latents; leave it out")
        return check_cache(given.folder)
    return check(given.folder, given.decode)


def check_cache(path: Path) -> int:
    """Check a cache of token ids or latents; returns the exit code."""
    from tqdm.auto import tqdm

    from generative.core.logging import progress_interval
    from generative.data.cache_check import check_content, check_sizes, read_sums
    from generative.data.cache_files import ShardReader, read_spec
    from generative.data.summary import plural

    spec, sums = read_spec(path / CACHE_FILE)[0], read_sums(path)
    shards = ShardReader(path, spec)
    for shard in range(spec.num_shards):
        shards.check(shard)
    check_sizes(path, sums)
    if not sums:
        raise UserError(f"'{path}' was encoded before caches carried sha256, and cannot be compared; encode the images anew")
    faults: list[str] = []
    total = sum(file.bytes for file in sums.values())
    bar = tqdm(total=total, desc=f"checking {path.name}", unit="B", unit_scale=True, mininterval=progress_interval())
    with bar:
        for count, fault in check_content(path, sums):
            bar.update(count)
            faults += [] if fault is None else [fault]
    if faults:
        for fault in faults[1:]:
            print(f"also: {fault}", file=sys.stderr)
        raise UserError(f"{faults[0]}; encode the images anew, or restore what is damaged from a copy")
    views = spec.make_views().count
    print(
        f"'{path}' is whole: {spec.kind} of {plural(spec.num_images)} of {spec.num_classes} classes x {views} "
        f"view{'s' if views > 1 else ''}, {total / 2**20:,.1f} MiB"
    )
    return 0


def check(path: Path, decode: bool) -> int:
    """Check a folder of shards; returns the exit code."""
    from tqdm.auto import tqdm

    from generative.core.logging import progress_interval
    from generative.data.prepared import open_index
    from generative.data.shard_check import check_shards
    from generative.data.summary import plural

    index = open_index(path)
    faults: list[str] = []
    total = sum(shard.bytes for shard in index.shards)
    bar = tqdm(total=total, desc=f"checking {path.name}", unit="B", unit_scale=True, mininterval=progress_interval())
    with bar:
        for count, found in check_shards(path, index, decode):
            bar.update(count)
            faults += found
    if faults:
        for fault in faults[1:]:
            print(f"also: {fault}", file=sys.stderr)
        raise UserError(f"{faults[0]}; prepare the images anew, or restore what is damaged from a copy")
    how = "whole, and every image decodes" if decode else "whole"
    print(
        f"'{path}' is {how}: {plural(len(index))} of {len(index.class_names)} classes in {shards_of(index)}, "
        f"{total / 2**20:,.1f} MiB, {len(index.left_out)} left out when they were made"
    )
    return 0
