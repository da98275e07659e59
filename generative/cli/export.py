"""``generative export``: a run's pipeline as a slim folder for others, with a model card."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.report.publication import Wanted

EPILOG = """The folder holds what sampling needs, as safetensors and JSON, and a card (README.md): what the model is, its
data, its scores with their protocol, the sample grid, the configuration, and the commands that sample and score it.
  generative export runs/cifar10-dit published/cifar10-dit --dtype float16 --license apache-2.0
  fid-score test/ runs/cifar10-dit --json scores.json && generative export runs/cifar10-dit published/dit --scores scores.json
  generative export runs/cifar10-edm2 published/edm2-0.1 --average denoiser-std-0.1
It is sampled, scored and loaded like a run, in float32 whatever it is stored in; `generative push` puts it on the hub."""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative export", "Write a run's pipeline as a slim folder with a model card.", EPILOG)
    add_source_argument(parser)
    parser.add_argument("output", metavar="OUT", type=Path, help="a new folder")
    add_wanted_flags(parser)
    given = vars(parser.parse_args(arguments))
    output, source = given.pop("output"), given.pop("source")
    if output.exists():
        raise UserError(f"output '{output}' is already there; choose another folder")
    from generative.core.checkpoint import write_folder
    from generative.report.publication import Publication

    publication = Publication(source, take_wanted(given))
    name = output.resolve().name
    write_folder(output, lambda folder: publication.fill(folder, name, name if output.is_absolute() else str(output)))
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"'{output}' holds the pipeline ({format_size(size)}) and its card, sample with `generative sample {output}`")
    return 0


def add_source_argument(parser: argparse.ArgumentParser) -> None:
    """Add what is published."""
    parser.add_argument("source", metavar="RUN", type=Path, help="runs/NAME, runs/NAME/checkpoint-STEP, or a pipeline folder")


def add_wanted_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what the published pipeline should be."""
    parser.add_argument(
        "--average", metavar="NAME", help="of a run that keeps several averages: another than the first, such as denoiser-std-0.1"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="precision of the stored weights (default float32)",
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="most bytes of a file of weights (default 5GB)")
    parser.add_argument("--license", default="unknown", metavar="ID", help="the hub's name of the licence, such as apache-2.0")
    parser.add_argument(
        "--scores",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="what fid-score --json or --csv wrote of this model, for the card; may be repeated (the run's own are there anyhow)",
    )


def take_wanted(given: dict[str, Any]) -> Wanted:
    """What the flags say, of parsed arguments."""
    from generative.report.publication import Wanted

    return Wanted(given["average"], given["dtype"], given["max_shard_size"], given["license"], tuple(given["scores"]))


def format_size(num_bytes: int) -> str:
    """A size in bytes, with its unit."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.3g} {unit}"
    return f"{num_bytes} bytes"
