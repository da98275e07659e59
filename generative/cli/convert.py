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

    from generative.convert.files.read import NetworkPart
    from generative.convert.files.recognise import Recognised
    from pipelines.base import ImagePipeline

RECORD = "conversion.json"
AUTOENCODER = "autoencoder"
"""Component of the pipelines whose networks work on latents."""
IMAGE_CHANNELS = 3
MAX_PROBLEMS = 200
"""Keys listed one by one before the rest is only counted."""
EPILOG = """Reads .pth, .pt, .bin, .safetensors, .npz (arrays by variable name), StyleGAN and EDM .pkl files and the .index of
TensorFlow checkpoints (shards beside it; no TensorFlow is needed), and runs nothing. Weights in several files are given by their
index (...safetensors.index.json).
  generative convert weights/G_ema.pth weights/D.pth --output pipelines/biggan
  generative convert network-snapshot.pkl --output pipelines/projected-gan
  generative convert 256x256_diffusion.pt --output pipelines/adm-256
  generative convert edm2-img512-s-2147483-0.130.pkl --autoencoder sd-vae-ft-mse/ --output pipelines/edm2-s
  generative convert DiT-XL-2-256x256.pt --autoencoder sd-vae-ft-ema/ --output pipelines/dit-xl
  generative convert SiT-XL-2-256x256.pt --autoencoder sd-vae-ft-ema/ --output pipelines/sit-xl
  generative convert facebook/DiT-XL-2-256/ --output pipelines/dit-xl     (a DiTPipeline of diffusers, downloaded)
  generative convert rin/ckpt-150000.index --output pipelines/rin         (averaged weights; others by --network denoiser)
  generative convert var_d16.pth vae_ch160v4096z32.pth --output pipelines/var-d16
  generative convert c2i_B_256.pt vq_ds16_c2i.pt --config block_size.json --output pipelines/llamagen-b
  generative convert checkpoint-last.pth kl16.ckpt --output pipelines/mar-b
DiT's and SiT's files are alike: where neither the file's name nor its training arguments tell, --source dit or --source sit does.
Files may be in any order: which network each is of is found out. A tokenizer or an autoencoder alone gives a pipeline for
`generative reconstruct` and `generative encode`; for all others, `generative sample DIR` samples.
Where a discriminator is given, it is saved as DIR/discriminator (config.json and
safetensors), with its own class's from_pretrained to load it. What was converted from what is in DIR/conversion.json.
Options that no name or shape tells are the official launch script's; --config says otherwise, in JSON:
  {"generator": {"BN_eps": 1e-4}}, or {"num_heads": 4} where one network alone has such an option, with {"autoencoder": {...}}
for an autoencoder whose file is given too"""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative convert", "Turn an official checkpoint into a pipeline folder.", EPILOG)
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", type=Path, help="official files of one model")
    parser.add_argument("--output", type=Path, metavar="DIR", help="pipeline folder to write")
    parser.add_argument("--source", metavar="NAME", help="layout of the checkpoint (default: found out from it)")
    parser.add_argument("--config", type=Path, metavar="OPTIONS.json", help="official options, over those found out")
    parser.add_argument(
        "--network", metavar="NAME", help="which weights to take: G_ema, G, ema, model, ... (default: the averaged)"
    )
    parser.add_argument(
        "--autoencoder", type=Path, metavar="DIR", help="folder of the autoencoder of a network on latents (DiT, MAR, eMIGM)"
    )
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
    from generative.convert.files.read import read_checkpoints

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
    from generative.convert.files.folder import INDEX, read_pipeline_folder
    from generative.convert.files.read import read_checkpoints
    from generative.convert.files.recognise import choose_parts, recognise

    folder = None
    if len(chosen.checkpoints) == 1 and (chosen.checkpoints[0] / INDEX).is_file():
        folder = read_pipeline_folder(chosen.checkpoints[0])
        chosen.checkpoints, chosen.source = [folder.weights], folder.source
        chosen.autoencoder, options = chosen.autoencoder or folder.autoencoder, folder.options | options
    checkpoint = read_checkpoints(chosen.checkpoints)
    parts, left_out = choose_parts(checkpoint.parts, chosen.network)
    recognised = recognise(checkpoint, parts, chosen.source, options)
    networks = recognised.build()
    pipeline = recognised.source.pipeline(networks, recognised.config)
    if folder is not None:
        pipeline.class_names = folder.class_names
    lacks = add_autoencoder(pipeline, chosen.autoencoder, recognised)
    used = [*recognised.parts, *(recognised.autoencoder.parts if recognised.autoencoder else ())]
    record = describe(recognised, used, chosen.checkpoints)
    report(recognised, used, networks)
    notes = [*checkpoint.notes, *(f"{part} is left out; --network {part.network} takes it" for part in left_out)]
    notes += [f"{part} is left out; {recognised.source.name} has no place for it" for part in parts if part not in used]
    notes += untrained_classes(used[0], pipeline)
    write(output, pipeline, networks, record)
    print(f"{type(pipeline).__name__} of {describe_pipeline(pipeline)} in '{chosen.output}'")
    for note in [*notes, *([lacks] if lacks else [])]:
        print(f"note: {note}")
    return 0


