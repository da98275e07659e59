"""Folders written whole or not at all, and every way in which a checkpoint can be wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from generative.core import checkpoint as ckpt
from generative.core.errors import RunError, UserError
from generative.core.trainer import Trainer


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fill_with(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "a").mkdir()
        (folder / "a" / "inner.txt").write_text(text)
        (folder / "outer.txt").write_text(text)

    return fill


def test_a_folder_and_its_manifest(tmp_path: Path) -> None:
    ckpt.write_folder(tmp_path / "x", fill_with("four"))
    assert set(tree(tmp_path / "x")) == {"a/inner.txt", "outer.txt", "manifest.json"}
    assert json.loads((tmp_path / "x" / "manifest.json").read_text())["files"] == {"a/inner.txt": 4, "outer.txt": 4}
    ckpt.verify_manifest(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    ckpt.write_folder(tmp_path / "x", fill_with("old"))
    ckpt.write_folder(tmp_path / "x", fill_with("newer"))
    assert (tmp_path / "x" / "a" / "inner.txt").read_text() == "newer"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (ckpt.SafetensorError("I/O error: No space left"), "no space left on the disk"),
        (ckpt.SafetensorError("I/O error: No space left on device (os error 28)"), "no space left on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is used up"),
        (ckpt.SafetensorError("I/O error: Disk quota exceeded (os error 122)"), "the disk quota is used up"),
        (OSError(errno.EFBIG, "File too large"), "a file may not become that large, .*ulimit -f"),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_the_old_folder(tmp_path: Path, error: Exception, reason: str) -> None:
    ckpt.write_folder(tmp_path / "x", fill_with("old"))

    def fill(folder: Path) -> None:
        (folder / "outer.txt").write_text("half")
        raise error

    with pytest.raises(RunError, match=f"{reason}.* while writing .*; nothing half-written remains: "):
        ckpt.write_folder(tmp_path / "x", fill)
    assert (tmp_path / "x" / "outer.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        ckpt.write_folder(tmp_path / "x", fill)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    ckpt.write_folder(tmp_path / "x", fill_with("old"))
    (tmp_path / "x").rename(tmp_path / ".x.previous.partial")
    (tmp_path / ".x.partial").mkdir()
    (tmp_path / ".metrics.jsonl.partial").write_text("half")
    ckpt.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "outer.txt").read_text() == "old"


def test_listing_and_pruning(tmp_path: Path) -> None:
    for step in (5, 100, 30, 123456789):
        ckpt.write_folder(ckpt.checkpoint_path(tmp_path, step), fill_with(str(step)))
    (tmp_path / ".checkpoint-00000200.partial").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    steps = [int(p.name.split("-")[1]) for p in ckpt.list_checkpoints(tmp_path)]
    assert steps == [5, 30, 100, 123456789]
    ckpt.prune_checkpoints(tmp_path, 2)
    assert [int(p.name.split("-")[1]) for p in ckpt.list_checkpoints(tmp_path)] == [100, 123456789]
    assert ckpt.list_checkpoints(tmp_path / "missing") == []


@pytest.fixture
def run(toy: ModuleType, tmp_path: Path) -> Path:
    """A run with checkpoints at steps 4 and 6."""
    toy.build_trainer(toy.denoiser(), tmp_path / "run").fit()
    return tmp_path / "run"


def refuses(toy: ModuleType, run: Path, message: str, objective: Any = None, **settings: Any) -> None:
    trainer: Trainer = toy.build_trainer(objective or toy.denoiser(), run, **settings)
    before = tree(run)
    with pytest.raises(UserError, match=message) as caught:
        trainer.load_checkpoint(ckpt.list_checkpoints(run)[-1])
    assert "\n" not in str(caught.value)
    assert tree(run) == before


def test_what_is_in_a_checkpoint(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {
        "checkpoint-00000004",
        "checkpoint-00000006",
        "pipeline",
        "samples",
        "metrics.jsonl",
    }
    files = set(tree(run / "checkpoint-00000006"))
    weights = "diffusion_pytorch_model.safetensors"
    assert files == {
        "manifest.json",
        "state.json",
        "optimizers/net.safetensors",
        *(f"{kind}/net/{name}" for kind in ("networks", "ema") for name in ("config.json", weights)),
        *(f"pipeline/{name}" for name in ("manifest.json", "model_index.json", "network/config.json", f"network/{weights}")),
    }
    # Each folder is whole, but equal files are kept once.
    newest = run / "checkpoint-00000006"
    assert (newest / "ema" / "net" / weights).samefile(newest / "pipeline" / "network" / weights)
    assert (newest / "ema" / "net" / weights).samefile(run / "pipeline" / "network" / weights)
    assert tree(newest / "pipeline") == tree(run / "pipeline")
    ckpt.verify_manifest(run / "pipeline")
    ckpt.verify_manifest(newest / "pipeline")
    assert not [name for name in tree(run) if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]


def test_no_checkpoint_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no complete checkpoint to resume from"):
        ckpt.resolve_checkpoint(tmp_path, "latest")
    assert ckpt.resolve_checkpoint(tmp_path, "auto") is None
    (tmp_path / ".checkpoint-00000010.partial").mkdir()
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        ckpt.resolve_checkpoint(tmp_path, "latest")
    with pytest.raises(UserError, match="does not exist; --resume takes latest, auto or a checkpoint folder"):
        ckpt.resolve_checkpoint(tmp_path, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is not a complete checkpoint: its manifest.json is missing"):
        ckpt.resolve_checkpoint(tmp_path / "other", str(tmp_path))


def test_resolving(run: Path, tmp_path: Path) -> None:
    newest = run / "checkpoint-00000006"
    for resume in ("latest", "auto", str(newest)):
        assert ckpt.resolve_checkpoint(run, resume) == newest
    assert ckpt.resolve_checkpoint(tmp_path / "fresh", str(newest)) == newest


def test_going_back_past_newer_checkpoints_is_refused(run: Path, tmp_path: Path) -> None:
    """They would be kept as the newest, and deleted would be what the run writes."""
    with pytest.raises(UserError, match="holds 'checkpoint-00000006' beyond"):
        ckpt.resolve_checkpoint(run, str(run / "checkpoint-00000004"))
    elsewhere = tmp_path / "best"
    (run / "checkpoint-00000004").rename(elsewhere)
    with pytest.raises(UserError, match="holds 'checkpoint-00000006' beyond"):
        ckpt.resolve_checkpoint(run, str(elsewhere))


def test_a_checkpoint_kept_under_another_name_goes_on_by_its_step(run: Path) -> None:
    best = run / "checkpoint-best"
    shutil.copytree(run / "checkpoint-00000004", best)
    with pytest.raises(UserError, match="holds 'checkpoint-00000006' beyond"):
        ckpt.resolve_checkpoint(run, str(best))
    shutil.rmtree(best)
    shutil.copytree(run / "checkpoint-00000006", best)
    assert ckpt.resolve_checkpoint(run, str(best)) == best  # the newest one's twin: nothing lies beyond it


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": []}', "null", '{"files": {"a": 1'])
def test_a_damaged_manifest_is_refused(run: Path, content: str) -> None:
    (run / "checkpoint-00000006" / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        ckpt.resolve_checkpoint(run, "latest")


def test_a_missing_or_truncated_file_is_refused_by_name(toy: ModuleType, run: Path) -> None:
    path = run / "checkpoint-00000006" / "ema" / "net" / "diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(UserError, match="'ema/net/diffusion_pytorch_model.safetensors' is missing or cut short"):
        ckpt.resolve_checkpoint(run, "latest")
    path.unlink()
    with pytest.raises(UserError, match="'ema/net/diffusion_pytorch_model.safetensors' is missing or cut short"):
        ckpt.resolve_checkpoint(run, "latest")


@pytest.mark.parametrize("name", ["networks/net/diffusion_pytorch_model.safetensors", "optimizers/net.safetensors"])
def test_damaged_tensors_of_the_right_size_are_refused(toy: ModuleType, run: Path, name: str) -> None:
    path = run / "checkpoint-00000006" / name
    path.write_bytes(b"\xff" * path.stat().st_size)
    refuses(toy, run, f"{Path(name).name}' is missing or damaged")


def edit_state(run: Path, **values: Any) -> None:
    folder = run / "checkpoint-00000006"
    state = {**json.loads((folder / "state.json").read_text()), **values}
    (folder / "state.json").write_text(json.dumps({key: value for key, value in state.items() if value is not None}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = (folder / "state.json").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_newer_format_is_refused(toy: ModuleType, run: Path) -> None:
    edit_state(run, format_version=99)
    refuses(toy, run, "has format version 99")


@pytest.mark.parametrize(
    "values", [{"step": "6"}, {"step": -1}, {"frozen": []}, {"objective": 1}, {"learning_rates": {"net": "fast"}}]
)
def test_a_damaged_state_is_refused(toy: ModuleType, run: Path, values: dict[str, Any]) -> None:
    edit_state(run, **values)
    refuses(toy, run, "state.json' is damaged; resume from another checkpoint")


def test_another_seed_is_refused(toy: ModuleType, run: Path) -> None:
    refuses(toy, run, "has seed 0, this run 1", seed=1)


def test_another_batch_geometry_is_refused(toy: ModuleType, run: Path) -> None:
    refuses(toy, run, "has batch_size 8, this run 4", batch_size=4)
    refuses(toy, run, "has num_slots 1, this run 2.*processes times", gradient_accumulation_steps=2)


def test_another_precision_is_refused(toy: ModuleType, run: Path) -> None:
    refuses(toy, run, "has mixed_precision no, this run bf16", mixed_precision="bf16")


def test_other_data_is_refused(toy: ModuleType, run: Path) -> None:
    refuses(toy, run, "has data_fingerprint", dataset=toy.ToyImages(seed=5))


def test_another_network_configuration_is_refused_by_key(toy: ModuleType, run: Path) -> None:
    refuses(toy, run, "was trained with width=8, the configuration says 16", toy.denoiser(width=16))
    refuses(toy, run, "was trained with dropout=0.2, the configuration says 0.5", toy.denoiser(dropout=0.5))


def test_another_model_is_refused(toy: ModuleType, run: Path) -> None:
    refuses(toy, run, "has optimizers", toy.gan(toy.adam))
    objective = toy.denoiser()
    objective.networks["net"] = toy.ToyGenerator()
    refuses(toy, run, "holds a ToyNet, the configuration asks for a ToyGenerator", objective)


def test_another_optimizer_is_refused(toy: ModuleType, run: Path) -> None:
    objective = toy.denoiser()
    objective.optimizers["net"] = toy.sgd
    refuses(toy, run, "has optimizers {'net': 'Adam'}, this run {'net': 'SGD'}", objective)


def test_an_average_that_was_not_saved_is_refused(toy: ModuleType, run: Path, tmp_path: Path) -> None:
    toy.build_trainer(toy.denoiser(ema=None), tmp_path / "without").fit()
    refuses(toy, tmp_path / "without", "holds no average 'net' .* a run keeps the averages it began with")


def test_optimizer_states_round_trip_whatever_the_layout(tmp_path: Path) -> None:
    """Scalars, tensors, several groups, parameters without a state, channels-last weights."""
    torch.manual_seed(0)

    def build() -> tuple[nn.Module, torch.optim.Optimizer, dict[int, str]]:
        net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(2, 2)).to(memory_format=torch.channels_last)
        groups = [{"params": net[0].parameters(), "lr": 0.5}, {"params": net[1].parameters()}]
        return net, torch.optim.AdamW(groups, lr=0.1), {id(p): name for name, p in net.named_parameters()}

    net, optimizer, names = build()
    net[0](torch.randn(1, 4, 4, 4)).sum().backward()
    optimizer.step()
    optimizer.state[net[0].weight]["note"] = "scalar"
    scalars = ckpt.save_optimizer(optimizer, names, tmp_path / "o.safetensors")
    assert scalars == {"0.weight": {"note": "scalar"}}

    other, restored, other_names = build()
    ckpt.load_optimizer(restored, other_names, tmp_path / "o.safetensors", json.loads(json.dumps(scalars)))
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert restored.state[theirs].keys() == optimizer.state[mine].keys()
        for key, value in optimizer.state[mine].items():
            assert torch.equal(value, restored.state[theirs][key]) if isinstance(value, torch.Tensor) else key == "note"
    assert [group["lr"] for group in restored.param_groups] == [0.5, 0.1]
    with pytest.raises(UserError, match="holds the state of 'elsewhere'"):
        ckpt.load_optimizer(restored, other_names, tmp_path / "o.safetensors", {"elsewhere": {"step": 1}})


def test_fingerprint_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("1")
    first = ckpt.fingerprint_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("ignored")
    assert ckpt.fingerprint_folder(tmp_path) == first
    (tmp_path / "a.json").write_text("2")
    second = ckpt.fingerprint_folder(tmp_path)
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    assert len({first, second, ckpt.fingerprint_folder(tmp_path)}) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, too small for a second checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    yield folder
    # Lazily: the log of the trainer that failed stays open until its traceback is collected.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_really_full(toy: ModuleType, small_disk: Path) -> None:
    run = small_disk / "run"
    toy.build_trainer(toy.denoiser(), run, total_images=16).fit()
    good = tree(run / "checkpoint-00000002")
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(b"0" * (free - 24_000))

    trainer = toy.build_trainer(toy.denoiser(), run, checkpoint_interval_steps=4)
    with pytest.raises(RunError, match="no space left on the disk while writing .*checkpoint-00000004"):
        trainer.fit(ckpt.resolve_checkpoint(run, "latest"))
    assert tree(run / "checkpoint-00000002") == good
    assert not list(small_disk.rglob("*.partial"))

    (small_disk / "ballast").unlink()
    trainer = toy.build_trainer(toy.denoiser(), run)
    trainer.fit(ckpt.resolve_checkpoint(run, "latest"))
    assert [p.name for p in ckpt.list_checkpoints(run)] == ["checkpoint-00000004", "checkpoint-00000006"]


def test_another_frozen_part_is_refused(toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same class, config and shapes: only its weights tell."""

    def objective(seed: int) -> Any:
        made = toy.denoiser()
        torch.manual_seed(seed)
        made.frozen = {"tokenizer": toy.ToyNet(width=4), "perceptual": nn.Linear(2, 2)}
        return made

    run = tmp_path / "run"
    toy.build_trainer(objective(5), run).fit()
    state = ckpt.read_state(run / "checkpoint-00000006")
    assert set(state["frozen"]) == {"tokenizer", "perceptual"} and {len(v) for v in state["frozen"].values()} == {64}
    trainer = toy.build_trainer(objective(5), run)
    trainer.load_checkpoint(run / "checkpoint-00000006")
    refuses(toy, run, "was trained with frozen part perceptual .*, this run has", objective(6))
    refuses(toy, run, "was trained with frozen part perceptual .*, this run has none", toy.denoiser())


