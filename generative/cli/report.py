"""``generative report``: write a page with grids, curves and scores of runs."""

from __future__ import annotations

from pathlib import Path

from generative.cli.arguments import CommandParser

EPILOG = """The page is one HTML file with everything inside it: open it in a browser, keep it with the runs, send it by mail.
  generative report runs/digits-dit runs/digits-sagan --output runs/report.html
  generative report runs/cifar --title "DiT-S on CIFAR-10" --class-names plane,car,bird,cat,deer,dog,frog,horse,ship,truck
A run in progress can be reported on: what it has not written yet is named on the page. Scores compare only between runs
that were evaluated under the same protocol; runs under another one get a group of rows of their own.
Beside the scores: every score and loss of all runs in one plot, by training images seen and by time; sample grids over
training; images per second, waiting for data, MFU and memory where they were logged; the settings that differ."""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative report", "Write a page with the scores, sample grids and curves of runs.", EPILOG)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="folder of a run, as `generative train` wrote it; several are compared"
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE.html", help="default report.html")
    parser.add_argument("--title", default=None, help="heading of the page (default: the names of the runs)")
    parser.add_argument("--intro", default="", metavar="TEXT", help="a paragraph under the heading")
    parser.add_argument(
        "--class-names", default=None, metavar="A,B,C", help="names of the classes, in order (default: the data's)"
    )
    given = parser.parse_args(arguments)
    return report(given.runs, given.output, given.title, given.intro, given.class_names)


def report(runs: list[Path], output: Path, title: str | None, intro: str, class_names: str | None) -> int:
    """Write the page and say where it is; returns the exit code."""
    from generative.report.page import write_report

    if title is None:
        title = "Generated images: " + ", ".join(path.resolve().name for path in runs)
    names = [name.strip() for name in class_names.split(",")] if class_names else None
    print(f"'{write_report(runs, output, title, intro, class_names=names)}' holds the report; open it in a browser")
    return 0
