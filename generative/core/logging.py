"""What a run writes down: metrics.jsonl, evaluation.json, TensorBoard through Accelerate's trackers, and sample grids."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from torch import Tensor

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"


def progress_interval() -> float:
    """Seconds between redraws of a progress bar: rare where standard error is a file and every redraw a new line."""
    return 0.2 if sys.stderr.isatty() else 30.0


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: inside, write to the temporary path given; it is renamed at the end.

    A full disk leaves the old file, if there was one, and nothing half-written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


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
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with whole_file(self.path) as partial:
                partial.write_text("".join(json.dumps(entry) + "\n" for entry in self.kept))

    def write(self, step: int, images_seen: int, values: Mapping[str, Any]) -> None:
        """Append one entry and send its numbers to the trackers."""
        if any(key.startswith("evaluation/") for key in values):
            self.evaluated_steps.add(step)
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "images_seen": images_seen, **values}) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        if numbers:
            self.accelerator.log(numbers, step=step)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Entries of a run's metrics.jsonl, oldest first; a last line cut short by a kill is passed over."""
    path = run / METRICS_FILE
    entries: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return entries


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def grid_image(images: Tensor, columns: int, min_tile: int = 32) -> Image.Image:
    """Lay images out as a grid on grey.

    Args:
        images: (N, 3, H, W) uint8, row by row.
        columns: Images per row.
        min_tile: Small images are enlarged by a whole factor to at least this many pixels, without smoothing.
    """
    from torchvision.utils import make_grid

    factor = max(1, -(-min_tile // images.shape[-1]))
    large = images.cpu().repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    return Image.fromarray(make_grid(large, nrow=columns, padding=2, pad_value=128).permute(1, 2, 0).numpy())


def save_grid(images: Tensor, path: Path, columns: int, min_tile: int = 32) -> None:
    """Write a grid of images as PNG.

    Args:
        images: (N, 3, H, W) uint8, row by row.
        path: Where to; written under a temporary name and renamed.
        columns: Images per row.
        min_tile: See ``grid_image``.
    """
    grid = grid_image(images, columns, min_tile)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        grid.save(partial, format="PNG")
