"""``generative convert``: an official checkpoint in, a pipeline folder out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.core.errors import UserError

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from generative.convert.read import NetworkPart
    from generative.convert.recognise import Recognised
    from pipelines.base import ImageGenerationPipeline

RECORD = "conversion.json"
MAX_PROBLEMS = 200
"""Keys listed one by one before the rest is only counted."""
EPILOG = """Reads .pth, .pt, .bin, .safetensors, .npz (arrays by variable name) and StyleGAN-line .pkl files, and runs nothing.
  generative convert weights/G_ema.pth weights/D.pth --output pipelines/biggan
  generative convert network-snapshot.pkl --output pipelines/projected-gan
  generative convert DiT-XL-2-256x256.pt --autoencoder sd-vae-ft-ema/ --output pipelines/dit-xl
Then `generative sample DIR` samples. Where a discriminator is given, it is saved as DIR/discriminator (config.json and
safetensors), with its own class's from_pretrained to load it. What was converted from what is in DIR/conversion.json.
Options that no name or shape tells are the official launch script's; --config says otherwise, in JSON:
  {"generator": {"BN_eps": 1e-4}}, or {"num_heads": 4} for a source of one network"""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative convert", "Turn an official checkpoint into a pipeline folder.", EPILOG)
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", type=Path, help="official files of one model")
    parser.add_argument("--output", type=Path, metavar="DIR", help="pipeline folder to write")
    parser.add_argument("--source", metavar="NAME", help="layout of the checkpoint (default: found out from it)")
    parser.add_argument("--config", type=Path, metavar="OPTIONS.json", help="official options, over those found out")
    parser.add_argument("--network", metavar="NAME", help="which network samples: G_ema, G, ema, ... (default: the averaged one)")
    parser.add_argument("--autoencoder", type=Path, metavar="DIR", help="diffusers AutoencoderKL folder, for a latent DiT")
    parser.add_argument("--overwrite", action="store_true", help="replace a pipeline folder of the same name")
    parser.add_argument("--list-keys", action="store_true", help="list the checkpoint's tensors and write nothing")
    chosen = parser.parse_args(arguments)
    from generative.convert.base import MismatchError

    try:
        return list_keys(chosen.checkpoints) if chosen.list_keys else convert(chosen)
    except MismatchError as error:
        from generative.cli.main import fail

        code = fail(str(error))
        for line in error.problems[:MAX_PROBLEMS]:
            print(f"  {line}", file=sys.stderr)
        if len(error.problems) > MAX_PROBLEMS:
            print(f"  and {len(error.problems) - MAX_PROBLEMS} more", file=sys.stderr)
        return code


def list_keys(paths: Sequence[Path]) -> int:
    """Print every tensor of a checkpoint."""
    from generative.convert.read import read_checkpoints

    checkpoint = read_checkpoints(paths)
    for part in checkpoint.parts:
        print(f"{part}: {describe_size(part)}")
        for key, value in part.state.items():
            print(f"  {key}  {'x'.join(map(str, value.shape)) or 'scalar'}  {str(value.dtype).removeprefix('torch.')}")
    for note in checkpoint.notes:
        print(note)
    return 0


def convert(chosen: argparse.Namespace) -> int:
    """Convert a checkpoint and write its pipeline; returns the exit code."""
    output = check_output(chosen.output, chosen.overwrite)
    options = read_options(chosen.config)
    from generative.convert.read import read_checkpoints
    from generative.convert.recognise import choose_parts, recognise

    checkpoint = read_checkpoints(chosen.checkpoints)
    parts, left_out = choose_parts(checkpoint.parts, chosen.network)
    recognised = recognise(checkpoint, parts, chosen.source, options)
    networks = recognised.build()
    pipeline = recognised.source.pipeline(networks, recognised.config)
    lacks = add_autoencoder(pipeline, chosen.autoencoder)
    record = describe(recognised, parts, chosen.checkpoints)
    report(recognised, parts, networks)
    notes = [*checkpoint.notes, *(f"{part} is left out; --network {part.network} takes it" for part in left_out)]
    write(output, pipeline, networks, record)
    size = f"{pipeline.num_classes} classes, {pipeline.image_size} x {pipeline.image_size} pixels"
    print(f"{type(pipeline).__name__} of {size} in '{chosen.output}'")
    for note in [*notes, *untrained_classes(parts[0], pipeline.num_classes), *([lacks] if lacks else [])]:
        print(f"note: {note}")
    return 0


def untrained_classes(part: NetworkPart, num_classes: int) -> list[str]:
    """Note on a table of classes that is longer than the data set was: Projected GAN's has 1,000 rows whatever the data."""
    c_dim = part.options.get("c_dim")
    if not isinstance(c_dim, int) or not 0 < c_dim < num_classes:
        return []
    return [f"the network was trained on {c_dim} classes and has {num_classes}: labels from {c_dim} on mean nothing"]


