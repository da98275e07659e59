"""``generative scaling-law``: the fit of made-up runs, its files, and every mistake in one sentence."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from generative.cli.main import main

SIZES = (100, 1_000, 10_000)


def make_run(folder: Path, size: int, loss: float, phase: str = "transformer", images: int = 640) -> Path:
    """A run whose last loss is ``loss`` and whose network has ``size`` weights beside embeddings and head."""
    (folder / "pipeline" / "transformer").mkdir(parents=True)
    (folder / "pipeline" / "tokenizer").mkdir()
    tensors = {"blocks.0.weight": torch.zeros(size), "class_embedding.weight": torch.zeros(50), "head.bias": torch.zeros(7)}
    save_file(tensors, folder / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({"a": torch.zeros(999)}, folder / "pipeline" / "tokenizer" / "diffusion_pytorch_model.safetensors")
    entries = [
        {"step": step, "images_seen": images * step // 10, f"{phase}/loss": 9.0 if step < 10 else loss, "images_per_second": 1.0}
        for step in range(1, 11)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [str(make_run(tmp_path / f"d{size}", size, (0.5 * size) ** -0.25)) for size in SIZES]


def test_the_law_is_found_and_written(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plots" / "law.png"
    assert main(["scaling-law", *reversed(runs), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "alpha -0.2500, beta 0.5, Pearson correlation -1.0000" in out and "note:" not in out
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["law"]["alpha"] == pytest.approx(-0.25) and content["law"]["beta"] == pytest.approx(0.5)
    assert [model["size"] for model in content["models"]] == list(SIZES) and content["loss"] == "transformer/loss"
    with output.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == pytest.approx([float(row["fit"]) for row in rows])
    assert Image.open(output).width > 300


def test_a_larger_share_of_the_log_is_averaged(runs: list[str], tmp_path: Path) -> None:
    output = tmp_path / "law.png"
    assert main(["scaling-law", *runs, "--last", "0.2", "--output", str(output)]) == 0
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["models"][0]["loss"] == pytest.approx((9.0 + 50**-0.25) / 2)


def test_runs_of_other_lengths_are_noted(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = make_run(tmp_path / "longer", 100_000, 0.05, images=1280)
    assert main(["scaling-law", *runs, str(longer), "--output", str(tmp_path / "law.png")]) == 0
    assert "note: the runs saw different numbers of images" in capsys.readouterr().out


def test_mistakes_are_one_sentence(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(make_run(tmp_path / "gan", 10, 1.0, phase="generator"))
    untrained = make_run(tmp_path / "untrained", 10, 1.0)
    for file in untrained.glob("pipeline/transformer/*"):
        file.unlink()
    broken = make_run(tmp_path / "broken", 10, 1.0)
    next(broken.glob("pipeline/transformer/*")).write_bytes(b"nothing")
    same = str(make_run(tmp_path / "same", 100, 1.0))
    for arguments, message in (
        (runs[:2], "at least 3 runs, got 2"),
        ([*runs[:2], runs[0]], "is given twice"),
        ([*runs[:2], other], "one loss in common, and have none"),
        ([*runs, "--loss", "transformer/no"], "has logged no transformer/no"),
        ([*runs, str(untrained)], "holds no pipeline with weights"),
        ([*runs, str(broken)], "cannot be read"),
        ([*runs, str(tmp_path / "absent")], "does not exist"),
        ([*runs, "--last", "0"], "--last must be in"),
        ([*runs, "--output", "law.jpg"], "must be the name of a .png file"),
        ([runs[0], same, str(make_run(tmp_path / "same2", 100, 2.0))], "all have a size of 100"),
    ):
        assert main(["scaling-law", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
