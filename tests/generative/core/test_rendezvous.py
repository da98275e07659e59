"""Processes that do not meet, and processes that were started unlike each other."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from launching import launch_environment

from generative.core import rendezvous
from generative.core.errors import RunError, UserError
from generative.core.rendezvous import check_agreement, meeting
from generative.core.start_checks import describe_start
from generative.core.trainer_config import TrainerConfig

TRAIN = ["-m", "generative.cli.main", "train", "toy.yaml", "--trust-code"]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(commands: Sequence[Sequence[str]], world_size: int, port: int) -> list[tuple[int, str]]:
    """Exit code and standard error of the first processes of a job, which a cluster's scheduler starts by their environment."""
    kept = launch_environment(Path(__file__).parent)
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, *command], env={**kept, **job, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **pipes)
        for rank, command in enumerate(commands)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, err) for process, err in zip(processes, errors, strict=True)]


def errors_of(err: str) -> list[str]:
    assert "Traceback" not in err, err
    return [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.fixture
def config(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    content = {
        "objective": {"class_path": "toy.ToyDenoiser", "init_args": {"optimizer": adam}},
        "data": {"class_path": "toy.ToyImages"},
        "trainer": {"output_dir": "run", "total_images": 16, "batch_size": 8, "progress": False},
    }
    Path("toy.yaml").write_text(yaml.safe_dump(content))
    return content


def test_a_taken_port(config: dict[str, Any], taken_port: int) -> None:
    ((code, err),) = start([TRAIN], 2, taken_port)
    said = errors_of(err)
    assert code == 1 and len(said) == 1, err
    assert said[0].startswith(f"error: process 0: the port of 127.0.0.1:{taken_port} is taken by another program or job: give a")
    assert not Path("run").exists()


def test_unlike_configurations_and_a_folder_missing_on_one(config: dict[str, Any]) -> None:
    """All say the same of the first; of the second, which only one process meets, that one says what it met."""
    rate = "--objective.init_args.optimizer.init_args.lr"
    (code, err), (other_code, other) = start([TRAIN, [*TRAIN, rate, "0.02"]], 2, free_port())
    sentence = "process 1 of the job has objective.init_args.optimizer.init_args.lr 0.02, process 0 0.01: give all of them the"
    assert code == other_code == 2 and errors_of(err)[0].startswith(f"error: {sentence}")
    assert all(sentence in line for line in errors_of(other)) and not Path("run").exists()

    folder = [*TRAIN, "--data", "ImageFolderDataset", "--data.image_size", "4", "--data.root"]
    for label in ("ant", "bee", "cow"):
        (Path("there") / label).mkdir(parents=True)
        from PIL import Image

        Image.new("RGB", (4, 4)).save(Path("there") / label / "0.png")
    (code, err), (other_code, other) = start([[*folder, "./there"], [*folder, "./nowhere"]], 2, free_port())
    assert errors_of(other) == ["error: process 1: image folder 'nowhere' does not exist; check the path"] and other_code == 2
    assert code == 1 and errors_of(err)[0].startswith("error: process 0: process 1 of the job failed (image folder 'nowhere'")
    assert not Path("run").exists()


# ---------------------------------------------------------------- in one process


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            torch.distributed.DistStoreError("Timed out after 9 seconds waiting for clients. 1/2 clients joined."),
            r"the 2 processes of the job did not meet at host:1 \(Timed out after 9 seconds waiting for clients\): start as many",
        ),
        (
            torch.distributed.DistNetworkError("The client socket has failed to connect to any network address of (x, 1)."),
            "did not meet at host:1 .*on machines that reach that one",
        ),
        (ValueError("Error initializing torch.distributed using env:// rendezvous: RANK expected"), "did not meet at host:1"),
    ],
)
def test_processes_that_do_not_meet(monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str) -> None:
    monkeypatch.setenv("MASTER_ADDR", "host")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(RunError, match=sentence), meeting(2):
        raise error


def test_other_errors_of_the_start_are_left_alone() -> None:
    with pytest.raises(UserError, match="mine"), meeting(2):
        raise UserError("mine")
    with pytest.raises(RuntimeError, match="CUDA out of memory") as caught, meeting(2):
        raise RuntimeError("CUDA out of memory")
    assert not isinstance(caught.value, RunError)
    with pytest.raises(RuntimeError, match="EADDRINUSE") as caught, meeting(1):
        raise RuntimeError("EADDRINUSE")
    assert not isinstance(caught.value, RunError)


def test_a_process_says_that_it_waits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE_SECONDS", 0.05)
    for name, value in {"MASTER_ADDR": "host", "MASTER_PORT": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with meeting(2):
        time.sleep(0.5)
    with meeting(2):
        pass
    assert capsys.readouterr().err == "note: process 1 waits for all 2 processes of the job to meet at host:1\n"


def test_one_process_agrees_with_itself() -> None:
    check_agreement({"seed": 1})


@pytest.mark.parametrize(
    ("everyone", "sentence"),
    [
        ([{"seed": 1}, {"seed": 1}, {"seed": 2}], "process 2 of the job has seed 2, process 0 1: give all of them the same"),
        ([{"seed": 1}, {"seed": 1, "more": 3}], "process 1 of the job has more 3, process 0 nothing of the kind"),
        ([{"seed": 1, "more": None}, {"seed": 1}], "process 1 of the job has more nothing of the kind, process 0 None"),
        ([{"x": "a" * 100}, {"x": "b" * 100}], r"has x b{77}\.\.\., process 0 a{77}\.\.\.:"),
    ],
)
def test_the_first_difference_is_told(monkeypatch: pytest.MonkeyPatch, everyone: list[Any], sentence: str) -> None:
    monkeypatch.setattr(rendezvous, "is_several", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: len(everyone))
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), everyone))
    with pytest.raises(UserError, match=sentence):
        check_agreement(everyone[0])


def test_what_must_be_alike(toy: ModuleType) -> None:
    """What is trained, on which images; not weights, which come from the main process, nor what a machine has of its own."""

    def facts(objective: Any = None, images: Any = None, seed: int = 0, **settings: Any) -> dict[str, Any]:
        config = TrainerConfig(**{"output_dir": Path("run"), "total_images": 16, **settings})
        return describe_start(objective or toy.denoiser(), images or toy.ToyImages(), None, config, seed, {})

    def differing(other: dict[str, Any]) -> list[str]:
        return [name for name, value in facts().items() if other[name] != value]

    moved = toy.denoiser()
    torch.nn.init.zeros_(moved.networks["net"].last.weight)
    assert differing(facts(moved, output_dir=Path("elsewhere"), num_workers=3, num_threads=1, progress=False)) == []
    assert differing(facts(toy.denoiser(width=9))) == ["network 'net'"]
    assert differing(facts(images=toy.ToyImages(seed=1))) == ["data"]
    assert differing(facts(seed=1, batch_size=3)) == ["seed", "trainer.batch_size"]
