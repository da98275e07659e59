"""What a run writes down: metrics.jsonl, evaluation.json, sample grids, and the same for Accelerate's trackers."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from generative.core.errors import UserError

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
DATA_FILE = "data.json"
FEATURES_FOLDER = "evaluation-features"
"""Where an evaluation keeps features of samples until it is done."""

SAMPLES_FOLDER = "samples"
"""Where a run keeps its grids."""

TENSORBOARD = "tensorboard"
"""Name of the tracker that keeps its files in the run's folder."""
SINGLE_IMAGES = ("aim", "clearml")
"""Trackers that take one image to a name; the others take a list."""

GRID_PADDING = 2
"""Width of the lines between the images of a grid, in pixels."""
GRID_GREY = 128
"""Their grey level, in [0, 255]."""
ROW_NAMES_WIDTH = "row names width"
ROW_NAME_SIZE = 14
ROW_NAME_MARGIN = 6
"""Pixels at each side of a row's name."""
MAX_ROW_NAME = 24
"""Characters of a row's name."""


def progress_interval() -> float:
    """Seconds between redraws of a progress bar: rare where standard error is a file and every redraw a new line."""
    return 0.2 if sys.stderr.isatty() else 30.0


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: inside, write to the temporary path given; it is renamed at the end.

    A full disk, or whatever else stops the writing, leaves the old file, if there was one, and nothing half-written. An error of
    the system that names no file gets the file's name.
    """
    if path.name in ("", ".."):
        raise UserError(f"'{path}' is a folder; give the name of a file")
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        name_file(error, path)
        raise


def name_file(error: BaseException, path: Path) -> None:
    """Let an error of the system that names no file, as one of a write does not, say which one was being written."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = os.fspath(path)


