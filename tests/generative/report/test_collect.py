"""What is read from a run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from generative.core.errors import UserError
from generative.report.collect import collect_runs, count_weights

WriteRun = Callable[..., Path]


def append(run: Path, *entries: dict[str, object] | str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries)


def test_a_whole_run_is_read(make_run: WriteRun) -> None:
    (run,) = collect_runs([make_run("dit", steps=400)])
    stored = json.loads((run.path / "evaluation.json").read_text())
    assert run.name == "dit" and run.missing == []
    assert run.images_seen == 400 * 64 and run.progress == 1
    assert run.scores == stored["scores"] and run.real_scores == stored["real_scores"]
    assert run.first_scores["frechet_distance"] == 1553.3313275883163
    assert [step for step, _ in run.evaluations] == [0, 100, 200, 300, 400]
    assert run.loss_names == ["denoiser/loss"]
    assert [step for step, _ in run.grids] == [100, 200, 400]
    assert run.images_at(100) == 6400


def test_training_time_follows_from_images_per_second(tmp_path: Path) -> None:
    """100 images at 10/s, 100 at 20/s, and 50 that were not logged at the last rate: 10 + 5 + 2.5 s."""
    append(
        tmp_path,
        {"step": 10, "images_seen": 100, "images_per_second": 10.0},
        {"step": 20, "images_seen": 200, "images_per_second": 20.0},
        {"step": 25, "images_seen": 250, "evaluation/precision": 0.5},
    )
    (run,) = collect_runs([tmp_path])
    assert run.training_seconds == pytest.approx(17.5)


def test_an_evaluation_newer_than_the_file_wins(make_run: WriteRun) -> None:
    path = make_run("dit", steps=400)
    append(path, {"step": 500, "images_seen": 32000, "evaluation/frechet_distance": 1.5})
    (run,) = collect_runs([path])
    assert run.scores == {"frechet_distance": 1.5}


def test_lines_that_are_cut_or_strange_are_passed_over(make_run: WriteRun) -> None:
    path = make_run("dit", steps=400)
    append(
        path, "[1, 2]", '{"step": null}', '{"step": NaN}', '{"step": 405, "images_seen": NaN, "denoiser/loss": "high"}', '{"st'
    )
    (run,) = collect_runs([path])
    assert run.images_seen == 400 * 64
    assert all(math.isfinite(value) for value in run.curve("denoiser/loss")[1])


def test_a_run_that_has_just_started(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (run,) = collect_runs([tmp_path])
    assert run.scores == {} and run.images_seen is None and run.training_seconds is None and run.progress is None
    assert run.missing == [
        "no training step logged yet",
        "no evaluation yet",
        "no sample grid yet",
        "no grid of real images (samples/real.png)",
    ]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [1\n")
    (tmp_path / "evaluation.json").write_text('{"step": 1')
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    (run,) = collect_runs([tmp_path])
    assert run.missing[:3] == ["config.yaml cannot be read", "metrics.jsonl cannot be read", "evaluation.json cannot be read"]


def test_names_take_as_many_parents_as_they_need(make_run: WriteRun) -> None:
    runs = collect_runs([make_run("a/dit"), make_run("b/dit"), make_run("b/sagan")])
    assert [run.name for run in runs] == ["a/dit", "b/dit", "b/sagan"]


def test_weights_are_counted_from_the_header(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert count_weights(tmp_path / "w.safetensors") == 17
    (tmp_path / "no.safetensors").write_bytes(b"\xff" * 40)
    assert count_weights(tmp_path / "no.safetensors") is None
    (tmp_path / "short.safetensors").write_bytes(b"\x02")
    assert count_weights(tmp_path / "short.safetensors") is None


def test_what_is_no_run_is_refused(make_run: WriteRun, tmp_path: Path) -> None:
    run = make_run("dit")
    with pytest.raises(UserError, match="does not exist"):
        collect_runs([tmp_path / "nothing"])
    with pytest.raises(UserError, match="is a file"):
        collect_runs([run / "config.yaml"])
    with pytest.raises(UserError, match=f"is not a run.*did you mean {run}$"):
        collect_runs([run.parent])
    with pytest.raises(UserError, match="is not a run.*generative train"):
        collect_runs([run / "samples"])
    with pytest.raises(UserError, match="given twice"):
        collect_runs([run, run / "samples" / ".."])
    with pytest.raises(UserError, match="at least one run"):
        collect_runs([])
