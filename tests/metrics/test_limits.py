"""Counts and seeds beyond use, devices that hold nothing, names that are none: one sentence with the limit, before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metrics.cli import main
from metrics.scoring import score


@pytest.fixture
def refused(
    tmp_path: Path, smooth_images: Any, write_folder: Any, tiny_options: list[str], images_run: list[int], capsys, monkeypatch
) -> Callable[..., str]:
    """The function (arguments) -> the one sentence on stderr that ``fid-score real fake ...`` refuses them with."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("real", "fake")):
        write_folder(tmp_path / name, smooth_images(12, 9, 9, seed=seed))

    def run(*arguments: str) -> str:
        assert main(["real", "fake", *tiny_options, *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
        assert images_run == []
        return captured.err

    return run


_LIMITS = {
    "--seed": "18,446,744,073,709,551,615",
    "--rng-seed": "4,294,967,295",
    "--input-size": "2,048",
    "--isc-splits": "1,000,000",
    "--kid-subsets": "1,000,000",
    "--kid-subset-size": "1,000,000",
    "--nearest-k": "1,000,000",
    "--num-samples": "10,000,000",
    "--match-num": "10,000,000",
    "--cas-size": "2,048",
    "--cas-epochs": "10,000",
    "--train-epochs": "10,000",
    "--batch-size": "65,536",
    "--num-workers": "1,024",
    "--dataset-res": "2,048",
}


@pytest.mark.parametrize("flag", _LIMITS)
def test_numbers_without_sense_are_refused_with_the_limit(refused: Callable[..., str], flag: str) -> None:
    assert f"must be at most {_LIMITS[flag]}, got 100000000000000000000" in refused(flag, "100000000000000000000")
    assert "must be at least" in refused(f"{flag}=-1")
    for text in ("many", "1.5", "9" * 5000):
        message = refused(flag, text)
        assert "must be a whole number from" in message and len(message) < 250


@pytest.mark.usefixtures("refused")
def test_the_largest_seeds_are_taken(tiny_options: list[str], capsys) -> None:
    options = ["--metrics", "kid,is,mind", "--kid-subset-size", "8", "--no-cache", *tiny_options]
    assert main(["real", "fake", "--rng-seed", str(2**32 - 1), *options]) == 0, capsys.readouterr().err


def test_subsets_that_take_days_are_refused_with_an_estimate(refused: Callable[..., str]) -> None:
    message = refused("--metrics", "kid", "--kid-subsets", "1000000", "--kid-subset-size", "1000")
    assert "would take about 58 hours: give at most --kid-subsets 411428" in message
    with pytest.raises(ValueError, match="would take about"):
        score("fake", "real", extractor="tiny", metrics="kid", kid_subsets=1_000_000)


def test_features_beyond_memory_are_refused(refused: Callable[..., str], monkeypatch) -> None:
    monkeypatch.setattr("metrics.scoring.prepare._total_memory", lambda: 12 * 12 * 4 - 1)
    assert "metric kid keeps every image's features" in refused("--metrics", "kid")


@pytest.mark.parametrize("name", ["meta", "quantum", "cuda:99", "cpu:x", " ", "-1"])
def test_devices_that_hold_nothing_are_refused(refused: Callable[..., str], name: str) -> None:
    assert f"device {name!r} is not available" in refused(f"--device={name}")


@pytest.mark.parametrize(
    "failure", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")]
)
def test_an_allocation_that_fails_is_one_sentence(refused: Callable[..., str], monkeypatch, failure: Exception) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr("metrics.scoring.extraction.Extraction.run", fail)
    assert "out of memory: choose a smaller --batch-size" in refused("--no-cache")


def test_input_names_that_are_none(refused: Callable[..., str]) -> None:
    for name in ("x" * 300, "real/0000.png/below", ""):
        message = refused(name)
        assert any(words in message for words in ("does not exist", "too long", "can't be read", "a path is empty")), message
    with pytest.raises(FileNotFoundError, match="does not exist"):
        score("a\0b", "real", extractor="tiny")
    for name in ("w" * 300, "real/0000.png/w.pth"):
        assert name in refused(f"--weights=inception-v3={name}", "--extractor", "inception-v3")
