"""The checkpoint of the best evaluation outlives its neighbours."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from generative.core import checkpoint as ckpt
from generative.core.best import BEST_CHECKPOINT, HIGHER_IS_BETTER, LOWER_IS_BETTER, BestCheckpoint, is_higher_better
from generative.core.early_stop import EarlyStop
from generative.core.errors import UserError
from generative.core.evaluation import Evaluation, Evaluator
from generative.core.trainer import Trainer
from generative.data.base import ImageDataset
from generative.report.scores import KNOWN_SCORES

VALUES = {0: 0.5, 1: 9.0, 2: 7.0, 3: 3.0, 4: 8.0, 5: float("nan"), 6: 4.0}


class ScriptedEvaluator(Evaluator):
    """Gives each step its score."""

    def __init__(self, data: ImageDataset, name: str = "frechet_distance") -> None:
        super().__init__(data, extractor="efficientnet-lite0")
        self.name = name
        self.trainer: Trainer | None = None

    def prepare(self, accelerator: Any, progress: bool = False) -> None: ...

    def evaluate(self, pipeline: Any, accelerator: Any, options: Any, progress: bool = False) -> Evaluation:
        assert self.trainer is not None
        return Evaluation({self.name: VALUES[self.trainer.step]}, {})

    def score_real(self, dataset: Any, accelerator: Any) -> Evaluation:
        return Evaluation({}, {})


def build(toy: ModuleType, run: Path, name: str = "frechet_distance", **settings: Any) -> Trainer:
    evaluator = ScriptedEvaluator(toy.ToyImages(), name)
    options = {"keep_best": "frechet_distance", "evaluate_interval_steps": 1, "keep_last_checkpoints": 1, **settings}
    trainer: Trainer = toy.build_trainer(toy.denoiser(), run, evaluator=evaluator, **options)
    evaluator.trainer = trainer
    return trainer


def best_step(run: Path) -> int:
    ckpt.verify_manifest(run / BEST_CHECKPOINT)
    return int(ckpt.read_state(run / BEST_CHECKPOINT)["step"])


def test_the_best_survives_pruning_and_is_whole(toy: ModuleType, tmp_path: Path) -> None:
    """Step 3 was not even due for a checkpoint; step 0 and NaN do not count."""
    build(toy, tmp_path / "run").fit()
    assert [path.name for path in ckpt.list_checkpoints(tmp_path / "run")] == ["checkpoint-00000006"]
    assert best_step(tmp_path / "run") == 3
    build(toy, tmp_path / "all", keep_last_checkpoints=None).fit()
    of_step = tmp_path / "all" / "checkpoint-00000003"
    for path in sorted(p for p in of_step.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "run" / BEST_CHECKPOINT / path.relative_to(of_step)).read_bytes()
        # In the run that keeps all, the two are the same files, but for the list of them.
        assert path.samefile(tmp_path / "all" / BEST_CHECKPOINT / path.relative_to(of_step)) or path.parent == of_step


def test_higher_may_be_better(toy: ModuleType, tmp_path: Path) -> None:
    build(toy, tmp_path, "precision", keep_best="precision").fit()
    assert best_step(tmp_path) == 1


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_resumed_run_keeps_the_same(toy: ModuleType, tmp_path: Path, stop: int) -> None:
    run = tmp_path / "run"
    first = build(toy, run)
    objective: Any = first.objective
    objective.on_call = lambda batch: first.request_stop(15) if first.step == stop - 1 else None
    first.fit()
    build(toy, run).fit(ckpt.resolve_checkpoint(run, "latest"))
    assert best_step(run) == 3
    assert not list(run.glob(".*"))


def test_a_kill_before_the_best_was_kept(toy: ModuleType, tmp_path: Path) -> None:
    """Its evaluation is in the log, and its checkpoint is there."""
    build(toy, tmp_path, total_images=24).fit()
    shutil.rmtree(tmp_path / BEST_CHECKPOINT)
    build(toy, tmp_path).fit(ckpt.resolve_checkpoint(tmp_path, "latest"))
    assert best_step(tmp_path) == 3


def test_a_run_without_improvement_ends(toy: ModuleType, tmp_path: Path) -> None:
    """The best is at step 3; step 5, whose score is NaN, is the second after it."""
    run = tmp_path / "run"
    trainer = build(toy, run, patience=2)
    trainer.fit()
    assert trainer.step == 5 and trainer.is_stopped_early and trainer.stopped_by is None
    assert ckpt.list_checkpoints(run)[-1].name == "checkpoint-00000005" and best_step(run) == 3
    assert (run / "samples" / "step-00000005.png").is_file()
    again = build(toy, run, patience=2)
    again.fit(ckpt.resolve_checkpoint(run, "latest"))
    assert again.step == 5 and again.is_stopped_early, "no more patience, no more steps"
    assert again.early_stop is not None
    assert again.early_stop.describe() == "frechet_distance has not improved in 2 evaluations, since step 3 (3)"
    more = build(toy, run, patience=4)
    more.fit(ckpt.resolve_checkpoint(run, "latest"))
    assert more.step == 6 and not more.is_stopped_early and best_step(run) == 3


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_patience_counts_evaluations_since_the_best(sign: float) -> None:
    stop = EarlyStop("fid", sign, patience=3)
    stop.start([{"step": 0, "evaluation/fid": -99 * sign}, {"step": 2}, {"step": 1, "evaluation/fid": -sign}])
    assert (stop.best, stop.best_step, stop.waited) == (-sign, 1, 0), "an untrained network's is no best"
    for step, value, waited in ((3, -sign, 1), (4, float("nan"), 2), (5, sign, 0), (6, None, 1), (7, 0.0, 2), (8, 0.0, 3)):
        assert not stop.is_reached
        stop.update(step, value)
        assert stop.waited == waited
    assert stop.is_reached
    never = EarlyStop("fid", sign, patience=1)
    never.update(1, None)
    assert never.describe() == "fid has not improved in 1 evaluations, at all"


def test_mistakes(toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="keep_best must be the name of a score .*, got 'beauty'"):
        build(toy, tmp_path, keep_best="beauty")
    with pytest.raises(UserError, match="patience is 2 but no score is named .*; set trainer.keep_best"):
        build(toy, tmp_path, keep_best=None, patience=2)
    with pytest.raises(UserError, match="patience is 2 but evaluations are at the end only"):
        build(toy, tmp_path, evaluate_interval_steps=None, patience=2)
    with pytest.raises(UserError, match="keep_best is set but there is no evaluation"):
        toy.build_trainer(toy.denoiser(), tmp_path, keep_best="fid")
    with pytest.raises(UserError, match="has no score 'recall' for trainer.keep_best, it has frechet_distance"):
        build(toy, tmp_path / "a", keep_best="recall").fit()
    build(toy, tmp_path / "b", keep_best="recall", evaluate_interval_steps=None).fit()
    assert "no best checkpoint is kept" in capsys.readouterr().err


def test_a_damaged_best_counts_as_none(toy: ModuleType, tmp_path: Path) -> None:
    build(toy, tmp_path).fit()
    (tmp_path / BEST_CHECKPOINT / "state.json").unlink()
    assert BestCheckpoint(tmp_path, "fid").kept_step() is None


def test_directions() -> None:
    assert not set(LOWER_IS_BETTER) & set(HIGHER_IS_BETTER)
    for score in KNOWN_SCORES:
        for key in score.keys:
            assert is_higher_better(key) == (score.better == "higher")
    assert is_higher_better("classifier_score_mean") and is_higher_better("precision_resnet9")
    assert not is_higher_better("representation_distance") and not is_higher_better("frechet_distance_dinov2-vit-l-14")
    assert not is_higher_better("class_fd_dinov2") and not is_higher_better("cmmd_unbiased")
