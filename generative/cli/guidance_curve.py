"""``generative guidance-curve``: what each kind of guidance buys and costs, distance, precision and recall against its scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.cli.guidance_curves import UNGUIDED, Curve, make_curves, parse_guides, parse_scales
from generative.cli.guidance_points import Study, with_networks
from generative.cli.option_flags import add_option_flags, chosen_options
from generative.cli.sweeps import (
    SAMPLE_PRECISIONS,
    SCORING,
    add_sampling_flags,
    add_scoring_flags,
    check_at_least,
    check_output,
    read_sweep,
)
from generative.core.errors import UserError
from generative.diffusion.options import DiffusionOptions

if TYPE_CHECKING:
    from generative.core.runtime import Precision
    from pipelines.diffusion import DiffusionImagePipeline

EPILOG = """Curves, as far as networks for them are there: classifier-free, interval (with --interval), classifier (with
--classifier), and one for each --guide: autoguidance away from a weaker network, or what NAME says. 1 is no guidance in all; a
classifier's factor is one less than its scale. The output folder gets guidance.json, .csv and .png.
  generative guidance-curve runs/cifar10-dit --reference test.npz --extractor resnet9 --num-samples 10000 --output curve
  generative guidance-curve runs/cifar10-dit --scales 1,1.25,1.5,2,3 --interval 0.2,0.8 --classifier runs/classifier \\
      --guide runs/cifar10-dit/checkpoint-00002000 --guide sims=runs/cifar10-dit-selfimprove --reference test.npz --output curve
Scales that are chosen by the images that score them flatter: with --selection-reference the sweep is scored on those images, and
only the scale of least distance of each curve on --reference, from other seeds:
  generative guidance-curve RUN --selection-reference val.npz --selection-seed 1 --reference test.npz --seed 0 --output curve
