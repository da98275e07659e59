"""What a run writes down: metrics.jsonl, evaluation.json, TensorBoard through Accelerate's trackers, and sample grids."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from torch import Tensor

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"


class RunLog:
    """The log of one run; only the main process writes.

    Args:
        run: Folder of the run.
        accelerator: Its trackers receive the same numbers.
        resume_step: Entries of later steps are dropped: the run repeats them.
    """

    def __init__(self, run: Path, accelerator: Accelerator, resume_step: int) -> None:
        self.path = run / METRICS_FILE
        self.accelerator = accelerator
        if accelerator.is_main_process:
            kept = [entry for entry in read_metrics(run) if entry["step"] <= resume_step] if resume_step else []
            partial = self.path.with_name(f".{METRICS_FILE}.partial")
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
            os.replace(partial, self.path)

    def write(self, step: int, images_seen: int, values: Mapping[str, Any]) -> None:
        """Append one entry and send its numbers to the trackers."""
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "images_seen": images_seen, **values}) + "\n")
        self.accelerator.log({k: v for k, v in values.items() if isinstance(v, (int, float))}, step=step)


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
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def save_grid(images: Tensor, path: Path, columns: int, min_tile: int = 32) -> None:
    """Write a grid of images as PNG.

    Args:
        images: (N, 3, H, W) uint8, row by row.
        path: Where to; written under a temporary name and renamed.
        columns: Images per row.
        min_tile: Small images are enlarged by a whole factor to at least this many pixels, without smoothing.
    """
    from torchvision.utils import make_grid

    factor = max(1, -(-min_tile // images.shape[-1]))
    large = images.cpu().repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    grid = make_grid(large, nrow=columns, padding=2, pad_value=128)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(partial, format="PNG")
    os.replace(partial, path)
