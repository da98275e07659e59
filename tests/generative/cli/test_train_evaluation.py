"""``generative train`` with evaluations of its own: what the command line sets, statistics, the end for want of improvement."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tiny_extractor import EXTRACTOR

from generative.cli.main import main
from generative.core.evaluation import Evaluation, Evaluator
from generative.core.logging import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::metrics.notes.ScoreNote")


@pytest.fixture
def config(toy: ModuleType, tmp_path: Path) -> Path:
    """A configuration of 6 steps of 8 images, into ``run/``, that scores by a network of a few weights."""
    (tmp_path / "tiny.py").write_text(EXTRACTOR)
    evaluation = {"extractor": "tiny.py:Tiny", "data": {"class_path": "toy.ToyImages"}, "num_samples": 12}
    content = {
        "objective": {
            "class_path": "toy.ToyDenoiser",
            "init_args": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}},
        },
        "data": {"class_path": "toy.ToyImages"},
        "evaluation": {"class_path": "generative.core.evaluation.Evaluator", "init_args": evaluation},
        "trainer": {"output_dir": "run", "total_images": 48, "batch_size": 8, "log_interval_steps": 1, "progress": False},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(config: Path | str, *arguments: str) -> int:
    return main(["train", str(config), "--trust-code", *arguments])


def test_flags_of_an_evaluation(config: Path) -> None:
    flags = {"metrics": "fid,is", "sampling": "{truncation: 0.5}", "sample_precision": "bfloat16", "protocol": "clean"}
    arguments = [word for name, value in flags.items() for word in (f"--evaluation.init_args.{name}", value)]
    assert train(config, *arguments, "--trainer.evaluate_interval_images", "20") == 0
    stored = json.loads(Path("run/evaluation.json").read_text())
    assert set(stored["scores"]) == {"frechet_distance", "classifier_score_mean", "classifier_score_std"}
    assert set(stored["real_scores"]) == set(stored["scores"])
    protocol = stored["protocol"]
    assert protocol["sampling"] == {"truncation": 0.5} and protocol["sample_precision"] == "bfloat16"
    assert protocol["protocol"] == "clean" and protocol["resizer"] == "clean"
    assert [entry["step"] for entry in read_metrics(Path("run")) if "evaluation/frechet_distance" in entry] == [0, 3, 5, 6]


def test_statistics_from_the_command_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--evaluation.init_args.reference", "none.npz"]
    assert train(config, *given) == 2
    assert "evaluation has held-out images (data) and the reference 'none.npz'; give one of them" in capsys.readouterr().err
    assert train(config, *given, "--evaluation.init_args.data", "null") == 2
    error = capsys.readouterr().err
    assert error == (
        "error: evaluation: there is no reference none.npz: make it with `fid-score --save-stats IMAGES none.npz`.\n"
    )
    assert not Path("run").exists()


class Scripted(Evaluator):
    """Scores that get worse from the second evaluation of a trained network on."""

    values = iter(())

    def evaluate(self, pipeline: Any, accelerator: Any, options: Any, progress: bool = False) -> Evaluation:
        return Evaluation({"frechet_distance": float(next(type(self).values)), "precision": 1.0}, {})

    def score_real(self, data: Any, accelerator: Any) -> Evaluation:
        return Evaluation({}, {})


def test_a_run_ends_for_want_of_improvement_and_goes_on_with_more_patience(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("evaluate", "score_real"):
        monkeypatch.setattr(Evaluator, name, getattr(Scripted, name))
    monkeypatch.setattr(Evaluator, "values", iter((9, 5, 6, 7, 4, 3, 2)), raising=False)
    asked = ["--trainer.keep_best", "frechet_distance", "--trainer.patience", "2", "--trainer.evaluate_interval_steps", "1"]
    assert train(config, *asked) == 0
    line = (
        "stopped early at step 3 of 6: frechet_distance has not improved in 2 evaluations, since step 1 (5); "
        "'run/checkpoint-best' is the best, go on with --resume latest --trainer.patience 4\n"
    )
    assert capsys.readouterr().out.endswith(line)
    (entry,) = map(json.loads, Path("run/history.jsonl").read_text().splitlines())
    expected = {"score": "frechet_distance", "best": 5.0, "best_step": 1, "evaluations_since": 2}
    assert entry["step"] == 3 and entry["stopped_early"] == expected
    assert train("run", "--resume", "latest") == 0
    assert capsys.readouterr().out.endswith(line), "with the same patience it ends where it was"
    assert train("run", "--resume", "latest", "--trainer.patience", "4") == 0
    out = capsys.readouterr().out
    assert "changed: trainer.patience: 2 -> 4" in out and "done: " in out
    assert json.loads(Path("run/checkpoint-best/state.json").read_text())["step"] == 6