class RunLog:
    """The log of one run; only the main process writes.

    Args:
        run: Folder of the run.
        accelerator: Its trackers receive the same numbers.
        resume_step: Entries of later steps are dropped: the run repeats them.

    Attributes:
        evaluated_steps: Steps whose evaluation is in the log, the same on every process.
        kept: Entries of before this process began, oldest first.
    """

    def __init__(self, run: Path, accelerator: Accelerator, resume_step: int) -> None:
        self.path = run / METRICS_FILE
        self.accelerator = accelerator
        self.kept = [entry for entry in read_metrics(run) if entry["step"] <= resume_step] if resume_step else []
        self.evaluated_steps = {entry["step"] for entry in self.kept if any(key.startswith("evaluation/") for key in entry)}
        hush_tracker_threads()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with whole_file(self.path) as partial:
                partial.write_text("".join(json.dumps(entry) + "\n" for entry in self.kept))

    def write(self, step: int, images_seen: int, values: Mapping[str, Any], notes: Sequence[Mapping[str, Any]] = ()) -> None:
        """Append one entry, with entries that go with it, in one piece; send its numbers to the trackers."""
        if any(key.startswith("evaluation/") for key in values):
            self.evaluated_steps.add(step)
        if not self.accelerator.is_main_process:
            return
        entries = [{"step": step, "images_seen": images_seen, **entry} for entry in (values, *notes)]
        try:
            with self.path.open("a") as file:
                file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        except OSError as error:
            name_file(error, self.path)
            raise
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        if numbers:
            self.accelerator.log(numbers, step=step)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Entries of a run's metrics.jsonl, oldest first; what is none (cut short by a kill, damaged, foreign) is left out."""
    path = run / METRICS_FILE
    if not path.is_file():
        return []
    entries = (parse_entry(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [entry for entry in entries if entry is not None]


def read_real_scores(run: Path, protocol: Mapping[str, Any]) -> dict[str, float] | None:
    """Scores of real images that ``evaluation.json`` holds under a protocol, whatever its sampling; None if it has none."""
    try:
        stored = json.loads((run / EVALUATION_FILE).read_text())
        before, now = ({**json.loads(json.dumps(each)), "sampling": None} for each in (stored["protocol"], protocol))
        real = stored["real_scores"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    is_sound = isinstance(real, dict) and all(isinstance(value, (int, float)) for value in real.values())
    return real if is_sound and before == now else None


def parse_entry(line: str) -> dict[str, Any] | None:
    """The entry that a line of metrics.jsonl holds, or None."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not all(type(entry.get(count)) is int for count in ("step", "images_seen")):
        return None
    return entry


def hush_tracker_threads() -> None:
    """Print no traceback for what fails in TensorBoard's writing thread: the next entry raises it in the main one."""
    inner = threading.excepthook
    if getattr(inner, "is_hushed", False):
        return

    def hook(arguments: threading.ExceptHookArgs) -> None:
        is_tracker = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (is_tracker and isinstance(arguments.exc_value, OSError)):
            inner(arguments)

    hook.is_hushed = True  # type: ignore[attr-defined]
    threading.excepthook = hook


def log_image(accelerator: Accelerator, name: str, image: Image.Image, step: int) -> None:
    """Send an image to those trackers that show images."""
    pixels = np.asarray(image)  # (H, W, 3) uint8
    for tracker in accelerator.trackers:
        if tracker.name == TENSORBOARD:
            tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({name: pixels if tracker.name in SINGLE_IMAGES else [pixels]}, step=step)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def grid_image(images: Tensor, columns: int, min_tile: int = 32, row_names: Sequence[str] | None = None) -> Image.Image:
    """Lay images out as a grid on grey.

    Args:
        images: (N, 3, H, W) uint8, row by row.
        columns: Images per row.
        min_tile: Small images are enlarged by a whole factor to at least this many pixels, without smoothing.
        row_names: What to write at the left of each row, cut where it is long; None leaves no margin for it.
    """
    from torchvision.utils import make_grid

    factor = max(1, -(-min_tile // images.shape[-1]))
    large = images.cpu().repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    grid = Image.fromarray(make_grid(large, nrow=columns, padding=GRID_PADDING, pad_value=GRID_GREY).permute(1, 2, 0).numpy())
    return grid if row_names is None else with_row_names(grid, row_names, large.shape[-2] + GRID_PADDING)


def with_row_names(grid: Image.Image, row_names: Sequence[str], row_height: int) -> Image.Image:
    """A grid behind a margin with a name at the middle of each row; the margin's width is in ``info[ROW_NAMES_WIDTH]``."""
    font = ImageFont.load_default(ROW_NAME_SIZE)
    names = [" ".join(name.split()) for name in row_names]
    names = [name if len(name) <= MAX_ROW_NAME else name[: MAX_ROW_NAME - 3] + "..." for name in names]
    width = math.ceil(max((font.getlength(name) for name in names), default=0)) + 2 * ROW_NAME_MARGIN
    result = Image.new("RGB", (width + grid.width, grid.height), (GRID_GREY,) * 3)
    result.paste(grid, (width, 0))
    draw = ImageDraw.Draw(result)
    for row, name in enumerate(names):
        middle = GRID_PADDING + row * row_height + (row_height - GRID_PADDING) / 2
        shown = name.encode(errors="backslashreplace").decode()  # a folder's name need not be text
        draw.text((width - ROW_NAME_MARGIN, middle), shown, fill="white", font=font, anchor="rm")
    result.info[ROW_NAMES_WIDTH] = str(width)
    return result


def save_grid(
    images: Tensor, path: Path, columns: int, min_tile: int = 32, row_names: Sequence[str] | None = None
) -> Image.Image:
    """Write a grid of images as PNG; returns it.

    Args:
        images: (N, 3, H, W) uint8, row by row.
        path: Where to; written under a temporary name and renamed.
        columns: Images per row.
        min_tile: See ``grid_image``.
        row_names: See ``grid_image``; the width of their margin is in the file, as a text of key ``ROW_NAMES_WIDTH``.
    """
    grid = grid_image(images, columns, min_tile, row_names)
    notes = PngInfo()
    if ROW_NAMES_WIDTH in grid.info:
        notes.add_text(ROW_NAMES_WIDTH, grid.info[ROW_NAMES_WIDTH])
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        grid.save(partial, format="PNG", pnginfo=notes)
    return grid