An interrupted command goes on where it stopped, and further scales and curves can be added; with other settings the folder is
refused. --num-inference-steps and other options of sampling hold for all curves."""

SCALES = "1,1.25,1.5,2,3,4"
METRICS = "fid,prc"
MOST_SHARED = 0.01
"""Share of images that a reference of selection may have in common with that of scoring: data sets hold some images twice."""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative guidance-curve", "Score a diffusion under several kinds and scales of guidance.", EPILOG)
    parser.add_argument("folder", metavar="RUN_OR_PIPELINE_DIR", type=Path, help="runs/NAME, a checkpoint or a pipeline folder")
    parser.add_argument("--reference", type=Path, required=True, metavar="IMAGES|STATS.npz", help="real images, or statistics")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the curves")
    parser.add_argument("--scales", default=SCALES, metavar="A,B,...", help=f"of every curve (default {SCALES})")
    parser.add_argument("--curves", metavar="NAME,...", help="some of the curves (default: all that there can be)")
    parser.add_argument("--interval", metavar="LOW,HIGH", help="noise levels of the curve interval, such as 0.2,0.8")
    parser.add_argument(
        "--guide", action="append", default=[], metavar="[NAME=]RUN_OR_FOLDER", help="a weaker denoiser; may be repeated"
    )
    parser.add_argument("--classifier", type=Path, metavar="RUN_OR_FOLDER", help="a classifier of noised samples")
    parser.add_argument("--selection-reference", type=Path, metavar="IMAGES|STATS.npz", help="real images that choose the scales")
    parser.add_argument("--selection-seed", type=int, metavar="N", help="of the samples that choose (default: --seed plus 1)")
    add_sampling_flags(parser)
    add_scoring_flags(parser, METRICS)
    add_option_flags(parser, [DiffusionOptions])
    given = vars(parser.parse_args(arguments))
    options = chosen_options(given, [DiffusionOptions])
    for name in UNGUIDED:
        if name in options:
            raise UserError(f"--{name.replace('_', '-')} is what the curves vary; give --scales, or --interval")
    scoring = {name: given.pop(name) for name in SCORING}
    return sweep(options, scoring, **given)


def sweep(
    options: dict[str, Any],
    scoring: dict[str, Any],
    folder: Path,
    reference: Path,
    output: Path,
    scales: str,
    curves: str | None,
    interval: str | None,
    guide: list[str],
    classifier: Path | None,
    selection_reference: Path | None,
    selection_seed: int | None,
    num_samples: int,
    seed: int,
    batch_size: int,
    device: str | None,
    mixed_precision: Precision,
) -> int:
    """Score every point that the output does not hold yet, and keep each as it comes; returns the exit code."""
    wanted, guides = parse_scales(scales), parse_guides(guide)
    check_at_least({"--num-samples": (num_samples, 2), "--seed": (seed, 0), "--batch-size": (batch_size, 1)})
    check_output(output)
    selection_seed = check_selection(selection_reference, selection_seed, seed)
    from generative.cli.sampling import move_pipeline
    from generative.cli.sweep_scorers import ReferenceScorer
    from generative.core.checkpoint import fingerprint_folder
    from generative.core.runtime import build_accelerator
    from generative.report.guidance import CURVE_FILE, PICTURE_FILE, format_curves
    from pipelines import find_pipeline_folder

    pipeline = load_diffusion(folder)
    names = None if curves is None else [name.strip() for name in curves.split(",")]
    drawn = make_curves(pipeline, guides, classifier, parse_interval(interval), names)
    base = pipeline.merge_options(options | UNGUIDED).to_dict()
    for curve in drawn:
        with_networks(pipeline, curve, base, wanted[-1]).check_options()
    common = {**scoring, "num_samples": num_samples, "batch_size": batch_size, "device": device}
    common["sample_precision"] = SAMPLE_PRECISIONS[mixed_precision]
    scorers = {"scoring": ReferenceScorer(reference, {**common, "seed": seed}, output)}
    if selection_reference is not None:
        check_disjoint(reference, selection_reference)
        scorers["selection"] = ReferenceScorer(selection_reference, {**common, "seed": selection_seed}, output)
    settings = {
        "pipeline": fingerprint_folder(find_pipeline_folder(folder)),
        "options": base,
        **scorers["scoring"].settings,
        "selection_reference": scorers["selection"].settings["reference"] if "selection" in scorers else None,
        "selection_seed": selection_seed,
    }
    flags = {"pipeline": "the pipeline", "options": "an option of sampling"}
    found = read_sweep(output / CURVE_FILE, "scale", settings, flags)
    register_curves(found, drawn, output)
    accelerator = build_accelerator(mixed_precision)
    move_pipeline(pipeline, device, accelerator)
    study = Study(pipeline, base, scorers, found, output, accelerator)
    study.draw(drawn, wanted)
    if accelerator.is_main_process:
        print(format_curves(found), end="")
        print(f"'{output}' holds {CURVE_FILE}, guidance.csv and {PICTURE_FILE}")
    return 0


def check_selection(reference: Path | None, selection_seed: int | None, seed: int) -> int | None:
    """Seed of the samples that choose; None where nothing is chosen.

    Raises:
        UserError: If the flags contradict one another.
    """
    if reference is None:
        if selection_seed is not None:
            raise UserError("--selection-seed is of the samples that choose scales; add --selection-reference")
        return None
    chosen = seed + 1 if selection_seed is None else selection_seed
    check_at_least({"--selection-seed": (chosen, 0)})
    if chosen == seed:
        raise UserError(f"--selection-seed and --seed are both {seed}; what chooses a scale must not score it, give another")
    return chosen


def check_disjoint(reference: Path, selection: Path) -> None:
    """Refuse to choose by the images that score.

    Raises:
        UserError: If the two are the same, or share more images than data sets hold twice.
    """
    from generative.cli.sweeps import reference_identity
    from metrics.scoring.image_sets import OpenOptions, open_image_set

    if reference_identity(reference) == reference_identity(selection):
        raise UserError(f"--selection-reference '{selection}' holds the images of --reference; choose scales by others")
    images = [open_image_set(path, OpenOptions()).images for path in (reference, selection)]
    if any(each is None for each in images):
        return  # statistics do not tell their images
    digests = [{digest for _, digest in each.contents(0, len(each), num_workers=4)} for each in images if each is not None]
    shared = len(digests[0] & digests[1])
    if shared > MOST_SHARED * min(map(len, digests)):
        raise UserError(
            f"--selection-reference '{selection}' shares {shared:,} images with --reference; choose scales by others than score"
        )


def load_diffusion(folder: Path) -> DiffusionImagePipeline:
    """Load a pipeline that can be guided.

    Raises:
        UserError: If it is of another family.
    """
    from pipelines import load_pipeline
    from pipelines.diffusion import DiffusionImagePipeline

    pipeline = load_pipeline(folder)
    if not isinstance(pipeline, DiffusionImagePipeline):
        raise UserError(f"'{folder}' holds a {type(pipeline).__name__}, and guidance-curve is for diffusions and flows")
    return pipeline


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """Two numbers with a comma between them.

    Raises:
        UserError: If they are no interval within [0, 1].
    """
    if text is None:
        return None
    from generative.core.guidance import is_interval

    try:
        ends = tuple(float(part) for part in text.split(","))
    except ValueError:
        ends = ()
    if not is_interval(ends):
        raise UserError(f"--interval must be two numbers with 0 <= low < high <= 1, got '{text}'")
    return ends[0], ends[1]


def register_curves(found: dict[str, Any], curves: list[Curve], output: Path) -> None:
    """Add curves to those of an earlier command.

    Raises:
        UserError: If one of the same name was of another network or other options.
    """
    known = found.setdefault("curves", {})
    for curve in curves:
        if known.setdefault(curve.name, curve.record()) != curve.record():
            raise UserError(
                f"--output '{output}' holds a curve '{curve.name}' of another network or interval; choose another folder or name"
            )
