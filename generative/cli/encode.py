"""``generative encode``: turn a data set into a cache of token ids or latents, once, for training to read."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.cli.data_section import DataSection
from generative.cli.overrides import split_overrides
from generative.core.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import ModelMixin

    from generative.data.base import ImageDataset
    from generative.data.cache_files import CacheSpec
    from generative.data.cache_writer import CacheEncoder

EPILOG = """The images are the data section of a training configuration, with overrides as in `generative train`, or any data set:
  generative encode runs/cifar10-vq --config cifar10/var --data.init_args.root cifar10/ --output caches/cifar10-vq --views flip
  generative encode runs/vq --data generative.data.ImageFolderDataset --data.root images/ --data.image_size 256 --output caches/x
A configuration that trains on a cache (TokenCacheDataset) gives the images named in its data.init_args.images.

Train on the cache, with trainer.horizontal_flip on where it holds mirrored views:
  data: {class_path: generative.data.token_cache.TokenCacheDataset, init_args: {folder: caches/cifar10-vq}}
It carries the sha256 of the tokenizer's config and weights, and training with another tokenizer is refused; and that of its own
files, which `generative data check caches/cifar10-vq` compares. Latents are means and deviations, from which every step draws
anew, as training on the images does. With init_args {with_images: true, images: ...} a batch has the images of the same views
beside them.

Views, of which training draws one at every visit of an image:
  plain     the image
  flip      the image and its mirror image
  ten-crop  five crops and their mirror images, cut from the image at --crop-range times its size (LlamaGen: 1.1 and 1.05)

