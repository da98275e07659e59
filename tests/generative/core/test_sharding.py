"""Training cut over processes (FSDP2, gloo) equals training on whole networks; its checkpoints are read by anyone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from launching import launch_environment
from safetensors.torch import load_file
from torch import Tensor, nn

from generative.core import checkpoint as ckpt
from generative.core.errors import RunError, UserError
from generative.core.logging import read_metrics
from generative.core.sharding import Sharding, check_networks, check_optimizers, find_blocks, shard_mesh
from generative.core.tensor_files import TensorFile, assign, take_share
from generative.core.trainer_config import TrainerConfig
from generative.core.weights import load_network
from pipelines import load_pipeline

SCRIPT = Path(__file__).with_name("sharded_processes.py")


def launch(folder: Path, scenario: str, num_processes: int, may_fail: bool = False) -> None:
    """Run a scenario of ``sharded_processes.py`` on several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    result = subprocess.run(
        [*command, str(SCRIPT), str(folder), scenario],
        env=launch_environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert may_fail or result.returncode == 0, result.stderr[-4000:]
    assert (folder / f"{scenario} is done").exists(), result.stderr[-4000:]
    assert "returned a view" not in result.stderr


@pytest.fixture(scope="module")
def cases(toy: ModuleType) -> ModuleType:
    """The cases that processes train."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import sharded_processes
    finally:
        sys.path.pop(0)
    return sharded_processes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which two processes have trained every case, whole and cut, and then failed in two ways."""
    folder = tmp_path_factory.mktemp("sharded")
    launch(folder, "compare", 2, may_fail=True)
    return folder


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-4, atol: float = 2e-6) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def files(folder: Path) -> dict[str, bytes]:
    """Content of a checkpoint but its log."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("state.json", ckpt.MANIFEST)
    }


@pytest.mark.parametrize("case", ["dit", "gan", "edm2", "var"])
def test_training_cut_over_processes_equals_training_on_whole_networks(two: Path, case: str) -> None:
    """Weights, averages, buffers and optimizer states; losses and norms of gradients, clipped ones too."""
    assert_close(load_file(two / f"{case}-none.safetensors"), load_file(two / f"{case}-full.safetensors"))
    for ours, theirs in zip(read_metrics(two / f"{case}-none"), read_metrics(two / f"{case}-full"), strict=True):
        names = [name for name in ours if name != "images_per_second" and not name.startswith("system/")]
        assert [theirs[name] for name in names] == pytest.approx([ours[name] for name in names], rel=1e-4, abs=1e-6)


def test_in_bfloat16_they_differ_by_its_rounding_alone(two: Path) -> None:
    """Weights, averages and states stay float32; of the last 16 bits a sum in another order may turn one."""
    one, other = (load_file(two / f"var-bf16-{how}.safetensors") for how in ("none", "full"))
    assert {value.dtype for name, value in other.items() if value.is_floating_point()} == {torch.float32}
    assert_close(one, other, rtol=0.02, atol=1e-4)


def test_four_processes_in_two_groups_train_as_one_does(cases: ModuleType, tmp_path: Path) -> None:
    """And one process goes on from the middle of their run."""
    launch(tmp_path, "groups", 4)
    make, settings = cases.CASES["dit"]
    whole = cases.build(make(), tmp_path / "whole", gradient_accumulation_steps=4, **settings)
    whole.fit()
    assert_close(load_file(tmp_path / "four.safetensors"), cases.end(whole))
    again = cases.build(make(), tmp_path / "again", gradient_accumulation_steps=4, **settings)
    again.fit(ckpt.resolve_checkpoint(tmp_path / "again", str(tmp_path / "four" / "checkpoint-00000002")))
    assert_close(cases.end(whole), cases.end(again))


def test_snapshots_of_averages_are_whole(two: Path) -> None:
    for one in sorted((two / "edm2-none" / "ema-snapshots").rglob("*.safetensors")):
        other = load_file(two / "edm2-full" / one.relative_to(two / "edm2-none"))
        for name, value in load_file(one).items():
            torch.testing.assert_close(value, other[name], rtol=2e-3, atol=1e-6)  # they are of half precision


def test_a_loss_that_meets_a_part_of_a_weight_is_told_in_a_sentence() -> None:
    sharding = Sharding(None)
    sharding.mesh = object()  # type: ignore[assignment]
    with pytest.raises(UserError, match="the loss of phase 'denoiser' uses weights otherwise than by calling"):
        with sharding.explained("denoiser"):
            raise RuntimeError("aten.mm.default got mixed torch.Tensor and DTensor, need to convert")
    with pytest.raises(RuntimeError, match="something else"), sharding.explained("denoiser"):
        raise RuntimeError("something else")


@pytest.mark.parametrize("how", ["async", "hybrid"])
def test_other_ways_write_the_same_checkpoints(two: Path, how: str) -> None:
    """Written in the background while training went on; or cut over one group of all processes."""
    for step in (2, 4):
        assert files(two / f"dit-{how}" / f"checkpoint-{step:08d}") == files(two / "dit-full" / f"checkpoint-{step:08d}")
    assert not list((two / f"dit-{how}").rglob("*.partial"))


def test_pieces_are_of_like_size_and_read_as_one_network(two: Path) -> None:
    """By ourselves, and by diffusers."""
    folder = two / "dit-full" / "checkpoint-00000004"
    ckpt.verify_manifest(folder)
    pieces = sorted((folder / "ema" / "denoiser").glob("*.safetensors"))
    assert [p.name for p in pieces] == [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    sizes = [sum(p.stat().st_size for p in folder.rglob(f"*-0000{k}-of-00002.safetensors")) for k in (1, 2)]
    assert max(sizes) < 1.25 * min(sizes)
    whole, _ = load_network(two / "dit-none")
    cut, _ = load_network(two / "dit-full")
    assert_close(dict(whole.state_dict()), dict(cut.state_dict()))
    again = type(cut).from_pretrained(folder / "ema" / "denoiser")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in cut.state_dict().items())
    pipeline = load_pipeline(two / "dit-full")
    assert all(torch.equal(value, pipeline.denoiser.state_dict()[name]) for name, value in cut.state_dict().items())


@pytest.fixture(scope="module")
def three(two: Path) -> Path:
    """Three processes went on from the checkpoints of two."""
    launch(two, "resume", 3)
    return two


@pytest.mark.parametrize("how", ["cut", "whole", "uncut"])
def test_a_checkpoint_goes_on_in_another_number_of_processes(three: Path, how: str) -> None:
    """From two that were cut, and from two that were not, to three that are; and from cut to whole."""
    assert_close(load_file(three / "dit-none.safetensors"), load_file(three / f"three-{how}.safetensors"))


def test_one_process_goes_on_from_what_three_wrote(cases: ModuleType, three: Path, tmp_path: Path) -> None:
    make, settings = cases.CASES["dit"]
    whole = cases.build(make(), tmp_path / "whole", **settings, total_images=72)
    whole.fit()
    run = tmp_path / "one"
    trainer = cases.build(make(), run, **settings, total_images=72, shard="full")  # one process has nothing to cut
    trainer.fit(ckpt.resolve_checkpoint(run, str(three / "three-cut" / "checkpoint-00000004")))
    assert_close(cases.end(whole), cases.end(trainer))
    start = cases.build(make(), tmp_path / "start", **settings)
    assert start.start_from(three / "three-cut")[0].startswith("weights are those of")


def test_a_full_disk_ends_the_run_in_a_sentence(two: Path) -> None:
    """At the next step that processes agree on, and with nothing half-written."""
    told = [(two / f"full-{rank}.txt").read_text() for rank in (0, 1)]
    assert told[1].startswith("RunError ") and "no space left on the disk while writing" in told[1]
    assert told[0].startswith("RunError ") and "process 1 of the job could not go on (no space left on the disk" in told[0]
    assert told[0].split()[1] == told[1].split()[1] and int(told[0].split()[1]) < 20  # long before its end at step 100
    assert not [p.name for p in (two / "full").iterdir() if "checkpoint" in p.name]


def test_a_kill_in_a_save_leaves_the_checkpoint_before_it(two: Path) -> None:
    said, seconds = json.loads((two / "killed-1.txt").read_text())
    assert "process 0 of the job died without a word" in said and seconds < 60
    assert [p.name for p in ckpt.list_checkpoints(two / "killed")] == ["checkpoint-00000002"]
    ckpt.verify_manifest(two / "killed" / "checkpoint-00000002")
    assert int((two / "killed at.txt").read_text()) >= 4


# ---------------------------------------------------------------- what cannot be cut, and how it is cut


@pytest.mark.parametrize(
    ("mode", "size", "processes", "message"),
    [
        ("hybrid", 4, 6, "trainer.shard_group_size 4 does not divide 6 processes into groups of 2 or more"),
        ("hybrid", 1, 6, "trainer.shard_group_size 1 does not divide 6 processes"),
        ("full", 2, 6, "trainer.shard_group_size goes with trainer.shard hybrid, which is full"),
        ("none", 2, 1, "trainer.shard_group_size goes with trainer.shard hybrid, which is none"),
    ],
)
def test_impossible_groups_are_refused(mode: Any, size: int, processes: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        shard_mesh(mode, size, processes, torch.device("cpu"))


def test_one_process_has_nothing_to_cut() -> None:
    assert shard_mesh("full", None, 1, torch.device("cpu")) is None and not Sharding(None).is_active


def settings(**changes: Any) -> TrainerConfig:
    return TrainerConfig(output_dir=Path("run"), total_images=1, shard="full", **changes)


@pytest.mark.parametrize(
    ("changes", "obstacle", "message"),
    [
        ({"mixed_precision": "fp16"}, None, "works with mixed_precision no and bf16, got fp16"),
        ({"channels_last": True}, None, "trainer.shard full and trainer.channels_last exclude each other"),
        ({}, "its loss calls a part alone", "trainer.shard full cannot be: its loss calls a part alone; set trainer.shard none"),
    ],
)
def test_what_cannot_be_cut_is_refused(changes: dict[str, Any], obstacle: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_networks({"net": nn.Linear(2, 2)}, obstacle, settings(**changes))


def test_networks_that_share_a_weight_are_refused() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = one.weight
    with pytest.raises(UserError, match="networks 'one' and 'other' share a weight"):
        check_networks({"one": one, "other": other}, None, settings())


def test_optimizers_of_whole_weights_are_refused() -> None:
    weights = [nn.Parameter(torch.zeros(2, 2))]
    check_optimizers({"net": torch.optim.AdamW(weights)}, settings())
    with pytest.raises(UserError, match="'net', Adafactor, may look at whole ones; use one of Adam, "):
        check_optimizers({"net": torch.optim.Adafactor(weights)}, settings())


class Level(nn.Module):
    """Holds blocks and is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(8, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])


