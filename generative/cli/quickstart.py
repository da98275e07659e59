"""``generative quickstart``: one small generator of each family on bundled digits, then one page with their grids and scores."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import yaml

from generative.cli.arguments import CommandParser
from generative.cli.config_files import find_config
from generative.cli.train import train
from generative.core.errors import UserError

CONFIGS = ("sagan", "dit", "transformer")

INTRO = (
    "One small class-conditional generator of each family, trained by the same trainer on the 1,297 training images of "
    "scikit-learn's digits (8x8 pixels, 10 classes) and scored by the same code against the 500 held-out ones."
)


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser(
        "generative quickstart",
        "Train a SAGAN, a DiT and a transformer over pixel tokens on bundled digits (nothing is downloaded), sample "
        "from them, score them against held-out images, and write OUTPUT/report.html. Repeated, it goes on where it stopped.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), metavar="DIR", help="default runs/quickstart")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        help="train for this share of the full length; 0.01 checks an installation in a minute or two, its samples are no digits",
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that already holds a quickstart")
    chosen = parser.parse_args(arguments)
    if not 0 < chosen.fraction <= 1:
        raise UserError(f"--fraction must be above 0 and at most 1, got {chosen.fraction}")
    return quickstart(chosen.output, chosen.seed, chosen.fraction, chosen.overwrite)


def quickstart(output: Path, seed: int, fraction: float, overwrite: bool) -> int:
    """Train, sample and score the three families, and write the page; returns the exit code."""
    started = time.perf_counter()
    command = shlex.join(["generative", "quickstart", "--output", str(output), "--seed", str(seed)])  # --overwrite would delete.
    command += f" --fraction {fraction}" if fraction != 1 else ""
    runs = [output / name for name in CONFIGS]
    for number, (name, folder) in enumerate(zip(CONFIGS, runs, strict=True), start=1):
        print(f"[{number}/{len(CONFIGS)}] {name}: training, sampling and scoring in '{folder}'")
        path = find_config(f"digits/{name}")
        overrides = ["--seed", str(seed), "--trainer.output_dir", str(folder), *shortened(path, fraction)]
        code = train(path, overrides, resume=None if overwrite else "auto", overwrite=overwrite, go_on=f"`{command}`")
        if code:
            return code

    from generative.report.page import write_report

    page = write_report(runs, output / "report.html", title="Triptych quickstart", intro=INTRO)
    print(f"finished in {(time.perf_counter() - started) / 60:.1f} minutes; open '{page}'")
    return 0


def shortened(path: Path, fraction: float) -> list[str]:
    """Overrides that train for a share of a configuration's length and score fewer samples, as often as in the whole.

    The whole is given too: a run that goes on keeps its own length, which may have been another share.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = content["trainer"]
    num_samples = content["evaluation"]["init_args"]["num_samples"]
    overrides = ["--evaluation.init_args.num_samples", str(max(50, int(num_samples * fraction)))]
    overrides += ["--trainer.total_images", str(max(settings["batch_size"], int(settings["total_images"] * fraction)))]
    for name in ("evaluate_interval_steps", "sample_interval_steps", "log_interval_steps"):
        overrides += [f"--trainer.{name}", str(max(1, int(settings[name] * fraction)))]
    return overrides
