"""``generative truncation-curve``: what a GAN's truncation buys and costs, FID against Inception Score (arXiv 1809.11096)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.cli.sweeps import (
    SAMPLE_PRECISIONS,
    add_sampling_flags,
    add_scoring_flags,
    check_at_least,
    check_output,
    precision_setting,
    read_sweep,
    reference_identity,
    score_pipeline,
    scoring_settings,
)
from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.core.runtime import Precision
    from pipelines.gan import GANImagePipeline

EPILOG = """A small threshold gives quality, a large one variety; FID sees both, the Inception Score quality above all. The output
folder gets curve.png (FID against IS, a point for each threshold, and both against the threshold), curve.csv and curve.json.
  generative truncation-curve runs/imagenet-biggan --reference imagenet.npz --standing-statistics 100 --output curves/biggan
  generative truncation-curve runs/digits-sagan --reference real/ --extractor efficientnet-lite0 --input-size 96 \\
      --num-samples 1000 --thresholds 0.3,0.6,1,2,none --output curves/digits
  torchrun --nproc-per-node 8 -m generative.cli.main truncation-curve runs/imagenet-biggan --reference imagenet.npz --output curve
Samples are not written: they are scored as `fid-score` does, with its protocols and networks (`fid-score --help`). An extractor
that is not inception-v3 gives a Frechet distance and a classifier score, which are called so. An interrupted command goes on
where it stopped when it is repeated, and further thresholds can be added; with other settings the folder is refused."""

THRESHOLDS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1,1.2,1.4,1.6,1.8,2,none"
METRICS = "fid,is"
STANDING_BATCH_SIZE = 64


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative truncation-curve", "Score a GAN at several truncations of its noise.", EPILOG)
    parser.add_argument(
        "folder", metavar="RUN_OR_PIPELINE_DIR", type=Path, help="runs/NAME, or a folder written by save_pretrained"
    )
    parser.add_argument("--reference", type=Path, required=True, metavar="IMAGES|STATS.npz", help="real images, or statistics")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the curve")
    parser.add_argument(
        "--thresholds", metavar="A,B,...,none", help=f"default {THRESHOLDS}, as far as the pipeline's batch norm has statistics"
    )
    parser.add_argument(
        "--standing-statistics",
        type=int,
        default=0,
        metavar="N",
        help="take batch-norm statistics anew at each threshold, over N "
        "batches (the BigGAN paper: 100); default 0, the pipeline's own",
    )
    parser.add_argument(
        "--standing-batch-size", type=int, metavar="N", help=f"images in each of those batches (default {STANDING_BATCH_SIZE})"
    )
    add_sampling_flags(parser)
    add_scoring_flags(parser, METRICS)
    return curve(**vars(parser.parse_args(arguments)))


def curve(
    folder: Path,
    reference: Path,
    output: Path,
    thresholds: str | None,
    num_samples: int,
    seed: int,
    standing_statistics: int,
    standing_batch_size: int | None,
    batch_size: int,
    device: str | None,
    mixed_precision: Precision,
    **scoring: Any,
) -> int:
    """Score every threshold that the output does not hold yet, and write the curve after each; returns the exit code."""
    wanted = parse_thresholds(thresholds or THRESHOLDS)
    standing = check_numbers(num_samples, seed, batch_size, standing_statistics, standing_batch_size)
    check_output(output)
    from generative.cli.sampling import move_pipeline
    from generative.core.checkpoint import fingerprint_folder
    from generative.core.runtime import build_accelerator
    from generative.report.truncation import CURVE_FILE, OPTION, format_curve, write_files
    from pipelines import find_pipeline_folder

    source = find_pipeline_folder(folder)
    pipeline = load_gan(folder)
    wanted = covered_thresholds(pipeline, wanted, is_default=thresholds is None, has_standing=standing[0] > 0)
    settings: dict[str, Any] = {
        "pipeline": fingerprint_folder(source),
        "truncation_law": pipeline.truncation_law,
        "reference": reference_identity(reference),
        "num_samples": num_samples,
        "seed": seed,
        "standing_statistics": list(standing) if standing[0] else None,
        **scoring_settings(scoring),
        **precision_setting(SAMPLE_PRECISIONS[mixed_precision]),
    }
    flags = dict.fromkeys(("pipeline", "truncation_law"), "the pipeline")
    found = read_sweep(output / CURVE_FILE, OPTION, settings, flags)
    accelerator = build_accelerator(mixed_precision)
    move_pipeline(pipeline, device, accelerator)
    missing = [threshold for threshold in wanted if threshold not in [point["threshold"] for point in found["points"]]]
    for threshold in missing:
        options = {**scoring, "num_samples": num_samples, "seed": seed, "batch_size": batch_size, "device": device}
        options["sample_precision"] = SAMPLE_PRECISIONS[mixed_precision]
        name = "threshold-none" if threshold is None else f"threshold-{threshold:g}"
        set_truncation(pipeline, threshold, standing, seed)
        record = score_pipeline(pipeline, output / ".sampling" / name, reference, options, accelerator)
        found["points"].append({"threshold": threshold, "scores": record["scores"], "notes": record["notes"]})
        found.update(reference=str(reference), protocol=record["protocol"], protocols=record["protocols"])
        if accelerator.is_main_process:
            write_files(found, output)
            scores = ", ".join(f"{name} {value:.4f}" for name, value in record["scores"].items())
            print(f"threshold {'none' if threshold is None else f'{threshold:g}'}: {scores}", flush=True)
    if accelerator.is_main_process:
        if not missing:
            write_files(found, output)  # an earlier command may have been stopped before the picture
        print(format_curve(found), end="")
        print(f"'{output}' holds curve.png, curve.csv and {CURVE_FILE}")
    return 0


def check_numbers(
    num_samples: int, seed: int, batch_size: int, standing_statistics: int, standing_batch_size: int | None
) -> tuple[int, int]:
    """Validate counts; returns number and size of the batches of standing statistics.

    Raises:
        UserError: Naming the flag whose number is too small.
    """
    if standing_batch_size is not None and standing_statistics == 0:
        raise UserError("--standing-batch-size is the batch of --standing-statistics N; give both or neither")
    standing = (standing_statistics, STANDING_BATCH_SIZE if standing_batch_size is None else standing_batch_size)
    check_at_least(
        {
            "--num-samples": (num_samples, 2),
            "--seed": (seed, 0),
            "--standing-statistics": (standing[0], 0),
            "--standing-batch-size": (standing[1], 1),
            "--batch-size": (batch_size, 1),
        }
    )
    return standing


def parse_thresholds(text: str) -> list[float | None]:
    """Positive numbers or ``none`` with commas between them, each once.

    Raises:
        UserError: If one is neither, or stands twice.
    """
    thresholds: list[float | None] = []
    for part in (part.strip() for part in text.split(",")):
        try:
            value = None if part == "none" else float(part)
        except ValueError:
            value = math.nan
        if value is not None and not (0 < value < math.inf):
            raise UserError(f"--thresholds takes positive numbers or none with commas between them, got '{part}'")
        if value in thresholds:
            raise UserError(f"--thresholds names {part} twice; name each threshold once")
        thresholds.append(value)
    return thresholds


def load_gan(folder: Path) -> GANImagePipeline:
    """Load a pipeline that has a truncation.

    Raises:
        UserError: If it is of another family.
    """
    from pipelines import load_pipeline
    from pipelines.gan import GANImagePipeline

    pipeline = load_pipeline(folder)
    if not isinstance(pipeline, GANImagePipeline):
        raise UserError(f"'{folder}' holds a {type(pipeline).__name__}, which has no truncation; give the run of a GAN")
    return pipeline


def covered_thresholds(
    pipeline: GANImagePipeline, thresholds: list[float | None], is_default: bool, has_standing: bool
) -> list[float | None]:
    """The thresholds, or those of the default list for which a generator with statistics by truncation has them.

    Raises:
        UserError: If such a generator is asked for another, or to take statistics anew.
    """
    from generative.gan.sampling import has_truncated_statistics
    from generative.layers.deep_blocks import FULL_TRUNCATION

    if not has_truncated_statistics(pipeline.generator):
        return thresholds
    if has_standing:
        raise UserError("the pipeline brings batch-norm statistics for each truncation; leave --standing-statistics out")
    covered: list[float | None] = [
        threshold for threshold in thresholds if threshold is not None and threshold <= FULL_TRUNCATION
    ]
    if covered != thresholds and not is_default:
        raise UserError(f"the pipeline's batch-norm statistics cover thresholds up to {FULL_TRUNCATION:g}; leave others out")
    return covered


def set_truncation(pipeline: GANImagePipeline, threshold: float | None, standing: tuple[int, int], seed: int) -> None:
    """Give the pipeline a threshold as its default, and batch-norm statistics of it if asked for.

    Runs on every process, to the same end: batch norm over all processes needs them all.
    """
    from generative.core.seeding import keyed_generator
    from generative.gan.sampling import take_standing_statistics

    num_batches, batch_size = standing
    if num_batches:
        # Statistics are replaced, not adapted: what an earlier threshold left in the network is of no account.
        random = keyed_generator(seed, "standing statistics")
        take_standing_statistics(pipeline.generator, num_batches, batch_size, random, threshold, pipeline.truncation_law)
    pipeline.register_to_config(sampling_defaults={**pipeline.sampling_defaults, "truncation": threshold})
