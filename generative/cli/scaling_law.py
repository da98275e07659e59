"""``generative scaling-law``: how the loss of a family of models falls with their size."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from generative.autoregressive.scaling_law import MIN_MODELS, PowerLaw, count_weights, fit_power_law
from generative.cli.arguments import CommandParser
from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.report.collect import Run

EPILOG = """Fits L = (beta N)^alpha by least squares of the logarithms (arXiv 2404.02905, section 5.2): picture, table, numbers.
  generative scaling-law runs/var-d2 runs/var-d4 runs/var-d6 runs/var-d8 --output scaling.png
  generative scaling-law runs/var-* --loss transformer/last_scale_loss --output last_scale.png
N counts the weights of the network that samples, without embeddings (of classes, codes, positions, levels) and output head.
L is the mean of the last tenth of the logged values: a training loss. The runs should have the same data, batch and length."""
COMPONENTS_NOT_COUNTED = ("tokenizer", "autoencoder")
DOTS_PER_INCH = 160
FIGURE_SIZE = (5.2, 4.0)
"""In inches."""
LAST_SHARE = 0.1


@dataclass(frozen=True)
class Point:
    """One model of the law.

    Attributes:
        run: Its name.
        size: N, see ``generative.autoregressive.scaling_law.count_weights``.
        loss: L.
        images_seen: Training images at the end.
    """

    run: str
    size: int
    loss: float
    images_seen: int


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative scaling-law", "Fit a power law of loss against size to several runs.", EPILOG)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help=f"at least {MIN_MODELS} runs of one family")
    parser.add_argument("--loss", metavar="NAME", help="a name in metrics.jsonl (default: the runs' PHASE/loss)")
    parser.add_argument(
        "--last", type=float, default=LAST_SHARE, metavar="SHARE", help=f"share of the log to average (default {LAST_SHARE})"
    )
    parser.add_argument("--output", type=Path, default=Path("scaling.png"), metavar="FILE.png", help="default scaling.png")
    given = parser.parse_args(arguments)
    if len(given.runs) < MIN_MODELS:
        raise UserError(f"a power law needs at least {MIN_MODELS} runs, got {len(given.runs)}")
    if not 0 < given.last <= 1:
        raise UserError(f"--last must be in (0, 1], got {given.last}")
    if given.output.suffix.lower() != ".png" or given.output.is_dir():
        raise UserError(f"--output '{given.output}' must be the name of a .png file; the table and the numbers are put beside it")
    return scaling_law(given.runs, given.loss, given.last, given.output)


def scaling_law(folders: Sequence[Path], loss: str | None, last: float, output: Path) -> int:
    """Fit, write and print; returns the exit code."""
    from generative.report.collect import collect_runs

    runs = collect_runs(folders)
    name = loss or common_loss(runs)
    points = sorted((read_point(found, name, last) for found in runs), key=lambda point: point.size)
    law = fit_power_law([point.size for point in points], [point.loss for point in points])
    write(points, law, name, last, output)
    width = max(len(point.run) for point in points)
    print(f"{'run':<{width}}  {'weights':>14}  {'images':>12}  {'loss':>9}  {'fit':>9}")
    for point in points:
        fitted = law.predict(point.size)
        print(f"{point.run:<{width}}  {point.size:>14,}  {point.images_seen:>12,}  {point.loss:9.5f}  {fitted:9.5f}")
    print(f"{name} = (beta N)^alpha: alpha {law.alpha:.4f}, beta {law.beta:.4g}, Pearson correlation {law.correlation:.4f}")
    if len({point.images_seen for point in points}) > 1:
        print("note: the runs saw different numbers of images, which a law of size alone does not know of")
    print(f"'{output}' holds the picture; beside it are {output.with_suffix('.csv').name} and {output.with_suffix('.json').name}")
    return 0


def common_loss(runs: Sequence[Run]) -> str:
    """The one ``PHASE/loss`` that all runs have logged.

    Raises:
        UserError: If there is none, or several.
    """
    common = [name for name in runs[0].loss_names if all(name in other.loss_names for other in runs)]
    if len(common) != 1:
        found = ", ".join(common) if common else "none"
        raise UserError(f"the runs must have one loss in common, and have {found}; name it with --loss")
    return common[0]


def read_point(found: Run, name: str, last: float) -> Point:
    """Size and final loss of a run.

    Raises:
        UserError: If it has no pipeline yet, or never logged the loss.
    """
    images, values = found.curve(name)
    if not values:
        known = ", ".join(found.loss_names) or "none"
        raise UserError(f"run '{found.path}' has logged no {name}; its losses are {known}")
    count = max(1, round(last * len(values)))
    return Point(found.name, run_size(found.path), sum(values[-count:]) / count, int(images[-1]))


def run_size(folder: Path) -> int:
    """N of the networks that sample, from the headers of a run's weight files.

    Raises:
        UserError: If there is no pipeline yet, or a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    files = [
        file
        for file in sorted((folder / "pipeline").glob("*/*.safetensors"))
        if not any(file.parent.name.startswith(name) for name in COMPONENTS_NOT_COUNTED)
    ]
    if not files:
        raise UserError(f"run '{folder}' holds no pipeline with weights; train it to its first checkpoint")
    shapes: dict[str, Sequence[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a dictionary
                    shapes[f"{file.parent.name}.{key}"] = tensors.get_slice(key).get_shape()
        except (OSError, SafetensorError) as error:
            raise UserError(f"'{file}' cannot be read: {' '.join(str(error).split())}") from error
    return count_weights(shapes)


def write(points: Sequence[Point], law: PowerLaw, name: str, last: float, output: Path) -> None:
    """Write picture, table and numbers, each whole or not at all."""
    from generative.core.logging import whole_file, write_json

    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(point) | {"fit": law.predict(point.size)} for point in points]
    found = {"loss": name, "last_share": last, "law": asdict(law) | {"beta": law.beta}, "models": rows}
    write_json(output.with_suffix(".json"), found)
    with (
        whole_file(output.with_suffix(".csv")) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(points, law, name, output)


def draw(points: Sequence[Point], law: PowerLaw, name: str, output: Path) -> None:
    """Loss against size, both on logarithmic axes, with the line of the law."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from generative.core.logging import whole_file
    from generative.report.figures import PALETTE
    from generative.report.sweeps import style_axes

    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = [point.size for point in points]
    axes.plot(sizes, [law.predict(size) for size in sizes], color=PALETTE[1], linestyle="--", linewidth=1.4)
    axes.plot(sizes, [point.loss for point in points], color=PALETTE[0], marker="o", markersize=5, linestyle="none")
    for point in points:
        axes.annotate(point.run, (point.size, point.loss), (6, 5), textcoords="offset points", fontsize=8, color="#3c4043")
    style_axes(axes)
    axes.margins(0.12)
    axes.set_xlabel("weights without embeddings and head, N")
    axes.set_ylabel(name)
    numbers = f"alpha {law.alpha:.3f}, beta {law.beta:.3g}, correlation {law.correlation:.3f}"
    axes.set_title(f"L = (beta N)^alpha: {numbers}", fontsize=9.5)
    with whole_file(output) as partial:
        FigureCanvasAgg(figure).print_figure(partial, format="png", dpi=DOTS_PER_INCH)
