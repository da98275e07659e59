"""Trackers through Accelerate: what they are told, which of them there are, and that a run goes on in the same one."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import accelerate.tracking
import numpy as np
import pytest
import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from generative.cli.main import main
from generative.core.logging import read_metrics


class FakeTracker(GeneralTracker):
    """Keeps what it is told."""

    name = "fake"
    requires_logging_directory = False
    made: list[FakeTracker] = []

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name = run_name
        self.config: dict[str, Any] = {}
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.images: list[tuple[str, int | None, Any]] = []
        self.events: list[str] = []
        self.made.append(self)

    @property
    def tracker(self) -> Any:
        return self

    def start(self) -> None:
        self.events.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config.update(values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.logged.append((step, values))

    def log_images(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.images += [(name, step, image) for name, (image,) in values.items()]

    def finish(self) -> None:
        self.events.append("finish")


@pytest.fixture
def config(toy: ModuleType, tmp_path: Path) -> Path:
    content = {
        "objective": {
            "class_path": "toy.ToyDenoiser",
            "init_args": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}},
        },
        "data": {"class_path": "toy.ToyImages"},
        "trainer": {"output_dir": "run", "total_images": 32, "batch_size": 8, "log_interval_steps": 2, "progress": False},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(config: Path | str, *arguments: str) -> int:
    return main(["train", str(config), "--trust-code", *arguments])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeTracker]:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fake", FakeTracker)
    monkeypatch.setattr(FakeTracker, "made", [])
    return FakeTracker.made


def test_a_tracker_gets_numbers_grids_and_configuration(config: Path, fake: list[FakeTracker]) -> None:
    assert train(config, "--trainer.trackers", "tensorboard,fake") == 0
    (tracker,) = fake
    assert tracker.events == ["start", "finish"] and tracker.run_name == "triptych"
    assert tracker.config["trainer.batch_size"] == 8 and tracker.config["objective.init_args.optimizer.init_args.lr"] == 0.01
    assert all(isinstance(value, (bool, int, float, str, type(None))) for value in tracker.config.values())
    entries = [entry for entry in read_metrics(Path("run")) if "denoise/loss" in entry]
    assert [step for step, _ in tracker.logged] == [entry["step"] for entry in entries] == [2, 4]
    assert [values["denoise/loss"] for _, values in tracker.logged] == [entry["denoise/loss"] for entry in entries]
    assert [(name, step) for name, step, _ in tracker.images] == [("real", 0), ("samples", 4)]
    assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for _, _, image in tracker.images)
    assert list(Path("run/tensorboard").glob("events.*")), "beside the others"


@pytest.mark.parametrize(("trackers", "written"), [(("fake",), False), (("[tensorboard, fake]",), True)])
def test_which_trackers(config: Path, fake: list[FakeTracker], trackers: tuple[str, ...], written: bool) -> None:
    assert train(config, "--trainer.trackers", *trackers) == 0
    assert len(fake) == 1 and Path("run/tensorboard").exists() == written


def test_no_tracker(config: Path) -> None:
    assert train(config, "--trainer.trackers", "null") == 0
    assert not Path("run/tensorboard").exists() and not Path("run/trackers.json").exists()


def test_trackers_that_are_not_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, "--trainer.trackers", "tensorbord") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: trainer.trackers must name trackers (") and error.endswith("got 'tensorbord'\n")
    absent = {name: package for name, package in (("comet_ml", "comet-ml"), ("aim", "aim")) if find_spec(name) is None}
    for name, package in absent.items():
        assert train(config, "--trainer.trackers", f"tensorboard,{name}") == 2
        assert capsys.readouterr().err == f"error: trainer.trackers names {name}, which is not installed: pip install {package}\n"
    assert not Path("run").exists()


def test_a_tracker_that_cannot_be_opened(
    config: Path, fake: list[FakeTracker], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(tracker: FakeTracker) -> None:
        raise RuntimeError("no API key\nsee the manual")

    monkeypatch.setattr(FakeTracker, "start", fail)
    assert train(config, "--trainer.trackers", "fake") == 2
    assert capsys.readouterr().err == (
        "error: the tracker fake cannot be opened (no API key); log in, or leave it out of trainer.trackers\n"
    )


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """A package ``wandb`` that keeps the runs it is asked for, behind Accelerate's own tracker."""
    runs: list[SimpleNamespace] = []
    module = ModuleType("wandb")

    def init(**options: Any) -> SimpleNamespace:
        run = SimpleNamespace(options=options, logged=[], is_finished=False)
        run.log = lambda values, step=None: run.logged.append((step, values))
        run.finish = lambda: setattr(run, "is_finished", True)
        runs.append(run)
        return run

    module.init = init  # type: ignore[attr-defined]
    module.Image = lambda pixels: ("image", pixels.shape)  # type: ignore[attr-defined]
    module.config = SimpleNamespace(update=lambda values, allow_val_change: runs[-1].options.update(config=values))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TENSORBOARD, LoggerType.WANDB])
    for name in ("WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return runs


def test_a_run_goes_on_in_the_same_run_of_wandb(config: Path, wandb: list[SimpleNamespace], monkeypatch: Any) -> None:
    asked = ["--trainer.trackers", "tensorboard,wandb"]
    assert train(config, *asked) == 0
    (first,) = wandb
    assert first.options["project"] == "triptych" and first.options["name"] == "run" and first.options["resume"] == "allow"
    assert first.options["dir"] == "run" and first.options["config"]["trainer.batch_size"] == 8
    assert json.loads(Path("run/trackers.json").read_text())["wandb"]["id"] == first.options["id"]
    images = [(step, values) for step, values in first.logged if {"real", "samples"} & set(values)]
    assert [step for step, _ in images] == [0, 4] and images[1][1]["samples"][0][0] == "image"
    assert any("denoise/loss" in values for _, values in first.logged) and first.is_finished
    assert train("run", "--resume", "latest", "--trainer.total_images", "48") == 0
    assert wandb[1].options["id"] == first.options["id"], "it keeps its tracker and its id"
    assert train(config, *asked, "--overwrite") == 0
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert train(config, *asked, "--trainer.output_dir", "other") == 0
    ids = [run.options["id"] for run in wandb]
    assert len(set(ids)) == 3 and wandb[3].options["project"] == "mine"
    Path("other/trackers.json").write_text("{")
    assert train("other", "--resume", "latest", "--trainer.total_images", "48") == 0
    assert wandb[4].options["id"] not in ids