def check_output(output: Path | None, overwrite: bool) -> Path:
    """The folder to write, which must be new, empty, or a converted pipeline that may be replaced.

    Raises:
        UserError: If it is none of these.
    """
    if output is None:
        raise UserError("--output is missing: give the pipeline folder to write, or --list-keys to write nothing")
    folder = output.resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output '{output}' is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / RECORD).is_file():
            raise UserError(f"--output '{output}' is not empty and holds no converted pipeline; choose another folder")
        if not overwrite:
            raise UserError(f"--output '{output}' holds a converted pipeline; choose another folder, or --overwrite it")
    return folder


def read_options(path: Path | None) -> dict[str, Any]:
    """Official options of a JSON file.

    Raises:
        UserError: If it cannot be read or holds no JSON object.
    """
    if path is None:
        return {}
    try:
        options = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--config '{path}' can't be read as JSON: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"--config '{path}' must hold a JSON object of official options, got a {type(options).__name__}")
    return options


def add_autoencoder(pipeline: ImageGenerationPipeline, folder: Path | None) -> str:
    """Give a pipeline on latents its autoencoder.

    Args:
        pipeline: Changed in place.
        folder: diffusers folder of an ``AutoencoderKL``, or None.

    Returns:
        What the pipeline lacks, in one sentence; empty where it is complete.

    Raises:
        UserError: If the autoencoder cannot be read or does not fit.
    """
    from pipelines.diffusion import DiffusionImagePipeline

    if not isinstance(pipeline, DiffusionImagePipeline):
        if folder is not None:
            raise UserError(f"--autoencoder has no use here: a {type(pipeline).__name__} makes pixels itself; leave it out")
        return ""
    channels = pipeline.denoiser.config.in_channels
    if folder is None:
        if channels == 3:
            return ""
        return (
            f"the pipeline makes latents of {channels} channels and lacks the autoencoder that turns them into images, which is "
            "not in the checkpoint; convert again with --autoencoder FOLDER before sampling"
        )
    from diffusers import AutoencoderKL

    if not (folder / "config.json").is_file():
        raise UserError(f"--autoencoder '{folder}' is no diffusers folder: it has no config.json")
    try:
        autoencoder = AutoencoderKL.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"--autoencoder '{folder}' can't be loaded: {str(error).splitlines()[0]}") from error
    if autoencoder.config.latent_channels != channels:
        raise UserError(f"--autoencoder '{folder}' has {autoencoder.config.latent_channels} channels, the denoiser {channels}")
    pipeline.register_modules(autoencoder=autoencoder.eval())
    return ""


def describe_size(part: NetworkPart) -> str:
    """Number of tensors and of values."""
    return f"{len(part.state)} tensors, {sum(value.numel() for value in part.state.values()):,} values"


def describe(recognised: Recognised, parts: Sequence[NetworkPart], paths: Sequence[Path]) -> dict[str, Any]:
    """What ``conversion.json`` says: where a pipeline is from, and nothing that differs from one conversion to the next."""
    import torch

    from metrics.cache import sha256_of

    return {
        "source": recognised.source.name,
        "repository": recognised.source.repository,
        "files": {path.name: sha256_of(path) for path in paths},
        "networks": [str(part) for part in parts],
        "options": recognised.config,
        "torch_version": torch.__version__,
    }


def report(recognised: Recognised, parts: Sequence[NetworkPart], networks: Mapping[str, ModelMixin]) -> None:
    """Print what was found and what it became."""
    print(f"source: {recognised.source.name} ({recognised.source.repository})")
    for part in parts:
        print(f"found: {part}, {describe_size(part)}")
    for name, network in networks.items():
        count = sum(parameter.numel() for parameter in network.parameters())
        print(f"{name}: {type(network).__name__}, {len(network.state_dict())} tensors, {count:,} parameters")
    nested = {name: value for name, value in recognised.config.items() if name in networks and isinstance(value, dict)}
    for name, options in (nested or {"model": recognised.config}).items():
        print(f"{name} options: {', '.join(f'{option}={value}' for option, value in options.items())}")


def write(output: Path, pipeline: ImageGenerationPipeline, networks: Mapping[str, ModelMixin], record: dict[str, Any]) -> None:
    """Write the pipeline, what of the networks it does not hold, and the record: whole or not at all."""
    from generative.core.checkpoint import save_network, write_folder

    held = [id(component) for component in pipeline.components.values()]

    def fill(folder: Path) -> None:
        pipeline.save_pretrained(folder, safe_serialization=True)
        for name, network in networks.items():
            if id(network) not in held:
                save_network(network, folder / name)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")

    write_folder(output, fill)
