"""A run stopped at any moment and resumed is bit-equal to one never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from generative.core import checkpoint as ckpt
from generative.core import observer
from generative.core.logging import read_metrics
from generative.core.trainer import Trainer


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def losses(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    return [
        {k: v for k, v in entry.items() if k != "images_per_second" and not k.startswith("system/")}
        for entry in read_metrics(run)
    ]


@pytest.fixture(scope="module")
def whole(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A run of 6 steps never stopped, and its final state."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer = toy.build_trainer(toy.denoiser(), folder)
    trainer.fit()
    return folder, toy.snapshot(trainer)


def resume(toy: ModuleType, run: Path, **settings: Any) -> Trainer:
    objective = toy.denoiser()
    # The initial weights of the second process must not matter.
    for parameter in objective.networks["net"].parameters():
        torch.nn.init.normal_(parameter)
    trainer: Trainer = toy.build_trainer(objective, run, **settings)
    trainer.fit(ckpt.resolve_checkpoint(run, "auto"))
    return trainer


def restart(toy: ModuleType, run: Path, **settings: Any) -> Trainer:
    """Go on from the newest checkpoint, or from the same start if there is none."""
    if ckpt.list_checkpoints(run):
        return resume(toy, run, **settings)
    trainer: Trainer = toy.build_trainer(toy.denoiser(), run, **settings)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("step", [1, 3, 5, 6])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_at_any_step(
    toy: ModuleType, tmp_path: Path, whole: tuple[Path, dict[str, Tensor]], step: int, number: int
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    trainer = toy.build_trainer(toy.denoiser(signal_at_call=step, signal_number=int(number)), tmp_path / "run")
    trainer.fit()
    assert trainer.stopped_by == number and trainer.step == step
    assert ckpt.list_checkpoints(tmp_path / "run")[-1].name == f"checkpoint-{step:08d}"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers

    resumed = resume(toy, tmp_path / "run")
    assert_equal(toy.snapshot(resumed), whole[1])
    assert losses(tmp_path / "run") == losses(whole[0])
    assert not list((tmp_path / "run").glob(".*"))


def test_data_order_goes_on(toy: ModuleType, tmp_path: Path) -> None:
    def record(objective: Any, into: list[list[float]]) -> Any:
        objective.on_call = lambda batch: into.append(batch["images"].flatten(1).sum(1).tolist())
        return objective

    never_stopped: list[list[float]] = []
    toy.build_trainer(record(toy.denoiser(), never_stopped), tmp_path / "a", horizontal_flip=True).fit()
    parts: list[list[float]] = []
    toy.build_trainer(record(toy.denoiser(signal_at_call=4), parts), tmp_path / "b", horizontal_flip=True).fit()
    trainer = toy.build_trainer(record(toy.denoiser(), parts), tmp_path / "b", horizontal_flip=True)
    trainer.fit(ckpt.resolve_checkpoint(tmp_path / "b", "latest"))
    assert parts == never_stopped


def test_the_whole_state_of_a_gan_is_carried(toy: ModuleType, tmp_path: Path) -> None:
    from generative.core.ema import HalfLifeEMA

    options = {"random_noise": True, "discriminator_steps": 2, "ema": HalfLifeEMA(20)}
    settings = {"total_images": 96, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0}
    never_stopped = toy.build_trainer(toy.gan(toy.adam, **options), tmp_path / "a", **settings)
    never_stopped.fit()
    first = toy.build_trainer(toy.gan(toy.adam, **options), tmp_path / "b", **settings)
    first.objective.generator_loss = stop_after(first, 3)
    first.phases = first.objective.phases()
    first.fit()
    assert first.step == 3
    torch.manual_seed(99)
    second = toy.build_trainer(toy.ToyGAN(toy.adam, toy.adam, **options), tmp_path / "b", **settings)
    second.fit(ckpt.resolve_checkpoint(tmp_path / "b", "latest"))
    assert_equal(toy.snapshot(second), toy.snapshot(never_stopped))


def stop_after(trainer: Trainer, step: int) -> Callable[..., Any]:
    original = trainer.objective.generator_loss  # type: ignore[attr-defined]

    def loss(*arguments: Any) -> Any:
        if trainer.step == step - 1:
            trainer.request_stop(signal.SIGTERM)
        return original(*arguments)

    return loss


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be tidied up on its way."""


