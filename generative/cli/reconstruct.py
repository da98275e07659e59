"""``generative reconstruct``: images through a tokenizer or an autoencoder and back, side by side and with scores."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.cli.data_section import DataSection
from generative.cli.overrides import split_overrides
from generative.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from generative.data.base import ImageDataset
    from metrics.suite import MetricSuite
    from pipelines.reconstruction import ImageReconstructionPipeline

EPILOG = """Image files, folders of them, or a data set as in `generative encode`:
  generative reconstruct runs/cifar10-vq cat.png photos/ --output reconstructed/
  generative reconstruct runs/cifar10-vq --config cifar10/vq --data.init_args.split test --output grid.png
  generative reconstruct runs/cifar10-vq --config cifar10/vq --data.init_args.split test --output test/ --extractor inception-v3
A folder gets every reconstruction as PNG, grid.png (each original with its reconstruction on its right) and scores.json; a name
that ends in .png gets the grid only. Images of another size are resized and cropped to the centre square.
PSNR and SSIM are means over images. The Frechet distance between reconstructions and originals is rFID with inception-v3."""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative reconstruct", "Encode and decode images with a tokenizer or an autoencoder.", EPILOG)
    parser.add_argument(
        "folder",
        metavar="RUN_OR_TOKENIZER",
        type=Path,
        help="the run of a tokenizer or an autoencoder, a pipeline folder that has one, or its own folder",
    )
    parser.add_argument("images", metavar="IMAGES", nargs="*", type=Path, help="image files and folders")
    parser.add_argument(
        "--config",
        action="append",
        metavar="CONFIG",
        help="a training configuration whose data section names the images; repeated: later ones win",
    )
    parser.add_argument("--data", metavar="CLASS", help="a data set; its arguments follow as --data.NAME VALUE")
    parser.add_argument(
        "--output", metavar="DIR|FILE.png", type=Path, required=True, help="a new folder, or the grid's file name"
    )
    parser.add_argument("--num-images", type=int, metavar="N", help="only the first N images (default all)")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="for autoencoders, which take any size their stride divides"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default 64)")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: CUDA where there is one)")
    parser.add_argument(
        "--extractor", metavar="NAME", help="also the Frechet distance on this network: efficientnet-lite0, inception-v3, ..."
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of the extractor, where it has none of its own")
    parser.add_argument("--trust-code", action="store_true", help="allow the data section to name classes of any module")
    own, overrides = split_overrides(arguments, ("data",))
    known = parser.parse_intermixed_args(own)
    check_arguments(known, overrides)
    return reconstruct(known, overrides)


def check_arguments(given: argparse.Namespace, overrides: list[str]) -> None:
    """Refuse numbers out of range and options that contradict one another, before anything is loaded.

    Raises:
        UserError: If one is.
    """
    for name, value in (
        ("--batch-size", given.batch_size),
        ("--num-images", given.num_images),
        ("--image-size", given.image_size),
    ):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if given.weights is not None and given.extractor is None:
        raise UserError("--weights is the file of an extractor; name that with --extractor")
    if given.images:
        if given.config or overrides:
            raise UserError("give image files and folders, or a data set by --config or --data, not both")
    elif not given.config and not overrides:
        raise UserError("there are no images; give files and folders, or a data set by --config CONFIG or --data CLASS")
    elif given.image_size is not None:
        raise UserError(
            "--image-size belongs to image files; a data set has its own: --data.image_size, --data.init_args.image_size"
        )
    output: Path = given.output
    if output.suffix.lower() == ".png":
        if output.is_dir():
            raise UserError(f"output '{output}' is a folder; give a file name, or a folder that does not end in .png")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output '{output}' exists and is not an empty folder; choose another")


def reconstruct(given: argparse.Namespace, overrides: list[str]) -> int:
    """Reconstruct, write and print; returns the exit code."""
    import torch

    from generative.cli.comparison import GRID_COLUMNS, Comparison
    from generative.cli.encode import find_device
    from generative.core.checkpoint import write_folder
    from generative.core.logging import save_grid, write_json
    from generative.tokenizers.pretrained import load_encoder
    from pipelines.reconstruction import ImageReconstructionPipeline

    pipeline = ImageReconstructionPipeline(load_encoder(given.folder))
    images = open_images(pipeline, given, overrides)
    device = find_device(given.device, "cuda" if torch.cuda.is_available() else "cpu")
    pipeline.to(device)
    count = min(len(images), given.num_images or len(images))
    comparison = Comparison(pipeline, images, count, build_suite(given.extractor, given.weights, device, count))
    output: Path = given.output

    def fill(folder: Path | None) -> None:
        for indices, results in comparison.run(given.batch_size):
            if folder is not None:
                write_images(folder, images, indices, results, len(str(count)))
        if folder is not None:
            save_grid(comparison.grid(), folder / "grid.png", 2 * GRID_COLUMNS)
            write_json(folder / "scores.json", comparison.scores())

    if output.suffix.lower() == ".png":
        fill(None)
        save_grid(comparison.grid(), output, 2 * GRID_COLUMNS)
    else:
        try:
            write_folder(output, fill)
        except UserError:
            # A corrupt image, met half-way: nothing half-written stays.
            shutil.rmtree(output.with_name(f".{output.name}.partial"), ignore_errors=True)
            raise
    print(f"{count} images reconstructed in '{output}': {comparison.summary()}")
    for note in comparison.notes:
        print(f"note: {note}")
    return 0


def open_images(pipeline: ImageReconstructionPipeline, given: argparse.Namespace, overrides: list[str]) -> ImageDataset:
    """The images, at the size that the network takes.

    Raises:
        UserError: If there are none, or a data set's are of another size.
    """
    from generative.data.image_files import ImageFilesDataset
    from generative.tokenizers.base import ImageTokenizer
    from generative.tokenizers.latents import latent_stride

    network = pipeline.tokenizer
    if given.images:
        size = given.image_size or pipeline.image_size
        images: ImageDataset = ImageFilesDataset(given.images, size)
    else:
        images = DataSection("generative reconstruct", given.config or [], overrides, given.trust_code).build()
        size = images.image_size
    if isinstance(network, ImageTokenizer):
        if size != network.image_size:
            raise UserError(f"the tokenizer takes images of {network.image_size} pixels, got {size}; set image_size to that")
    elif size % latent_stride(network):
        raise UserError(f"the autoencoder takes images whose side its stride {latent_stride(network)} divides, got {size} pixels")
    return images


def build_suite(extractor: str | None, weights: Path | None, device: Any, count: int) -> MetricSuite | None:
    """The Frechet distance on an extractor; None without one.

    Raises:
        UserError: If the extractor or its weights cannot be had, or there are too few images.
    """
    if extractor is None:
        return None
    from metrics.extractors import build_extractor
    from metrics.suite import MetricSuite

    if count < 2:
        raise UserError("a Frechet distance needs at least 2 images; leave --extractor out for one")
    try:
        return MetricSuite(["frechet"], build_extractor(extractor, weights=weights, device=device))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error


def write_images(folder: Path, images: ImageDataset, indices: list[int], results: Tensor, digits: int) -> None:
    """Write reconstructions as PNG, named by number and, for image files, the file's own name."""
    from PIL import Image

    from generative.data.image_files import ImageFilesDataset

    for index, array in zip(indices, results.permute(0, 2, 3, 1).numpy(), strict=True):
        stem = f"_{images.paths[index].stem}" if isinstance(images, ImageFilesDataset) else ""
        Image.fromarray(array).save(folder / f"{index:0{digits}d}{stem}.png")