def test_another_kind_of_objective_is_refused(toy: ModuleType, run: Path) -> None:
    objective = toy.denoiser()
    objective.identity = lambda: {"prediction_type": "epsilon", "range": (0, 1)}
    toy.build_trainer(objective, run.parent / "other").fit()
    trainer = toy.build_trainer(objective, run.parent / "other")
    trainer.load_checkpoint(run.parent / "other" / "checkpoint-00000006")
    refuses(toy, run.parent / "other", "was trained with prediction_type epsilon, this run has none", toy.denoiser())


def test_a_checkpoint_of_an_older_version_goes_on_and_says_what_it_lacks(
    toy: ModuleType, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_state(run, objective=None, frozen=None, learning_rates=None)
    objective = toy.denoiser()
    objective.frozen = {"tokenizer": nn.Linear(2, 2)}
    capsys.readouterr()
    toy.build_trainer(objective, run).load_checkpoint(run / "checkpoint-00000006")
    notes = capsys.readouterr().err
    assert notes.count("\n") == 1 and "does not record objective 'class', frozen 'tokenizer'" in notes


def test_a_schedule_of_another_length_says_what_the_rate_becomes(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from generative.core.schedules import Linear

    toy.build_trainer(toy.denoiser(), tmp_path, total_images=16, lr_schedule=Linear()).fit()
    checkpoint = tmp_path / "checkpoint-00000002"
    assert ckpt.read_state(checkpoint)["learning_rates"] == {"net": 0.0}
    capsys.readouterr()
    trainer = toy.build_trainer(toy.denoiser(), tmp_path, total_images=64, lr_schedule=Linear())
    trainer.load_checkpoint(checkpoint)
    assert "learning rate of 'net' at step 2: 0 -> 0.0075" in capsys.readouterr().err
    trainer = toy.build_trainer(toy.denoiser(), tmp_path, total_images=16, lr_schedule=Linear())
    trainer.load_checkpoint(checkpoint)
    assert capsys.readouterr().err == ""
