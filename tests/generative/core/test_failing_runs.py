"""What surrounds a run fails it: loader workers and processes killed. It saves, says one sentence, and ends within seconds."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from launching import launch_environment

from generative.core import checkpoint as ckpt
from generative.core.errors import RunError

TRAIN = ["-m", "generative.cli.main", "train", "toy.yaml", "--trust-code"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_worker_saves_what_was_trained(toy: ModuleType, tmp_path: Path, num_workers: int) -> None:
    """Not in the middle of a step, where PyTorch would raise it: the run goes on as if never stopped."""
    objective = toy.denoiser()

    def kill_worker(batch: Any) -> None:
        if objective.calls == 3:
            multiprocessing.active_children()[0].kill()
            time.sleep(0.3)

    objective.on_call = kill_worker
    trainer = toy.build_trainer(objective, tmp_path / "run", num_workers=num_workers)
    with pytest.raises(RunError, match=r"a loader worker \(process \d+\) was killed by SIGKILL; .* of step 3 was saved"):
        trainer.fit()
    resumed = toy.build_trainer(toy.denoiser(), tmp_path / "run")
    resumed.fit(ckpt.resolve_checkpoint(tmp_path / "run", "latest"))
    whole = toy.build_trainer(toy.denoiser(), tmp_path / "whole")
    whole.fit()
    ours, theirs = toy.snapshot(resumed), toy.snapshot(whole)
    assert ours.keys() == theirs.keys() and all(bool((ours[name] == theirs[name]).all()) for name in ours)


def start(folder: Path, *arguments: str, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A long run of the toy denoiser in a process (or two) of its own, once it has trained some steps."""
    content = {
        "objective": {
            "class_path": "toy.ToyDenoiser",
            "init_args": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}},
        },
        "data": {"class_path": "toy.ToyImages"},
        "trainer": {
            "output_dir": "run",
            "total_images": 10**7,
            "batch_size": 8,
            "log_interval_steps": 1,
            "grid_images_per_class": 2,
            "progress": False,
        },
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(content))
    process = subprocess.Popen(
        [sys.executable, *launcher, *TRAIN, *arguments],
        cwd=folder,
        env=launch_environment(Path(__file__).parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    log = folder / "run" / "metrics.jsonl"
    while not (log.is_file() and log.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    return process


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(number) for number in text.split()]


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error of a run that must end by itself."""
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


linux_only = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")


@linux_only
def test_the_process_ends_when_a_worker_is_killed(tmp_path: Path) -> None:
    """The other worker must follow the signal that the main process sends it at the end."""
    process = start(tmp_path, "--trainer.num_workers", "2")
    os.kill(children(process.pid)[0], signal.SIGKILL)
    code, err = end_of(process)
    assert code == 1 and err.count("\n") == 1 and err.startswith("error: a loader worker (process "), err
    assert len(ckpt.list_checkpoints(tmp_path / "run")) == 1


@linux_only
@pytest.mark.parametrize(
    "victim", ["rank 1", pytest.param("rank 0", marks=pytest.mark.slow), pytest.param("worker", marks=pytest.mark.slow)]
)
def test_the_other_process_says_which_one_is_gone(tmp_path: Path, victim: str) -> None:
    process = start(tmp_path, "--trainer.num_workers", "1" if victim == "worker" else "0", launcher=TORCHRUN)
    ranks = {}
    for pid in children(process.pid):
        variables = dict(v.partition("=")[::2] for v in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        ranks[int(variables["RANK"])] = pid
    os.kill(children(ranks[1])[0] if victim == "worker" else ranks[int(victim[-1])], signal.SIGKILL)
    code, err = end_of(process)
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code != 0 and "generative/core" not in err, err  # torchrun's own traceback is not ours
    if victim == "worker":
        assert len(said) == 2
        assert any("process 0: process 1 of the job could not go on (a loader worker" in line for line in said), err
        assert any("process 1: a loader worker" in line and "was saved" in line for line in said), err
        assert len(ckpt.list_checkpoints(tmp_path / "run")) == 1
    else:
        gone = int(victim[-1])
        assert len(said) == 1, err
        assert said[0].startswith(f"error: process {1 - gone}: process {gone} of the job died without a word"), err


@pytest.mark.parametrize("how", ["renamed", pytest.param("deleted", marks=pytest.mark.slow)])
def test_a_run_whose_folder_is_gone_says_so(tmp_path: Path, how: str) -> None:
    """No traceback of TensorBoard's thread, and no second folder under the old name."""
    process = start(tmp_path)
    run = tmp_path / "run"
    run.rename(tmp_path / "moved")
    if how == "deleted":
        shutil.rmtree(tmp_path / "moved", ignore_errors=True)
    code, err = end_of(process)
    assert code == 1 and err.count("\n") == 1, err
    assert err.startswith("error: the folder 'run' was deleted, moved or replaced"), err
    assert not run.exists()
