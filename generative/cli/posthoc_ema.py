"""``generative posthoc-ema``: an average of any length after training, or a sweep over lengths (arXiv 2312.02696, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.cli.sweeps import (
    BATCH_SIZE,
    NUM_SAMPLES,
    SAMPLE_PRECISIONS,
    SCORING,
    add_sampling_flags,
    add_scoring_flags,
    check_at_least,
    check_output,
    read_sweep,
)
from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.cli.sweep_scorers import ReferenceScorer, RunScorer
    from generative.core.ema_snapshots import EMASnapshot
    from generative.core.runtime import Precision
    from pipelines.base import ImageGenerationPipeline

EPILOG = """A run that trains with power-function averages and trainer.ema_snapshot_interval_images keeps snapshots of them; this
command combines them to the average of another length, or of an earlier time, and writes it as a pipeline's folder:
  generative posthoc-ema runs/cifar10-edm2 --std 0.15
  generative sample runs/cifar10-edm2/posthoc-ema/std-0.15 --output samples/
  generative posthoc-ema runs/cifar10-edm2 --std 0.05 --images 61440 --output pipelines/guide

A sweep scores several lengths, with the evaluation of the run's own configuration or as `fid-score` does against --reference, and
writes posthoc-ema.json, .csv and .png, and the best average as its pipeline; repeated, it goes on where it was stopped:
  generative posthoc-ema runs/cifar10-edm2 --sweep 0.02..0.25 --num 8
  generative posthoc-ema runs/cifar10-edm2 --sweep 0.05,0.1,0.15 --reference data/cifar10/cifar10-test.parquet \\
    --num-samples 5000 --output curves/ema