@contextmanager
def kill_at(operation: int) -> Iterator[list[str]]:
    """Stop the process dead before the ``operation``-th change of the file system, in every function that makes one."""
    done: list[str] = []

    def wrap(owner: Any, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*arguments: Any, **options: Any) -> Any:
            if len(done) == operation:
                raise Killed(name)
            done.append(name)
            return original(*arguments, **options)

        return replacement

    patch = pytest.MonkeyPatch()
    # Slow, and no change that another process sees.
    patch.setattr(os, "fsync", lambda descriptor: None)
    for owner, names in (
        (os, ("replace", "rename", "mkdir")),
        (shutil, ("rmtree",)),
        (Path, ("write_text",)),
        (ckpt, ("save_file",)),
        (safetensors.torch, ("save_file",)),
    ):
        for name in names:
            patch.setattr(owner, name, wrap(owner, name, getattr(owner, name)))
    try:
        yield done
    finally:
        patch.undo()


def test_killed_at_every_point_of_every_save(toy: ModuleType, tmp_path: Path, whole: tuple[Path, dict[str, Tensor]]) -> None:
    """Before every single change of the file system, once: what is left always leads to the same end."""
    settings = {"keep_last_checkpoints": 1, "total_images": 32}  # 4 steps, saved at 2 and 4, so that old ones are pruned
    with kill_at(10**9) as done:
        expected = toy.build_trainer(toy.denoiser(), tmp_path / "whole", **settings)
        expected.fit()
    end = toy.snapshot(expected)
    assert len(done) > 30 and {"replace", "rename", "mkdir", "rmtree", "write_text", "save_file"} == set(done)
    for operation in range(len(done)):
        run = tmp_path / str(operation)
        with pytest.raises(Killed), kill_at(operation):
            toy.build_trainer(toy.denoiser(), run, **settings).fit()
        for path in ckpt.list_checkpoints(run):
            ckpt.verify_manifest(path)
        with kill_at(10**9):
            assert_equal(toy.snapshot(restart(toy, run, **settings)), end)
        assert not list(run.rglob("*.partial"))
        assert [p.name for p in ckpt.list_checkpoints(run)] == ["checkpoint-00000004"]
        assert [entry["step"] for entry in read_metrics(run)] == [1, 2, 3, 4]
        shutil.rmtree(run)


def test_leftovers_are_swept_and_never_taken_for_a_checkpoint(
    toy: ModuleType, tmp_path: Path, whole: tuple[Path, dict[str, Tensor]]
) -> None:
    run = tmp_path / "run"
    toy.build_trainer(toy.denoiser(signal_at_call=4), run).fit()
    shutil.copytree(run / "checkpoint-00000004", run / ".checkpoint-00000006.partial")
    (run / ".checkpoint-00000006.partial" / "state.json").unlink()
    (run / "samples" / ".step-00000003.png.partial").write_bytes(b"half")  # of a grid that is not asked for any more
    assert_equal(toy.snapshot(resume(toy, run)), whole[1])
    assert not list(run.rglob(".*"))


def test_the_log_has_each_step_once(toy: ModuleType, tmp_path: Path, whole: tuple[Path, dict[str, Tensor]]) -> None:
    """A run that was killed two steps after its checkpoint repeats them; a line cut short is passed over."""
    run = tmp_path / "run"
    toy.build_trainer(toy.denoiser(signal_at_call=4), run).fit()
    with (run / "metrics.jsonl").open("a") as file:
        for step in (5, 6):
            file.write(json.dumps({"step": step, "images_seen": 8 * step, "denoise/loss": 99.0}) + "\n")
        file.write('{"step": 7, "images_se')
    resume(toy, run)
    assert losses(run) == losses(whole[0])


