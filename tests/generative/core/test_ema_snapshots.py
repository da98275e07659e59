"""Snapshots of power-function averages during training: when, what, whole, once."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from generative.core import checkpoint as ckpt
from generative.core.ema import ConstantEMA, PowerEMA, average_specs
from generative.core.ema_snapshots import FOLDER, EMASnapshotWriter, list_snapshots
from generative.core.errors import UserError
from generative.core.trainer import Trainer

BATCH = 8


def build(toy: ModuleType, run: Path, interval: int = 12, profiles: Any = None, **settings: Any) -> Trainer:
    """A toy run of 6 steps of 8 images with two power averages and one of another kind."""
    options = {name: settings.pop(name) for name in ("signal_at_call", "signal_number") if name in settings}
    objective = toy.denoiser(ema=None, **options)
    objective.ema = average_specs("net", profiles or [PowerEMA(std=0.05), ConstantEMA(0.9), PowerEMA(std=0.1)])
    trainer: Trainer = toy.build_trainer(objective, run, ema_snapshot_interval_images=interval, **settings)
    return trainer


def contents(run: Path) -> dict[str, dict[str, Tensor]]:
    return {str(path.relative_to(run)): load_file(path) for path in sorted((run / FOLDER).rglob("*.safetensors"))}


def times(run: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in (run / FOLDER).rglob("*.safetensors")}


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[file][key], value) for file, tensors in theirs.items() for key, value in tensors.items())


@pytest.fixture(scope="module")
def whole(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    build(toy, run, ema_snapshot_dtype="float32").fit()
    return run


def test_when_and_what(toy: ModuleType, whole: Path) -> None:
    """At each step that passes a multiple of 12 images, and at the end; outside what checkpoints keep."""
    found = list_snapshots(whole)
    assert {(s.path.parent.name, s.images_seen) for s in found} == {
        (name, images) for name in ("net", "net-std-0.1") for images in (16, 24, 40, 48)
    }
    assert {(s.path.parent.name, s.network, s.std) for s in found} == {("net", "net", 0.05), ("net-std-0.1", "net", 0.1)}
    last = load_file(whole / "checkpoint-00000006/ema/net-std-0.1/diffusion_pytorch_model.safetensors")
    kept = contents(whole)[f"{FOLDER}/net-std-0.1/000000000048.safetensors"]
    assert kept.keys() == last.keys() and all(torch.equal(kept[key], value) for key, value in last.items())
    assert not list((whole / FOLDER).rglob(".*"))


def test_half_precision(toy: ModuleType, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of weights, not of buffers; weights that do not fit are kept as they are. The disk needed is said at the start."""
    trainer = build(toy, tmp_path / "run")
    trainer.fit()
    note = next(line for line in capsys.readouterr().err.splitlines() if "EMA snapshots" in line)
    assert "net, net-std-0.1 every 12 images" in note and "about 8 files of 0.0 MB" in note
    full = contents(whole)
    for file, tensors in contents(tmp_path / "run").items():
        assert torch.equal(tensors["norm.running_var"], full[file]["norm.running_var"])
        assert tensors["norm.num_batches_tracked"].dtype == torch.int64
        assert torch.equal(tensors["last.weight"], full[file]["last.weight"].half())
    trainer.averages["net"].last.weight.data.fill_(1e6)
    trainer.snapshots.write(trainer.averages, 56, 7)
    assert contents(tmp_path / "run")[f"{FOLDER}/net/000000000056.safetensors"]["last.weight"].dtype == torch.float32


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_resumed_run_rewrites_nothing_and_misses_nothing(toy: ModuleType, whole: Path, tmp_path: Path, step: int) -> None:
    run, options = tmp_path / "run", {"ema_snapshot_dtype": "float32", "checkpoint_interval_steps": None}
    build(toy, run, signal_at_call=step, signal_number=15, **options).fit()
    before = times(run)
    build(toy, run, **options).fit(ckpt.resolve_checkpoint(run, "latest"))
    assert_same(run, whole)
    assert before.items() <= times(run).items()


def test_a_killed_run_repeats_steps_and_not_their_snapshots(toy: ModuleType, whole: Path, tmp_path: Path) -> None:
    """Without a checkpoint, and half of two snapshots: what is the same is left, what is cut short is written again."""
    run, options = tmp_path / "run", {"ema_snapshot_dtype": "float32"}
    build(toy, run, **options).fit()
    for path in ckpt.list_checkpoints(run):
        path.rename(run / f"other-{path.name}")
    before = times(run)
    damaged, leftover = (
        run / FOLDER / "net" / "000000000024.safetensors",
        run / FOLDER / "net" / ".000000000040.safetensors.partial",
    )
    damaged.write_bytes(damaged.read_bytes()[:100])
    leftover.write_bytes(b"half")
    build(toy, run, **options).fit()
    assert_same(run, whole)
    assert not leftover.exists()
    assert {path for path, stamp in times(run).items() if before.get(path) == stamp} == set(before) - {str(damaged)}


def test_snapshots_switched_on_later_begin_where_the_run_is(toy: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    build(toy, run, interval=10_000, total_images=2 * BATCH).fit()
    assert {s.images_seen for s in list_snapshots(run)} == {16}  # the end
    build(toy, run, interval=BATCH).fit(ckpt.resolve_checkpoint(run, "latest"))
    assert {s.images_seen for s in list_snapshots(run)} == {16, 24, 32, 40, 48}


def test_wrong_settings(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this run has none; set the objective's `ema`"):
        build(toy, tmp_path / "a", profiles=[ConstantEMA(0.9)])
    with pytest.raises(UserError, match="ema_snapshot_interval_images must be at least 1, got 0"):
        build(toy, tmp_path / "a", interval=0)
    build(toy, tmp_path / "b", total_images=16).fit()
    other = build(toy, tmp_path / "b", profiles=[PowerEMA(std=0.06), ConstantEMA(0.9), PowerEMA(std=0.1)])
    with pytest.raises(UserError, match=r"holds snapshots of an average of std 0\.05, this run's has 0\.06"):
        other.fit(ckpt.resolve_checkpoint(tmp_path / "b", "latest"))
    next((tmp_path / "b" / FOLDER).rglob("*.safetensors")).write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged or no EMA snapshot"):
        list_snapshots(tmp_path / "b")


def test_steps_longer_than_the_interval(tmp_path: Path) -> None:
    writer = EMASnapshotWriter(tmp_path, average_specs("net", PowerEMA(std=0.1)), 3, "float16", 8, 24)
    assert [images for images in range(0, 25, 8) if writer.is_due(images)] == [8, 16, 24]
    assert json.dumps(sorted(writer.specs)) == '["net"]'