The length that scores best was chosen by that score: report it with another --seed."""

METRICS = "fid"
COUNT = 8
FOLDER = "posthoc-ema"


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative posthoc-ema", "Make averages of other lengths from a run's EMA snapshots.", EPILOG)
    parser.add_argument("run", metavar="RUN", type=Path, help="runs/NAME, trained with trainer.ema_snapshot_interval_images")
    parser.add_argument("--std", type=float, metavar="S", help="relative standard deviation of the average, such as 0.05")
    parser.add_argument("--sweep", metavar="A..B|A,B,...", help="score several instead, such as 0.02..0.25")
    parser.add_argument("--num", type=int, metavar="N", help=f"lengths in a range A..B, evenly on a log axis (default {COUNT})")
    parser.add_argument(
        "--images", type=int, metavar="N", help="average as of so many training images (default: the last snapshot)"
    )
    parser.add_argument("--network", metavar="NAME", help="whose average, where snapshots are of several networks")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"default RUN/{FOLDER}/std-S, or RUN/{FOLDER}/sweep")
    parser.add_argument("--trust-code", action="store_true", help="allow the run's configuration to name classes of any module")
    scoring = parser.add_argument_group("sweep")
    scoring.add_argument(
        "--reference", type=Path, metavar="IMAGES|STATS.npz", help="real images, or statistics (default: the run's evaluation)"
    )
    add_sampling_flags(parser, of_run=True)
    add_scoring_flags(parser, METRICS)
    defaults = {name: parser.get_default(name) for name in SCORING}
    given = vars(parser.parse_args(arguments))
    check_choice(given, defaults)
    scoring_options = {name: given.pop(name) for name in SCORING}
    if given["sweep"] is None:
        return write_one(*(given[name] for name in ("run", "std", "images", "network", "output")))
    return sweep(scoring_options, **{name: value for name, value in given.items() if name != "std"})


def check_choice(given: Mapping[str, Any], scoring_defaults: Mapping[str, Any]) -> None:
    """Refuse flags that have no use beside the others.

    Raises:
        UserError: Naming the flag.
    """
    if (given["std"] is None) == (given["sweep"] is None):
        raise UserError("give either --std S, for one average, or --sweep A..B, which scores several")
    for name in ("reference", "num_samples", "seed", "batch_size", "device", "num", "mixed_precision"):
        if given["sweep"] is None and given[name] not in (None, "no"):
            raise UserError(f"--{name.replace('_', '-')} is of a sweep; give --sweep in place of --std, or leave it out")
    for name, value in scoring_defaults.items():
        if given[name] != value and given["reference"] is None:
            raise UserError(
                f"--{name.replace('_', '-')} describes scores against --reference; give one, or leave it out for the "
                "evaluation of the run"
            )
    if given["num"] is not None and ".." not in given["sweep"]:
        raise UserError("--num counts the lengths of a range; give --sweep A..B, or leave it out")


def write_one(run: Path, std: float, images: int | None, network: str | None, output: Path | None) -> int:
    """Write the pipeline of one average; returns the exit code."""
    from generative.core.checkpoint import write_folder
    from generative.core.logging import write_json
    from generative.core.posthoc_ema import solve

    snapshots = snapshots_of(run, network)
    coefficients, error = solve(snapshots, std, images)
    images = images or max(snapshot.images_seen for snapshot in snapshots)
    output = output or run / FOLDER / (f"std-{std:g}" + ("" if images == snapshots[-1].images_seen else f"-images-{images}"))
    check_output(output)
    facts_file = "posthoc_ema.json"
    if output.is_dir() and any(output.iterdir()) and not (output / facts_file).is_file():
        raise UserError(f"--output '{output}' is not empty and holds no average of ours; choose another folder")
    pipeline = with_average(load_run(run, snapshots), snapshots, coefficients, progress=True)
    facts = {
        "std": std,
        "images_seen": images,
        "profile_error": error,
        "coefficients": {
            f"{snapshot.path.parent.name}/{snapshot.path.name}": float(value)
            for snapshot, value in zip(snapshots, coefficients, strict=True)
        },
    }

    def fill(folder: Path) -> None:
        pipeline.save_pretrained(folder)
        write_json(folder / facts_file, facts)

    output.parent.mkdir(parents=True, exist_ok=True)
    write_folder(output, fill)
    print(
        f"'{output}' holds the pipeline of the average of std {std:g} at {images:,} images, made of {len(snapshots)} snapshots "
        f"(its profile is {error:.2%} off); sample with `generative sample {output}`"
    )
    return 0


def snapshots_of(run: Path, network: str | None) -> list[EMASnapshot]:
    """A run's snapshots of one network, oldest first.

    Raises:
        UserError: If there are none, or it is not clear of which network.
    """
    from generative.core.ema_snapshots import FOLDER as SNAPSHOTS
    from generative.core.ema_snapshots import list_snapshots

    if not run.is_dir():
        raise UserError(f"'{run}' does not exist; give a run (runs/NAME)")
    found = list_snapshots(run)
    if not found:
        raise UserError(
            f"'{run}' holds no EMA snapshots ('{SNAPSHOTS}'); train it with `ema` of generative.core.ema.PowerEMA and "
            "--trainer.ema_snapshot_interval_images N"
        )
    names = sorted({snapshot.network for snapshot in found})
    if network is None and len(names) > 1:
        raise UserError(f"'{run}' holds EMA snapshots of {', '.join(names)}; give one of them as --network")
    if network is not None and network not in names:
        raise UserError(f"'{run}' holds no EMA snapshots of a network '{network}'; it has {', '.join(names)}")
    return sorted(
        (snapshot for snapshot in found if snapshot.network == (network or names[0])),
        key=lambda snapshot: (snapshot.images_seen, snapshot.std),
    )


def load_run(run: Path, snapshots: Sequence[EMASnapshot]) -> ImageGenerationPipeline:
    """The run's pipeline, of which the network of the snapshots must be a part.

    Raises:
        UserError: If it is not.
    """
    from pipelines import load_pipeline

    pipeline = load_pipeline(run)
    name = snapshots[0].network
    if name not in pipeline.components:
        raise UserError(f"'{run}' holds EMA snapshots of '{name}', which is no part of its pipeline")
    return pipeline


def with_average(
    pipeline: ImageGenerationPipeline, snapshots: Sequence[EMASnapshot], coefficients: Any, progress: bool
) -> ImageGenerationPipeline:
    """Load a combination of snapshots into the pipeline's network, in place; returns the pipeline.

    Raises:
        UserError: If the snapshots are of another network.
    """
    from generative.core.posthoc_ema import reconstruct

    network = pipeline.components[snapshots[0].network]
    expected = network.state_dict()
    buffers = frozenset(expected) - {name for name, _ in network.named_parameters()}
    made = reconstruct(snapshots, coefficients, buffers, progress)
    wrong = sorted(set(made) ^ set(expected)) or [name for name in made if made[name].shape != expected[name].shape]
    if wrong:
        raise UserError(
            f"'{snapshots[0].path.parent}' holds snapshots of another network than the run's pipeline: '{wrong[0]}' is missing, "
            "unknown or of another shape"
        )
    network.load_state_dict(made)
    return pipeline


def sweep(
    scoring: dict[str, Any],
    run: Path,
    sweep: str,
    num: int | None,
    images: int | None,
    network: str | None,
    output: Path | None,
    trust_code: bool,
    reference: Path | None,
    num_samples: int | None,
    seed: int | None,
    batch_size: int | None,
    device: str | None,
    mixed_precision: Precision,
) -> int:
    """Score every length that the output does not hold yet, and write the curve after each; returns the exit code."""
    from generative.core.posthoc_ema import parse_stds, solve

    stds = parse_stds(sweep, COUNT if num is None else num)
    counts = {"--num-samples": (num_samples, 2), "--seed": (seed, 0), "--batch-size": (batch_size, 1)}
    check_at_least({flag: (value, least) for flag, (value, least) in counts.items() if value is not None})
    snapshots = snapshots_of(run, network)
    solved = {std: solve(snapshots, std, images) for std in stds}
    output = output or run / FOLDER / "sweep"
    check_output(output)
    from tqdm.auto import tqdm

    from generative.cli.sampling import move_pipeline
    from generative.cli.sweep_scorers import ReferenceScorer, RunScorer
    from generative.core.checkpoint import fingerprint_folder, write_folder
    from generative.core.logging import progress_interval
    from generative.core.runtime import build_accelerator
    from generative.report.posthoc import OPTION, SWEEP_FILE, format_sweep, write_files
    from pipelines import find_pipeline_folder

    scorer: RunScorer | ReferenceScorer
    if reference is None:
        scorer = RunScorer(run, trust_code, num_samples, seed, batch_size, mixed_precision)
    else:
        options = {
            **scoring,
            "num_samples": num_samples or NUM_SAMPLES,
            "seed": seed or 0,
            "batch_size": batch_size or BATCH_SIZE,
            "sample_precision": SAMPLE_PRECISIONS[mixed_precision],
        }
        scorer = ReferenceScorer(reference, {**options, "device": device}, output)
    settings = {
        "pipeline": fingerprint_folder(find_pipeline_folder(run)),
        "network": snapshots[0].network,
        "images": images or snapshots[-1].images_seen,
        "snapshots": [[snapshot.path.name, snapshot.std, snapshot.path.stat().st_size] for snapshot in snapshots],
        **scorer.settings,
    }
    flags = {"pipeline": "the pipeline", "network": "the network", "snapshots": "the snapshots", "evaluation": "the evaluation"}
    found = read_sweep(output / SWEEP_FILE, OPTION, settings, flags)
    pipeline = load_run(run, snapshots)
    accelerator = build_accelerator(mixed_precision)
    move_pipeline(pipeline, device, accelerator)
    missing = [std for std in stds if std not in [point[OPTION] for point in found["points"]]]
    is_main = accelerator.is_main_process
    bar = tqdm(missing, desc="lengths", unit="std", disable=not is_main, mininterval=progress_interval())
    for std in bar:
        coefficients, error = solved[std]
        with_average(pipeline, snapshots, coefficients, progress=is_main)
        record = scorer.score(pipeline, f"std-{std:g}", accelerator)
        found["points"].append({OPTION: std, "profile_error": error, "scores": record["scores"], "notes": record["notes"]})
        found.update({name: record[name] for name in ("reference", "protocol", "extractor")})
        if is_main:
            write_files(found, output)
            scores = ", ".join(f"{name} {value:.4f}" for name, value in record["scores"].items())
            tqdm.write(f"std {std:g}: {scores}")
    if is_main:
        write_files(found, output)  # an earlier command may have been stopped before the picture
        best = found["best"]
        if best is not None:
            place = output / "pipeline"
            coefficients, _ = solve(snapshots, best[OPTION], images)
            write_folder(place, with_average(pipeline, snapshots, coefficients, progress=False).save_pretrained)
        print(format_sweep(found), end="")
        print(
            f"'{output}' holds {SWEEP_FILE}, posthoc-ema.csv and posthoc-ema.png"
            + ("" if best is None else ", and the best pipeline")
        )
    accelerator.wait_for_everyone()
    return 0
