"""The files that a run writes: checked before any work, written when it ends, whatever of it succeeded."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from metrics.distributed import describe_error
from metrics.files.whole import check_writable
from metrics.options import JSON_TO_STDOUT, ScoreOptions
from metrics.scoring.report import Report, format_table, write_csv, write_json, write_plot

_FIGURES = ("--plot", "--sensitivity-map")
_FIGURE_FORMATS = (".png", ".pdf", ".svg", ".jpg")


def check_outputs(options: ScoreOptions) -> None:
    """Raise unless every file that the options name can be written.

    Raises:
        ValueError: If a name is no file name of its kind, names an input, or two flags name one file.
        OSError: If the file system refuses.
    """
    flags = {f"--{name.replace('_', '-')}": getattr(options, name) for name in ("json", "csv", "plot", "sensitivity_map")}
    taken = {Path(path).absolute(): "" for path in options.paths}
    for flag, name in flags.items():
        if name is None or name == JSON_TO_STDOUT:
            continue
        path = Path(name)  # Questions about it are os.path's: those of Path raise for names that are too long.
        if "\0" in str(name):
            raise ValueError(f"{flag} {str(name)!r} holds a NUL character: choose another name.")
        if os.path.isdir(path) or not path.suffix:
            raise ValueError(f"{flag} {path} must be a file name with an extension.")
        if flag in _FIGURES and path.suffix.lower() not in _FIGURE_FORMATS:
            raise ValueError(f"{flag} {path} must end with {', '.join(_FIGURE_FORMATS)}.")
        check_output(path, flag)
        other = taken.setdefault(path.absolute(), flag)
        if other != flag:
            fault = f"and {other} both name {path}" if other else f"{path} is an input of this run"
            raise ValueError(f"{flag} {fault}: choose another name.")


def check_output(path: Path, flag: str) -> None:
    """Raise unless a file can be written where ``flag`` says, in a folder that exists.

    Raises:
        ValueError: If the name cannot be that of a file.
        OSError: If its folder does not exist or refuses.
    """
    above = next((folder for folder in path.absolute().parents if os.path.exists(folder)), None)
    if above is not None and not os.path.isdir(above):
        raise NotADirectoryError(f"{flag} {path} lies below the file {above}: choose another name.")
    if not os.path.isdir(path.absolute().parent):
        raise FileNotFoundError(f"{flag} {path} lies in a folder that does not exist: make it first.")
    try:
        check_writable(path)
    except OSError as error:
        raise OSError(f"{flag} {path} can't be written ({error.strerror or error}): choose another name or folder.") from error


def publish(report: Report, options: ScoreOptions) -> None:
    """Print, then write the files: one that can't be written must not cost the numbers.

    Raises:
        OSError: If a file can't be written; the others are.
    """
    if options.json == JSON_TO_STDOUT:
        sys.stdout.write(json.dumps(report.record(), indent=2) + "\n")
    else:
        sys.stdout.write(format_table(report))
    write_files(report, options)


def write_files(report: Report, options: ScoreOptions) -> None:
    """Write the files that the options ask for.

    Raises:
        OSError: If one can't be written; the others are.
    """
    failures = []
    for name, write in ((options.json, write_json), (options.csv, write_csv), (options.plot, write_plot)):
        if name in (None, JSON_TO_STDOUT):
            continue
        try:
            write(report, Path(name))
        except OSError as error:
            failures.append(describe_error(error))
    if failures:
        raise OSError("; ".join(failures))