def test_resuming_a_finished_run_changes_nothing(toy: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    toy.build_trainer(toy.denoiser(), run).fit()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    trainer = resume(toy, run)
    assert trainer.step == 6
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_longer_run_goes_on(toy: ModuleType, tmp_path: Path, whole: tuple[Path, dict[str, Tensor]]) -> None:
    run = tmp_path / "run"
    toy.build_trainer(toy.denoiser(), run, total_images=16).fit()
    assert_equal(toy.snapshot(resume(toy, run)), whole[1])


@pytest.mark.parametrize(("keep", "expected"), [(1, [6]), (2, [4, 6]), (None, [2, 4, 6])])
def test_only_the_last_checkpoints_are_kept(toy: ModuleType, tmp_path: Path, keep: int | None, expected: list[int]) -> None:
    toy.build_trainer(toy.denoiser(), tmp_path, keep_last_checkpoints=keep).fit()
    assert [int(p.name.split("-")[1]) for p in ckpt.list_checkpoints(tmp_path)] == expected


def test_loader_workers_outlive_the_first_signal(toy: ModuleType, tmp_path: Path, whole: tuple[Path, dict[str, Tensor]]) -> None:
    """Cluster schedulers and Ctrl-C signal every process of a job, the loader's workers too."""
    import multiprocessing

    objective = toy.denoiser()
    others = set(multiprocessing.active_children())  # that an earlier test may have left

    def signal_all(batch: Any) -> None:
        if objective.calls == 3:
            job = [child.pid for child in set(multiprocessing.active_children()) - others] + [os.getpid()]
            assert len(job) == 3
            # From outside: a worker takes its parent's SIGTERM for an orderly end.
            subprocess.run(["kill", "-TERM", *map(str, job)], check=True)
            time.sleep(0.2)

    objective.on_call = signal_all
    run = tmp_path / "run"
    trainer = toy.build_trainer(objective, run, num_workers=2)
    trainer.fit()
    assert trainer.step == 3
    assert_equal(toy.snapshot(resume(toy, run)), whole[1])


def files(run: Path) -> dict[str, Any]:
    """What a run leaves, but for times: entries, grids, evaluations and checkpoints."""
    found: dict[str, Any] = {
        "entries": [
            {k: v for k, v in e.items() if k != "images_per_second" and not k.startswith("system/")} for e in read_metrics(run)
        ]
    }
    paths = [p for p in run.rglob("*") if p.is_file() and p.name != "metrics.jsonl"]
    return {**found, **{p.relative_to(run).as_posix(): p.read_bytes() for p in paths}}


@pytest.mark.parametrize("call", range(5))
def test_a_killed_run_leaves_the_same_files(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Killed at each grid and evaluation, which follow a checkpoint; entries are means of more steps than lie between two."""
    settings: dict[str, Any] = {
        "log_interval_steps": 3,
        "checkpoint_interval_steps": 2,
        "sample_interval_steps": 2,
        "evaluate_interval_steps": 2,
        "keep_last_checkpoints": None,
    }

    def build(run: Path) -> Any:
        return toy.build_trainer(toy.denoiser(), run, evaluator=toy.evaluator(), **settings)

    build(tmp_path / "whole").fit()
    calls = []

    def killing(inner: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            calls.append(inner)
            if len(calls) == call + 3:  # after the grid of real images and the scores of the untrained network
                raise Killed
            return inner(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(observer, "save_grid", killing(observer.save_grid))
        patch.setattr(observer, "write_json", killing(observer.write_json))
        build(tmp_path / "run").fit()
    resumed = build(tmp_path / "run")
    resumed.fit(ckpt.resolve_checkpoint(tmp_path / "run", "latest"))
    ours, theirs = files(tmp_path / "run"), files(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