def describe_pipeline(pipeline: ImagePipeline) -> str:
    """What a pipeline has: classes or codes or channels, and the size of its images."""
    from pipelines.base import ImageGenerationPipeline

    if isinstance(pipeline, ImageGenerationPipeline) or not hasattr(pipeline, "tokenizer"):
        content = f"{pipeline.num_classes} classes"
    else:
        network = pipeline.tokenizer
        codes = getattr(network, "num_codes", None)
        content = f"{codes} codes" if codes else f"latents of {network.config.latent_channels} channels"
    return f"{content}, {pipeline.image_size} x {pipeline.image_size} pixels"


def untrained_classes(part: NetworkPart, pipeline: ImagePipeline) -> list[str]:
    """Note on a table of classes that is longer than the data set was: Projected GAN's has 1,000 rows whatever the data."""
    c_dim, num_classes = part.options.get("c_dim"), getattr(pipeline, "num_classes", 0)
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


def add_autoencoder(pipeline: ImagePipeline, folder: Path | None, recognised: Recognised) -> str:
    """Give a pipeline on latents its autoencoder.

    Args:
        pipeline: Changed in place.
        folder: Of an autoencoder, see ``generative.tokenizers.pretrained.load_autoencoder``; or None.
        recognised: What was converted, perhaps with an autoencoder among its files.

    Returns:
        What the pipeline lacks, in one sentence; empty where it is complete.

    Raises:
        UserError: If the autoencoder cannot be read, does not fit, is not wanted, or there are two.
    """
    part = recognised.autoencoder.parts[0] if recognised.autoencoder else None
    name = str(part) if part is not None else f"--autoencoder '{folder}'"
    if AUTOENCODER not in pipeline.components:
        if part is not None or folder is not None:
            kind = type(pipeline).__name__
            article = "an" if kind[0] in "AEIOU" else "a"
            raise UserError(f"{part or '--autoencoder'} has no use here: {article} {kind} makes pixels itself; leave it out")
        return ""
    if part is not None and folder is not None:
        raise UserError(f"there are two autoencoders, {name} and --autoencoder '{folder}'; give one of them")
    channels, owner = next(
        (component.config.in_channels, owner)
        for owner, component in pipeline.components.items()
        if owner != AUTOENCODER and "in_channels" in component.config
    )
    if recognised.autoencoder is None and folder is None:
        if channels == IMAGE_CHANNELS:
            return ""
        file = recognised.source.autoencoder_file
        return (
            f"the pipeline makes latents of {channels} channels and lacks the autoencoder that turns them into images, which is "
            f"not in the checkpoint; convert again with --autoencoder FOLDER{f' or with the file {file} too' if file else ''} "
            "before sampling"
        )
    (autoencoder,) = recognised.autoencoder.build().values() if recognised.autoencoder else (load_autoencoder(folder),)
    if autoencoder.config.latent_channels != channels:
        raise UserError(f"{name} has {autoencoder.config.latent_channels} channels, the {owner} {channels}")
    recognised.source.fit_autoencoder(autoencoder, recognised.config)
    pipeline.register_modules(autoencoder=autoencoder.eval())
    return ""


def load_autoencoder(folder: Path | None) -> ModelMixin:
    """The autoencoder of ``--autoencoder``.

    Raises:
        UserError: If it cannot be read.
    """
    from generative.tokenizers import pretrained

    folder = Path() if folder is None else folder
    if not any((folder / name).is_file() for name in ("config.json", "model_index.json", "pipeline/model_index.json")):
        raise UserError(f"--autoencoder '{folder}' is no diffusers folder: it has no config.json")
    try:
        return pretrained.load_autoencoder(folder)
    except UserError as error:
        raise UserError(f"--autoencoder can't be loaded: {error}") from error


def describe_size(part: NetworkPart) -> str:
    """Number of tensors and of values."""
    return f"{len(part.state)} tensors, {sum(value.numel() for value in part.state.values()):,} values"


def describe(recognised: Recognised, parts: Sequence[NetworkPart], paths: Sequence[Path]) -> dict[str, Any]:
    """What ``conversion.json`` says: where a pipeline is from, and nothing that differs from one conversion to the next."""
    import torch

    from generative.convert.files.pieces import with_pieces
    from generative.convert.files.tensor_bundle import with_shards
    from metrics.files.weights import sha256_of

    autoencoder = recognised.autoencoder
    decoded_by = {AUTOENCODER: {"source": autoencoder.source.name, "options": autoencoder.config}} if autoencoder else {}
    return decoded_by | {
        "source": recognised.source.name,
        "repository": recognised.source.repository,
        "files": {path.name: sha256_of(path) for path in with_pieces(with_shards(paths))},
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


def write(output: Path, pipeline: ImagePipeline, networks: Mapping[str, ModelMixin], record: dict[str, Any]) -> None:
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
