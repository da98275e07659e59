"""What the commands that score samples along one option have in common: flags, settings, going on, and scoring of a point."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.core.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipelines.base import ImageGenerationPipeline

NUM_SAMPLES = 50_000
"""Samples of published FIDs."""
BATCH_SIZE = 50
#: What ``fid-score --sample-precision`` calls them.
SAMPLE_PRECISIONS = {"no": None, "bf16": "bfloat16", "fp16": "float16"}
SCORING = ("metrics", "protocol", "extractor", "weights", "input_size")
"""Flags of ``add_scoring_flags``."""


def add_sampling_flags(parser: argparse.ArgumentParser, of_run: bool = False) -> None:
    """Flags of how many images are sampled at each point, and how.

    Args:
        parser: The command's.
        of_run: Where the command may take a run's evaluation: flags that are not given are None, for its values.
    """
    number, seed, batch_size = (None, None, None) if of_run else (NUM_SAMPLES, 0, BATCH_SIZE)
    ours = "default: the run's evaluation's, or " if of_run else "default "
    parser.add_argument("--num-samples", type=int, default=number, metavar="N", help=f"at each ({ours}{NUM_SAMPLES:,})")
    parser.add_argument("--seed", type=int, default=seed, help=f"of the samples, the same at every point ({ours}0)")
    parser.add_argument("--batch-size", type=int, default=batch_size, metavar="N", help=f"images at a time ({ours}{BATCH_SIZE})")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: CUDA where there is one)")
    parser.add_argument(
        "--mixed-precision",
        choices=tuple(SAMPLE_PRECISIONS),
        default="no",
        help="autocast of the networks that sample (default no: float32)",
    )


def add_scoring_flags(parser: argparse.ArgumentParser, metrics: str) -> None:
    """Flags of ``fid-score`` that a sweep takes, a group of their own.

    Args:
        parser: The command's.
        metrics: Default of ``--metrics``.
    """
    scoring = parser.add_argument_group("scoring, as in fid-score")
    scoring.add_argument("--metrics", default=metrics, metavar="LIST", help=f"default {metrics}; others are drawn as well")
    scoring.add_argument("--protocol", help="whose resize and rules (default: clean-fid's)")
    scoring.add_argument("--extractor", default="inception-v3", metavar="NAME", help="feature network (default inception-v3)")
    scoring.add_argument("--weights", metavar="FILE", help="its weights; default: packaged, or a verified download")
    scoring.add_argument("--input-size", type=int, metavar="PX", help="side that images are brought to, if the network lets you")


def check_at_least(limits: Mapping[str, tuple[int, int]]) -> None:
    """Refuse numbers that are too small.

    Args:
        limits: Value and least value by flag.

    Raises:
        UserError: Naming the flag.
    """
    for name, (value, least) in limits.items():
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")


def check_output(output: Path) -> None:
    """Raise ``UserError`` where a file stands in the place of the folder to write."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output '{output}' is a file; give a folder")


def scoring_settings(scoring: Mapping[str, Any]) -> dict[str, Any]:
    """What scores depend on besides reference and samples, as a sweep records it: weights by their content.

    Raises:
        UserError: If the file of the weights is not there.
    """
    weights = scoring["weights"]
    return {**scoring, "weights": None if weights is None else file_digest(Path(weights))}


def precision_setting(precision: str | None) -> dict[str, str]:
    """What a sweep records of the precision of sampling: nothing of float32, as before there was a choice."""
    return {} if precision is None else {"mixed_precision": precision}


def reference_identity(path: Path) -> str:
    """What the reference holds: images by their encoded bytes, names and labels, statistics by their bytes.

    Raises:
        UserError: If it is neither.
    """
    from metrics.scoring.image_sets import OpenOptions, open_image_set
    from metrics.sources.base import fingerprint

    try:
        images = open_image_set(path, OpenOptions()).images
        if images is None:
            return file_digest(path)
        return fingerprint([images.identity(), *images.contents(0, len(images), num_workers=4)])
    except FileNotFoundError as error:
        raise UserError(f"--reference '{path}' does not exist; give images or statistics") from error
    except ValueError as error:
        raise UserError(f"--reference: {error}") from error


def file_digest(path: Path) -> str:
    """sha256 of a file, 16 hexadecimal digits.

    Raises:
        UserError: If there is no such file.
    """
    import hashlib

    if not path.is_file():
        raise UserError(f"'{path}' does not exist or is no file; give the file of the weights")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_sweep(path: Path, option: str, settings: Mapping[str, Any], flags: Mapping[str, str]) -> dict[str, Any]:
    """The points that an earlier command left, or none.

    Args:
        path: JSON file of the sweep, in a folder of its own.
        option: Name under which a point holds its value.
        settings: What the sweep is made with.
        flags: What settings are called that are no flags of their own name.

    Returns:
        ``settings`` and ``points``, and what else the file holds.

    Raises:
        UserError: If it was made with other settings, or the folder holds something else.
    """
    output = path.parent
    if not path.exists():
        if output.is_dir() and any(not entry.name.startswith(".") for entry in output.iterdir()):
            raise UserError(f"--output '{output}' is not empty and holds no curve of ours; choose another folder")
        return {"settings": dict(settings), "points": []}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        before = found["settings"]
        [(point[option], point["scores"], point["notes"]) for point in found["points"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is damaged; move it away or choose another --output") from error
    for name in settings:
        if before.get(name) != settings[name]:
            flag = flags.get(name, f"--{name.replace('_', '-')}")
            raise UserError(
                f"--output '{output}' holds a curve of other settings: {flag} was {before.get(name)}, now {settings[name]}; "
                "choose another folder"
            )
    return found


@contextmanager
def saved_for_scoring(pipeline: ImageGenerationPipeline, place: Path, accelerator: Accelerator) -> Iterator[Path]:
    """A pipeline's folder while it is scored, written by the main process and deleted afterwards.

    Args:
        pipeline: What the point samples with, its options as defaults.
        place: The folder, in one whose name begins with a dot.
        accelerator: Its processes wait for the folder.
    """
    if accelerator.is_main_process:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        pipeline.save_pretrained(place)
    accelerator.wait_for_everyone()
    try:
        yield place
    finally:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(place.parent, ignore_errors=True)


def score_pipeline(
    pipeline: ImageGenerationPipeline, place: Path, reference: Path, options: Mapping[str, Any], accelerator: Accelerator
) -> dict[str, Any]:
    """Score samples of a pipeline; every process gets the record of ``metrics.score``.

    The pipeline is saved, and scored as any other: what fid-score does of caching, sharing over processes and naming of protocols
    holds here too.

    Args:
        pipeline: The pipeline.
        place: See ``saved_for_scoring``.
        reference: Real images, or statistics.
        options: Options of ``metrics.score``.
        accelerator: Its processes share the work.

    Raises:
        UserError: If an option does not fit.
    """
    from metrics import score

    weights = options["weights"]
    with saved_for_scoring(pipeline, place, accelerator) as folder:
        try:
            return score(folder, reference, **{**options, "quiet": False, "weights": [] if weights is None else [weights]})
        except UserError:
            raise
        except (ValueError, FileNotFoundError) as error:
            # The metrics package stands alone and has no error of its own for wrong input.
            raise UserError(str(error)) from error