class Net(nn.Module):
    """Blocks in lists, one of which is tied to the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), Level(), nn.Linear(8, 8), nn.Identity()])
        self.blocks[2].weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


def test_blocks_are_the_entries_of_lists_that_share_nothing() -> None:
    net = Net()
    assert find_blocks(net) == [net.blocks[0], net.blocks[1].entry, net.blocks[1].blocks[0]]


# ---------------------------------------------------------------- pieces


def some_files() -> list[TensorFile]:
    return [
        TensorFile(Path("a/w.safetensors"), {"big": torch.zeros(100), "small": torch.ones(3), "half": torch.ones(50)}),
        TensorFile(Path("empty.safetensors"), {}),
        TensorFile(Path("one.safetensors"), {"x": torch.arange(4)}),
    ]


def test_tensors_go_to_whoever_has_the_fewest_bytes() -> None:
    assert assign(some_files(), 2) == [{"big": 0, "small": 1, "half": 1}, {}, {"x": 1}]


@pytest.mark.parametrize("num_writers", [1, 2, 3])
def test_shares_together_are_everything(tmp_path: Path, num_writers: int) -> None:
    for writer in range(num_writers):
        take_share(some_files(), writer, num_writers, copied=False).write(tmp_path)
    for file in some_files():
        read = ckpt.read_tensors(tmp_path / file.path)
        assert read.keys() == file.tensors.keys() and all(torch.equal(read[key], file.tensors[key]) for key in read)
    assert (tmp_path / "a/w.safetensors.index.json").exists() == (num_writers > 1)
    assert (tmp_path / "one.safetensors").is_file()


def test_a_share_to_be_written_later_is_a_copy() -> None:
    live = torch.zeros(3)
    file = [TensorFile(Path("w"), {"live": live})]
    for copied in (False, True):
        piece = take_share(file, 0, 1, copied=copied).pieces[0].tensors["live"]
        assert (piece.data_ptr() != live.data_ptr()) == copied


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "w.safetensors.index.json").write_text("{"), "index.json' is damaged; it must say which file"),
        (
            lambda folder: (folder / "w.safetensors.index.json").write_text('{"weight_map": {"a": "../w"}}'),
            "is damaged; it must name files beside it",
        ),
        (
            lambda folder: (folder / "w-00002-of-00002.safetensors").unlink(),
            "w.safetensors' is missing or damaged: .*w-00002-of-00002.safetensors",
        ),
    ],
)
def test_damaged_pieces_are_refused(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    for writer in (0, 1):
        take_share(some_files()[:1], writer, 2, copied=False).write(tmp_path)
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=message):
        ckpt.read_tensors(tmp_path / "a" / "w.safetensors")


def test_a_failing_save_in_the_background_is_told_in_the_foreground(toy: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    """By one process as by several: as soon as it is known, and the run ends."""
    monkeypatch.setattr(ckpt, "save_file", partial(raise_full, ckpt.save_file))
    trainer = toy.build_trainer(toy.denoiser(), tmp_path, async_checkpoint=True, total_images=8000)
    with pytest.raises(RunError, match="no space left on the disk while writing"):
        trainer.fit()
    assert trainer.step < 1000
    assert not [p.name for p in tmp_path.iterdir() if "checkpoint" in p.name]


def raise_full(original: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_run_that_saves_in_the_background_writes_the_same_checkpoints(toy: ModuleType, tmp_path: Path) -> None:
    for name, in_background in (("now", False), ("later", True)):
        toy.build_trainer(toy.denoiser(), tmp_path / name, async_checkpoint=in_background, keep_last_checkpoints=None).fit()
    for path in ckpt.list_checkpoints(tmp_path / "now"):
        ckpt.verify_manifest(tmp_path / "later" / path.name)
        assert files(path) == files(tmp_path / "later" / path.name)
    assert files(tmp_path / "now" / "pipeline") == files(tmp_path / "later" / "pipeline")
    assert len(ckpt.list_checkpoints(tmp_path / "later")) == 3