A killed run goes on when the command is repeated. Several processes share the work:
  torchrun --nproc-per-node 8 -m generative.cli.main encode RUN --config imagenet/var --output caches/imagenet --device cuda"""


def crop_ranges(text: str) -> tuple[float, ...]:
    """Parse numbers with commas between them."""
    return tuple(float(part) for part in text.split(","))


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative encode", "Encode images once into a cache of token ids or latents.", EPILOG)
    parser.add_argument(
        "folder",
        metavar="RUN_OR_TOKENIZER",
        type=Path,
        help="the run of a tokenizer or an autoencoder, a pipeline folder that has one, or its own folder",
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="CONFIG",
        help="a training configuration whose data section names the images; repeated: later ones win",
    )
    parser.add_argument("--data", metavar="CLASS", help="a data set; its arguments follow as --data.NAME VALUE")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder of the cache, for example caches/NAME")
    parser.add_argument("--views", choices=("plain", "flip", "ten-crop"), default="plain", help="default plain")
    parser.add_argument(
        "--crop-range",
        type=crop_ranges,
        metavar="R,R",
        help="ten-crop: sides of the larger squares over the image's (default 1.1)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="views to a forward pass (default 64)")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: CUDA where there is one)")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="default no: float32")
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default=None, help="how latents are stored (default float16); ids need none"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another cache in the folder, once this one is complete")
    parser.add_argument("--trust-code", action="store_true", help="allow the data section to name classes of any module")
    own, overrides = split_overrides(arguments, ("data",))
    known = parser.parse_args(own)
    check_arguments(known)
    return encode(known, overrides)


def check_arguments(given: argparse.Namespace) -> None:
    """Refuse numbers out of range and options that contradict one another, before anything is loaded.

    Raises:
        UserError: If one is.
    """
    if given.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {given.batch_size}")
    if given.crop_range is not None and given.views != "ten-crop":
        raise UserError("--crop-range belongs to --views ten-crop; add that, or leave it out")
    for crop_range in given.crop_range or ():
        if not (1 <= crop_range < math.inf):
            raise UserError(f"--crop-range must be at least 1 (times the image's side), got {crop_range}")
    if given.output.exists() and not given.output.is_dir():
        raise UserError(f"output '{given.output}' is a file; give a folder, for example caches/NAME")
    if given.output.name in ("", ".."):
        raise UserError(f"output '{given.output}' must be a folder with a name, for example caches/NAME")


def encode(given: argparse.Namespace, overrides: list[str]) -> int:
    """Encode and write; returns the exit code."""
    from generative.core.rendezvous import check_agreement
    from generative.core.runtime import build_accelerator
    from generative.data.cache_files import CACHE_FILE, read_spec
    from generative.data.cache_writer import CacheEncoder, check_output, clean_up, finish_cache, start_cache
    from generative.data.summary import summarise_data
    from generative.tokenizers.latents import scaled_deviation
    from generative.tokenizers.pretrained import load_encoder

    data = DataSection("generative encode", given.config or [], overrides, given.trust_code)
    encoder = load_encoder(given.folder)
    images = data.build()
    found = summarise_data(images, "data")
    spec = make_spec(encoder, images, given)
    output: Path = given.output
    accelerator = build_accelerator(given.mixed_precision)
    check_agreement(spec.to_json())
    if check_output(output, spec, given.overwrite):
        if accelerator.is_main_process:
            clean_up(output)
            print(
                f"'{output}' is complete already: {summary(spec, read_spec(output / CACHE_FILE)[1], scaled_deviation(encoder))}"
            )
        return 0
    sources = [data.build(size) for size in spec.crop_sizes] or [images]
    encoder.to(find_device(given.device, accelerator.device))
    cache_encoder = CacheEncoder(encoder, spec.dtype, given.batch_size, accelerator.autocast)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print("\n".join(found))
        start_cache(output, spec)
    accelerator.wait_for_everyone()
    write_share(output, spec, sources, cache_encoder, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        statistics = finish_cache(output, spec, images)
        print(f"'{output}': {summary(spec, statistics, scaled_deviation(encoder))}")
    return 0


def write_share(
    output: Path, spec: CacheSpec, sources: list[ImageDataset], encoder: CacheEncoder, accelerator: Accelerator
) -> None:
    """Write this process's share of the shards that are missing, behind a progress bar.

    Raises:
        UserError: If an image cannot be read, or what the encoder makes of it cannot be stored.
        RunError: If the disk is full.
    """
    from tqdm.auto import tqdm

    from generative.core.logging import progress_interval
    from generative.data.cache_writer import missing_shards, write_shards

    shards = missing_shards(output, spec)
    accelerator.wait_for_everyone()  # everyone has looked before anyone writes
    mine = shards[accelerator.process_index :: accelerator.num_processes]
    with tqdm(
        total=sum(len(spec.images_of(shard)) for shard in mine),
        desc=f"encoding {output.name}",
        unit="img",
        mininterval=progress_interval(),
        disable=not accelerator.is_main_process,
    ) as bar:
        for count in write_shards(output, spec, mine, sources, encoder):
            bar.update(count)


def make_spec(encoder: ModelMixin, images: ImageDataset, given: argparse.Namespace) -> CacheSpec:
    """What the cache will hold.

    Raises:
        UserError: If the images are not of the encoder's size, or are a cache themselves.
    """
    from generative.data import cache_writer
    from generative.data.cache_files import CacheSpec, smallest_type
    from generative.tokenizers.base import ImageTokenizer, fingerprint

    if images.encoder_fingerprint is not None:
        raise UserError("the data set is a cache itself; give the images: --data CLASS --data.root ...")
    if isinstance(encoder, ImageTokenizer):
        if given.dtype is not None:
            raise UserError("--dtype is how latents are stored, and a tokenizer's ids take the smallest integers; leave it out")
        if images.image_size != encoder.image_size:
            raise UserError(
                f"the tokenizer takes images of {encoder.image_size} pixels, the data has {images.image_size}; set image_size of "
                "the data"
            )
        content: dict[str, Any] = {
            "kind": "tokens",
            "shape": (encoder.sequence_length,),
            "num_codes": encoder.num_codes,
            "dtype": smallest_type(encoder.num_codes),
            "has_std": False,
        }
    else:
        content = latent_content(encoder, images.image_size, "F32" if given.dtype == "float32" else "F16")
    ranges = (given.crop_range or (1.1,)) if given.views == "ten-crop" else ()
    return CacheSpec(
        **content,
        encoder_class=type(encoder).__name__,
        # Through JSON, as tuples become lists there.
        encoder_config=json.loads(json.dumps({k: v for k, v in encoder.config.items() if not k.startswith("_")})),
        encoder_fingerprint=fingerprint(encoder),
        data_class=type(images).__name__,
        data_fingerprint=images.fingerprint,
        num_images=len(images),
        num_classes=images.num_classes,
        class_names=tuple(images.class_names),
        image_size=images.image_size,
        views=given.views,
        crop_sizes=tuple(int(images.image_size * crop_range) for crop_range in ranges),
        mixed_precision=given.mixed_precision,
        shard_images=cache_writer.SHARD_IMAGES,
    )


def latent_content(autoencoder: ModelMixin, image_size: int, dtype: str) -> dict[str, Any]:
    """The part of a cache's specification that an autoencoder decides.

    Raises:
        UserError: If the images do not divide into its latents.
    """
    from diffusers import AutoencoderDC

    from generative.tokenizers.latents import latent_channels, latent_stride

    stride = latent_stride(autoencoder)
    if image_size % stride:
        raise UserError(
            f"the autoencoder makes one latent of {stride} pixels, and images of {image_size} pixels do not divide; set "
            f"image_size of the data to a multiple of {stride}"
        )
    return {
        "kind": "latents",
        "shape": (latent_channels(autoencoder), image_size // stride, image_size // stride),
        "num_codes": None,
        "dtype": dtype,
        "has_std": not isinstance(autoencoder, AutoencoderDC),
    }


def find_device(name: str | None, default: Any) -> Any:
    """The device named, else this process's own.

    Raises:
        UserError: If there is no such device.
    """
    import torch

    try:
        device = torch.device(name or default)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch asserts that it was compiled with CUDA.
        raise UserError(f"--device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def summary(spec: CacheSpec, statistics: dict[str, float], deviation: float) -> str:
    """One line on a cache: counts, codes used and bits per image; ``deviation`` is what scaled latents should have."""
    views = spec.make_views().count
    counts = f"{spec.num_images} images of {spec.num_classes} classes x {views} view{'s' if views > 1 else ''}"
    shape = " x ".join(map(str, spec.shape))
    if spec.kind == "tokens":
        entropy = statistics["entropy_per_token"]
        return (
            f"{counts} x {shape} tokens; {int(statistics['codes_used'])} of {spec.num_codes} codes used, "
            f"{statistics['bits_per_image']:.0f} bits per image ({entropy * spec.shape[0]:.0f} at the codes' entropy of "
            f"{entropy:.2f} bits per token)"
        )
    bits = 16 if spec.dtype == "F16" else 32
    drawn = "means and deviations" if spec.has_std else "latents"
    return (
        f"{counts} x {shape} {drawn}, {math.prod(spec.shape) * bits * len(spec.tensors)} bits per image and view as stored; "
        f"scaled latents have mean {statistics['mean']:.3f} and deviation {statistics['std']:.3f} (0 and {deviation:g} expected)"
    )
