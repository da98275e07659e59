"""Run folders as the trainer writes them, with made-up numbers."""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from generative.core.logging import save_grid

PROTOCOL = {
    "extractor": "efficientnet-lite0",
    "weights_sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "input_size": 96,
    "resizer": "clean",
    "normalization": "(x - 127.5) / 127.5",
    "num_real": 500,
    "num_fake": 500,
    "reference": "DigitsDataset 34837afe2c0ad879f6e41d357e871635",
    "metrics": {
        "frechet": {"feature": "pooled"},
        "kid": {"feature": "pooled", "subsets": 100, "subset_size": 1000, "seed": 2020},
        "precision_recall": {"feature": "pooled", "k": 3},
    },
    "classifier": "SVM (RBF, gamma 0.001) on grey pixels of 1297 real training images",
    "seed": 0,
    "labels": "balanced",
    "sampling": {"apg_momentum": 0.0, "guidance_scale": 1.5, "top_k": None},
}
REAL_SCORES = {
    "frechet_distance": 37.637,
    "kernel_distance": -0.012261,
    "precision": 0.871,
    "recall": 0.904,
    "density": 0.967,
    "coverage": 0.932,
    "classification_accuracy": 1.0,
}
FIRST_SCORES = {
    "frechet_distance": 1553.3313275883163,
    "kernel_distance": 4.924960779368041,
    "precision": 0.0,
    "recall": 0.0,
    "density": 0.0,
    "coverage": 0.0,
    "classification_accuracy": 0.098,
}
BATCH_SIZE, RATE = 64, 4000.0  # images per step, images per second

WriteRun = Callable[..., Path]


@functools.cache
def digits() -> torch.Tensor:
    """(10, 10, 3, 8, 8) uint8 real digits, class by class."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images / 16 * 255).round().to(torch.uint8)
    labels = torch.tensor(data.target)
    rows = torch.stack([images[labels == label][:10] for label in range(10)])
    return rows[:, :, None].expand(-1, -1, 3, -1, -1)


def scores_at(progress: float, end: float) -> dict[str, float]:
    """Scores that fall from those of step 0 towards real ones."""
    weight = math.exp(-4 * progress)
    scores = {name: weight * FIRST_SCORES[name] + (1 - weight) * value for name, value in REAL_SCORES.items()}
    return {**scores, "frechet_distance": scores["frechet_distance"] * (1 + end * progress)}


def write_run(
    folder: Path,
    losses: tuple[str, ...] = ("denoiser/loss",),
    steps: int = 400,
    end: float = 0.5,
    total_images: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a whole run of ``steps`` steps, with four evaluations and three sample grids."""
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    config = {
        "seed": seed,
        "objective": {
            "class_path": "generative.diffusion.objectives.denoising.DiffusionObjective",
            "init_args": {"guidance_scale": 1.5},
        },
        "trainer": {"output_dir": str(folder), "total_images": total_images or steps * BATCH_SIZE, "batch_size": BATCH_SIZE},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    entries: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 5):
        seen = {"step": step, "images_seen": step * BATCH_SIZE}
        if step:
            noise = {name: (1 + i) * (math.exp(-step / 90) + 0.08 * draw.random() + 0.05) for i, name in enumerate(losses)}
            norms = {name.replace("/loss", "/grad_norm"): draw.random() for name in losses}
            entries.append({**seen, **noise, **norms, "images_per_second": RATE, "lr/denoiser": 1e-3})
        if step % (steps // 4) == 0:
            entries.append({**seen, **{f"evaluation/{k}": v for k, v in scores_at(step / steps, end).items()}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    evaluation = {
        "step": steps,
        "images_seen": steps * BATCH_SIZE,
        "scores": scores_at(1.0, end),
        "real_scores": REAL_SCORES,
        "protocol": PROTOCOL,
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation, indent=1))
    real = digits()
    save_grid(real.flatten(0, 1), folder / "samples" / "real.png", 10)
    torch.manual_seed(seed)
    for part in (1, 2, 4):
        static = torch.randn(real.shape) * 400 / part**2
        images = (real.roll(seed + 1, dims=1).float() + static).clamp(0, 255).to(torch.uint8)
        save_grid(images.flatten(0, 1), folder / "samples" / f"step-{steps * part // 4:08d}.png", 10)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> WriteRun:
    """Writes a run of a name under the test's folder."""

    def make(name: str = "dit", **options: Any) -> Path:
        return write_run(tmp_path / "runs" / name, **options)

    return make


@pytest.fixture(scope="session")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A GAN, a diffusion model and a transformer; not to be changed."""
    runs = tmp_path_factory.mktemp("runs")
    return [
        write_run(runs / "sagan", losses=("discriminator/loss", "generator/loss"), end=1.5, seed=1),
        write_run(runs / "dit", end=0.5, seed=2),
        write_run(runs / "transformer", losses=("transformer/loss",), end=1.0, seed=3),
    ]
