"""Runs saved before classes moved load today, and make the images that they made then; see ``tests/fixtures``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from generative.cli.main import main
from generative.core.seeding import sample_generators
from metrics.sources import open_source
from pipelines import load_pipeline

RUNS = Path(__file__).parents[1] / "fixtures" / "old_runs"
NAMES = sorted(path.name for path in RUNS.iterdir())
SEED, IMAGES_PER_CLASS = 3, 2  # of samples.npz


def read(path: Path) -> tuple[np.ndarray, list[int]]:
    """Images (N, 8, 8, 3) uint8 of a file of samples, and their labels."""
    with np.load(path, allow_pickle=False) as content:
        return content["arr_0"], content["arr_1"].tolist()


def assert_same_images(images: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding, which differs from machine to machine."""
    assert images.shape == expected.shape and images.dtype == expected.dtype == np.uint8
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1


def test_the_runs_name_classes_where_they_are_no_longer() -> None:
    assert NAMES == ["dit", "sagan", "var"]
    libraries = {name: json.loads((RUNS / name / "pipeline" / "model_index.json").read_text()) for name in NAMES}
    assert libraries["dit"]["denoiser"] == ["generative.diffusion.dit", "DiT"] and "formulation" not in libraries["dit"]
    assert libraries["var"]["transformer"] == ["generative.autoregressive.var", "VAR"]


@pytest.mark.parametrize("name", NAMES)
def test_python_makes_the_images_of_then(name: str) -> None:
    expected, labels = read(RUNS / name / "samples.npz")
    pipeline = load_pipeline(RUNS / name)
    pipeline.set_progress_bar_config(disable=True)
    generators = sample_generators(SEED, labels, list(range(IMAGES_PER_CLASS)) * pipeline.num_classes)
    images = pipeline(labels, generator=generators, output_type="uint8", **pipeline.sampling_defaults).images
    assert_same_images(images.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_makes_the_images_of_then(name: str, tmp_path: Path) -> None:
    counts = ["--num-images-per-class", str(IMAGES_PER_CLASS), "--seed", str(SEED)]
    assert main(["sample", str(RUNS / name), *counts, "--output", str(tmp_path / "now.npz")]) == 0
    expected, labels = read(RUNS / name / "samples.npz")
    images, labels_now = read(tmp_path / "now.npz")
    assert labels_now == labels
    assert_same_images(images, expected)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_of_the_images_of_then(name: str) -> None:
    expected, labels = read(RUNS / name / "samples.npz")
    source = open_source(RUNS / name, num_samples=len(labels), seed=SEED)
    batches = list(source.batches(7))
    assert [int(label) for batch in batches for label in batch.labels or []] == labels
    assert_same_images(np.stack([image.permute(1, 2, 0).numpy() for batch in batches for image in batch.images]), expected)
