"""What an observer measures and says beside the losses: diagnoses that disturb nothing, and warnings in their three places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from generative.core.checkpoint import resolve_checkpoint
from generative.core.evaluation import Evaluation, Evaluator
from generative.core.logging import read_metrics
from generative.core.observer import saved_buffers, undisturbed
from generative.core.types import Batch, Losses, Networks


def diagnosing(toy: ModuleType, seen: list[Batch], **options: Any) -> Any:
    """The toy denoiser whose diagnosis does all that it may: run networks and draw random numbers."""
    objective = toy.denoiser(**options)

    class Diagnosing(type(objective)):  # type: ignore[misc]
        def diagnose(self, networks: Networks, real: Batch) -> Losses:
            seen.append(real)
            assert not networks["net"].training and not torch.is_grad_enabled()
            noisy = real["images"] + torch.randn(real["images"].shape)
            return {
                "error": networks["net"](noisy, real["class_labels"]).square().mean(),
                "entry": torch.tensor(float(len(seen))),
            }

        def warnings(self, history: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
            late = [entry for entry in history if entry.get("diagnosis/entry", 0) in (2, 3, 5)]
            return {"late": f"entry {late[-1]['diagnosis/entry']:.0f} is late"} if late and late[-1] is history[-1] else {}

    objective.__class__ = Diagnosing
    return objective


def test_a_diagnosis_does_not_touch_the_training(toy: ModuleType, tmp_path: Path) -> None:
    plain = toy.build_trainer(toy.denoiser(), tmp_path / "plain")
    plain.fit()
    seen: list[Batch] = []
    trainer = toy.build_trainer(diagnosing(toy, seen), tmp_path / "diagnosed")
    trainer.fit()
    first, second = toy.snapshot(plain), toy.snapshot(trainer)
    assert all(torch.equal(first[name], second[name]) for name in first)
    plain_losses = [entry["denoise/loss"] for entry in read_metrics(tmp_path / "plain")]
    losses = [entry["denoise/loss"] for entry in read_metrics(tmp_path / "diagnosed") if "denoise/loss" in entry]
    assert losses == plain_losses
    assert len(seen) == 6 and all(real is seen[0] for real in seen)


def test_the_real_images_of_a_diagnosis(toy: ModuleType, tmp_path: Path) -> None:
    seen: list[Batch] = []
    trainer = toy.build_trainer(diagnosing(toy, seen), tmp_path)
    trainer.fit()
    images, labels = seen[0]["images"], seen[0]["class_labels"]
    assert images.shape[1:] == (3, 4, 4) and len(images) == len(labels) and images.min() >= -1 and images.max() <= 1
    counts = labels.bincount()
    assert len(counts) == 3 and ((counts > 1) & (counts <= 8)).all()
    data = trainer.dataset
    index = int((data.labels == 0).nonzero()[0])
    torch.testing.assert_close(images[0], data.image(index).float() / 127.5 - 1)


def test_warnings_are_said_once_and_kept(toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.build_trainer(diagnosing(toy, []), tmp_path).fit()
    entries = read_metrics(tmp_path)
    kept = [entry for entry in entries if "warning" in entry]
    assert [(entry["step"], entry["warning"], entry["rule"]) for entry in kept] == [
        (2, "entry 2 is late", "late"),
        (5, "entry 5 is late", "late"),
    ]
    assert all(entry["images_seen"] == 8 * entry["step"] for entry in kept)
    assert capsys.readouterr().err.count("warning: step ") == 2
    assert [entry["diagnosis/entry"] for entry in entries if "diagnosis/entry" in entry] == [1, 2, 3, 4, 5, 6]


class ScriptedEvaluator(Evaluator):
    """Scores from a list."""

    def __init__(self, data: Any, values: Sequence[float]) -> None:
        super().__init__(data)
        self.values = list(values)

    def prepare(self, *arguments: Any, **options: Any) -> None:
        pass

    def evaluate(self, *arguments: Any, **options: Any) -> Evaluation:
        return Evaluation({"frechet_distance": self.values.pop(0)}, {})

    def score_real(self, *arguments: Any) -> Evaluation:
        return Evaluation({"frechet_distance": 1.0}, {})


@pytest.mark.parametrize(("values", "warned_at"), [((90, 20, 10, 12, 13, 14, 9), [5]), ((90, 20, 10, 16, 9, 8, 7), [3])])
def test_the_trend_of_the_score_is_watched_for_every_family(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: tuple[float, ...], warned_at: list[int]
) -> None:
    evaluator = ScriptedEvaluator(toy.ToyImages(seed=9), values)
    toy.build_trainer(toy.denoiser(), tmp_path, evaluator=evaluator, evaluate_interval_steps=1).fit()
    kept = [entry for entry in read_metrics(tmp_path) if "warning" in entry]
    assert [entry["step"] for entry in kept] == warned_at
    assert "best was 10 at step 2" in kept[0]["warning"]
    assert capsys.readouterr().err.count("best was 10 at step 2") == 1


def test_a_resumed_run_remembers_its_best_score(toy: ModuleType, tmp_path: Path) -> None:
    evaluator = ScriptedEvaluator(toy.ToyImages(seed=9), (90, 20, 10, 12, 13))
    toy.build_trainer(
        toy.denoiser(signal_at_call=4), tmp_path, evaluator=evaluator, evaluate_interval_steps=1, checkpoint_interval_steps=None
    ).fit()
    again = ScriptedEvaluator(toy.ToyImages(seed=9), (14, 15))
    trainer = toy.build_trainer(toy.denoiser(), tmp_path, evaluator=again, evaluate_interval_steps=1)
    trainer.fit(resolve_checkpoint(tmp_path, "latest"))
    kept = [entry for entry in read_metrics(tmp_path) if "warning" in entry]
    assert [entry["step"] for entry in kept] == [5] and "best was 10 at step 2" in kept[0]["warning"]


def test_modes_random_numbers_and_gradients_come_back_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[1].eval()  # as a frozen part of a network in training
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="inside"), undisturbed({"net": network}, torch.device("cpu")):
        assert not network.training
        torch.rand(7)
        raise RuntimeError("inside")
    assert torch.equal(torch.rand(3), expected) and torch.is_grad_enabled()
    assert (network.training, network[0].training, network[1].training) == (True, True, False)


@pytest.mark.parametrize(("saved", "expected"), [([[1.0, 4.0]], [1.0, 4.0]), ([[1.0, 4.0], [3.0, 5.0]], [2.0, 4.5])])
def test_an_entry_goes_on_in_another_number_of_processes(
    toy: ModuleType, tmp_path: Path, saved: list[list[float]], expected: list[float]
) -> None:
    observer = toy.build_trainer(toy.denoiser(), tmp_path).observer
    observer.load_pending([[2, "denoise", ["loss", "noise"], saved]])
    assert observer.pending_state() == [[2, "denoise", ["loss", "noise"], [expected]]]


def test_buffers_that_a_checkpoint_holds() -> None:
    network = nn.BatchNorm1d(2)
    network.register_buffer("mask", torch.full((2,), -torch.inf), persistent=False)
    network.register_buffer("table", torch.zeros(2))
    assert {id(buffer) for buffer in saved_buffers(network)} == {
        id(b) for b in (network.running_mean, network.running_var, network.table)
    }
