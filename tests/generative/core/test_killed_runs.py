"""Runs killed again and again, in saves too, and gone on with on one process or two, end as the run never stopped does.

Not nearly: to the bit. Two micro-batches are two, whoever has them, and a sum of two gradients has one order; networks cut over
processes included, as Adam moves each number by itself and nothing clips by a norm. Of the log, means over several steps are
rounded otherwise where two processes took them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from launching import launch_environment
from safetensors import safe_open

from generative.core import checkpoint as ckpt
from generative.core.best import BEST_CHECKPOINT
from generative.core.logging import METRICS_FILE, parse_entry, read_metrics

SCRIPT = Path(__file__).with_name("killed_processes.py")
NUM_IMAGES, BATCH_SIZE = 26, 8
STEPS_A_START = 6
"""More than starts make on average before they are killed."""

SEED = int(os.environ.get("KILL_SEED", "0"))
"""Another one is another run of bad luck."""

Start = dict[str, Any]
"""Processes, kill and settings of one start."""


@pytest.fixture(scope="module")
def script(toy: ModuleType) -> ModuleType:
    """The script that the processes run, for its names."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import killed_processes
    finally:
        sys.path.pop(0)
    return killed_processes


@pytest.fixture(scope="module")
def train(script: ModuleType) -> Iterator[Callable[..., list[list[float]]]]:
    """Starts a run and waits for its processes: exit code of each, and seconds after the first one's end."""
    server = subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        env=launch_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None

    def start(folder: Path, case: str, number: int, num_processes: int, kill: Any = None, **settings: Any) -> list[list[float]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = script.Job(str(folder), case, number, port, num_processes, kill, settings)
        server.stdin.write(json.dumps(asdict(job)) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield start
    server.stdin.close()
    server.wait(60)


def settings(num_steps: int, images_per_step: int) -> dict[str, Any]:
    """Of a run of many epochs; entries are means over more steps than lie between two checkpoints."""
    return {
        "total_images": num_steps * images_per_step,
        "batch_size": BATCH_SIZE,
        "log_interval_steps": 3,
        "sample_interval_steps": 5,
        "checkpoint_interval_steps": 2,
    }


def plan(script: ModuleType, seed: int, processes: Sequence[int]) -> list[Start]:
    """A random kill for each start: each way of being killed comes in its turn, with one process as with several."""
    draw = random.Random(seed)
    ways = [("operation", "save"), ("moment", "training"), ("write", "save"), ("moment", "start"), ("operation", "training")]
    ways += [("write", "training"), ("operation", "start"), ("operation", "save"), ("moment", "training"), ("write", "start")]
    starts: list[Start] = []
    for number, num_processes in enumerate(processes):
        how, phase = ways[(number // len(set(processes))) % len(ways)]
        is_cut = num_processes > 1 and draw.random() < 0.5
        rank = draw.randrange(num_processes) if how == "moment" or is_cut else 0
        top = {
            ("moment", "start"): 1,
            ("moment", "training"): 5,
            ("operation", "save"): 160 if rank == 0 else 16,
            ("operation", "training"): 200 if rank == 0 else 20,
            ("operation", "start"): 12,
            ("write", "save"): 3000,
            ("write", "training"): 600,
            ("write", "start"): 600,
        }[how, phase]
        # Before processes have found each other, their launcher alone knows that one is gone.
        is_alone = draw.random() < 0.5 and (how, phase) != ("moment", "start")
        seconds = draw.uniform(0, 0.3 if phase == "start" else 0.05)
        kill = script.Kill(how, phase, draw.randrange(top), seconds, rank, is_alone or how == "write")
        changes: dict[str, Any] = {"async_checkpoint": draw.random() < 0.4, "checkpoint_interval_steps": draw.randint(1, 3)}
        if is_cut:
            changes["shard"] = "full"
        elif num_processes == 1:
            changes["num_workers"] = int(draw.random() < 0.25)
        starts.append({"num_processes": num_processes, "kill": kill, **changes})
    return starts


def check_end(folder: Path, number: int, start: Start, ends: list[list[float]]) -> None:
    """One was killed; others said a sentence, and ended soon."""
    kill = start["kill"]
    said = [(folder / f"said-{number}-{rank}.txt").read_text() for rank in range(len(ends))]
    told = f"{kill}: {ends}\n" + "\n".join(said)
    assert ends[kill.rank][0] in (-signal.SIGKILL, -signal.SIGXFSZ), told
    for rank, (code, seconds) in enumerate(ends):
        assert seconds < 50, told
        if code == -signal.SIGKILL or rank == kill.rank:
            continue
        lines = [line for line in said[rank].splitlines() if line.startswith("error: ")]
        assert code == 1 and len(lines) == 1 and "Traceback" not in said[rank], told
        assert f"process {kill.rank} of the job died" in lines[0] or "another process of the job is gone" in lines[0], told


def check_whole(run: Path) -> int:
    """Whatever has a name is whole, and can be read to its last byte; returns the step of the newest checkpoint."""
    found = ckpt.list_checkpoints(run)
    for folder in [*found, *(path for path in (run / ckpt.PIPELINE, run / BEST_CHECKPOINT) if path.exists())]:
        ckpt.verify_manifest(folder)
        for path in folder.rglob("*.safetensors"):
            ckpt.read_tensors(path)
        for path in folder.rglob("*.json"):
            json.loads(path.read_text())
    for path in run.glob("*.json"):
        json.loads(path.read_text())
    if (run / METRICS_FILE).exists():
        lines = (run / METRICS_FILE).read_text().split("\n")
        assert all(parse_entry(line) for line in lines[:-1])  # a kill may have cut the last one short
    return ckpt.step_of(found[-1]) if found else 0


def trained_images(folder: Path) -> list[list[list[Any]]]:
    """The images of each step in the order of the data: what a step was given again after a kill must be what it was."""
    steps: dict[int, dict[tuple[int, int], Any]] = {}
    for path in folder.glob("trained-*.jsonl"):
        rank = int(path.stem.split("-")[2])
        calls: dict[int, int] = {}
        for line in path.read_text().split("\n")[:-1]:  # a step whose line was cut short has not begun
            entry = json.loads(line)
            step = entry["step"]
            calls[step] = calls.get(step, -1) + 1
            ranks = 2 if (path.with_name(path.name.replace(f"-{rank}.", f"-{1 - rank}."))).exists() else 1
            place = calls[step] * ranks + rank
            assert steps.setdefault(step, {}).setdefault(place, entry["images"]) == entry["images"]
    assert sorted(steps) == list(range(len(steps)))
    return [[image for place in sorted(steps[step]) for image in steps[step][place]] for step in sorted(steps)]


def check_order(trained: list[list[list[Any]]], num_steps: int, images_per_step: int) -> None:
    """Every image exactly once in each epoch, though no epoch ends with a step."""
    assert [len(images) for images in trained] == [images_per_step] * num_steps
    order = [index for images in trained for index, _ in images]
    epochs = [order[start : start + NUM_IMAGES] for start in range(0, len(order), NUM_IMAGES)]
    assert all(sorted(epoch) == list(range(NUM_IMAGES)) for epoch in epochs[:-1])
    assert len(set(epochs[-1])) == len(epochs[-1]) and epochs[0] != epochs[1]
    assert {is_flipped for images in trained for _, is_flipped in images} == {True, False}


def entries(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    return [
        {k: v for k, v in entry.items() if k != "images_per_second" and not k.startswith("system/")}
        for entry in read_metrics(run)
    ]


def files(run: Path) -> dict[str, Any]:
    """Content of all files that do not depend on where checkpoints were made; of these the last and the best one."""
    kept = (ckpt.list_checkpoints(run)[-1].name, BEST_CHECKPOINT)
    paths = [p for p in run.rglob("*") if p.is_file() and p.name not in (METRICS_FILE, "state.json", ckpt.MANIFEST)]
    places = {p: p.relative_to(run) for p in paths}
    return {
        place.as_posix(): content(path)
        for path, place in places.items()
        if not place.parts[0].startswith("checkpoint-") or place.parts[0] in kept
    }


def content(path: Path) -> Any:
    """What a file holds, to the bit; safetensors keeps its metadata in any order."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return file.metadata(), {name: (value.shape, value.numpy().tobytes()) for name, value in tensors.items()}


def compare(train: Callable[..., Any], tmp_path: Path, case: str, starts: list[Start]) -> None:
    """Train a run never stopped and one killed in every start but the last, and compare all that they leave."""
    num_steps, images_per_step = STEPS_A_START * len(starts), BATCH_SIZE * (2 if case == "gan" else 1)
    given = settings(num_steps, images_per_step)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert train(whole, case, 0, 1, **given) == [[0, 0]], (whole / "said-0-0.txt").read_text()
    before = 0
    for number, start in enumerate(starts):
        ends = train(killed, case, number, **{**given, **start})
        check_end(killed, number, start, ends)
        step = check_whole(killed / "run")
        assert step >= before
        before = step
    end = train(killed, case, len(starts), 1, **given)
    assert end == [[0, 0]], (killed / f"said-{len(starts)}-0.txt").read_text()
    assert check_whole(killed / "run") == num_steps

    ours, theirs = files(killed / "run"), files(whole / "run")
    assert ours.keys() == theirs.keys() and not [p for p in (killed / "run").rglob(".*")]
    assert [name for name in ours if ours[name] != theirs[name]] == []
    trained = trained_images(killed)
    assert trained == trained_images(whole)
    check_order(trained, num_steps, images_per_step)
    is_alone = all(start["num_processes"] == 1 for start in starts)
    for our, their in zip(entries(killed / "run"), entries(whole / "run"), strict=True):
        assert our == (their if is_alone else pytest.approx(their, rel=1e-5))


def test_a_run_killed_four_times(script: ModuleType, train: Callable[..., Any], tmp_path: Path) -> None:
    compare(train, tmp_path, "denoiser", plan(script, SEED, [1] * 4))


def test_a_gan_of_one_and_two_processes_killed_in_turn(script: ModuleType, train: Callable[..., Any], tmp_path: Path) -> None:
    compare(train, tmp_path, "gan", plan(script, SEED, [1, 2] * 2))


@pytest.mark.slow
def test_a_run_of_one_and_two_processes_killed_twenty_times(
    script: ModuleType, train: Callable[..., Any], tmp_path: Path
) -> None:
    compare(train, tmp_path, "denoiser", plan(script, SEED, [1, 2] * 10))


@pytest.mark.slow
def test_a_gan_killed_twenty_times(script: ModuleType, train: Callable[..., Any], tmp_path: Path) -> None:
    compare(train, tmp_path, "gan", plan(script, SEED + 1, [1, 2] * 10))


@pytest.mark.slow
def test_a_scored_run_killed_in_turn(script: ModuleType, train: Callable[..., Any], tmp_path: Path) -> None:
    """Its scores and its best checkpoint too; of one process, as samples of two differ by a level here and there."""
    compare(train, tmp_path, "scored", plan(script, SEED, [1] * 6))
    ours, theirs = (ckpt.read_state(tmp_path / name / "run" / BEST_CHECKPOINT)["step"] for name in ("killed", "whole"))
    assert ours == theirs > 0
