"""Several processes score as one does: uneven shares, labels, damaged images, and errors that end all of them at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metrics.cli import main
from metrics.distributed import Processes
from metrics.scoring.shares import neighbours, tiles_of_process

_ROOT = Path(__file__).parents[2]
_TIMEOUT_SECONDS = 120
#: Runs several command lines in one process of a group and records what each did: starting Python twice costs more than all.
_DRIVER = """
import contextlib, io, json, sys
import torch
import torch.distributed as dist
from datetime import timedelta

torch.set_num_threads(1)
from metrics.cli import main

dist.init_process_group("gloo", timeout=timedelta(seconds=60))
records = []
for line in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line)
    dist.barrier()  # A file that the first process writes is there for the next line.
    records.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
dist.destroy_process_group()
open(f"{sys.argv[2]}/{__import__('os').environ['RANK']}.json", "w").write(json.dumps(records))
"""
_OWN_EXTRACTOR = '''
"""A random projection of 8 x 8 pixels, as the tests' tiny network, in a file that other processes can read."""

import torch
from metrics.extractors import FeatureExtractor


class Own(FeatureExtractor):
    name = "own"
    input_size = 8
    weights_sha256 = "1" * 64
    embedding = "projection"
    class_logits = "logits"

    def __init__(self):
        super().__init__()
        self.feature_dims = {"projection": 12, "logits": 5}
        generator = torch.Generator().manual_seed(0)
        self.projection = torch.nn.Parameter(torch.randn(192, 12, generator=generator) / 14)
        self.classifier = torch.nn.Parameter(torch.randn(12, 5, generator=generator))

    @classmethod
    def from_file(cls, weights, input_size):
        return cls()

    def forward(self, images):
        features = (images.flatten(1) / 127.5 - 1) @ self.projection
        return {"projection": features, "logits": features @ self.classifier}
'''


@dataclass(frozen=True)
class Case:
    """One command line and what it must do.

    Args:
        arguments: Without the network's; "CACHE" stands for a folder of its own.
        words: What the one message says, of a line that is refused.
    """

    arguments: list[str]
    words: str | None = None


def _environment(world_size: int = 1, **more: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**plain, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", **more}


def _run_group(commands: Sequence[tuple[list[str], dict[str, str]]]) -> list[subprocess.CompletedProcess[str]]:
    """Start processes and wait for all of them; whatever happens, none is left."""
    started = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for command, environment in commands
    ]
    done = []
    try:
        for process in started:
            out, err = process.communicate(timeout=_TIMEOUT_SECONDS)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return done


def _free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def _drive(lines: Sequence[Any], folder: Path, world_size: int = 2) -> list[list[dict[str, Any]]]:
    """Run command lines on a group of processes; return each process's records."""
    folder.mkdir()
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    command = [sys.executable, "-c", _DRIVER, json.dumps(lines), str(folder)]
    done = _run_group([(command, _environment(**shared, RANK=str(r), LOCAL_RANK=str(r))) for r in range(world_size)])
    assert [process.returncode for process in done] == [0] * world_size, "\n".join(process.stderr for process in done)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, smooth_images: Any, write_folder: Any) -> dict[str, str]:
    """Reals and fakes of odd counts, by class (a process alone sees no class in full), one with damaged files."""
    root = tmp_path_factory.mktemp("distributed")
    (root / "own.py").write_text(_OWN_EXTRACTOR)
    for name, seed, counts in (("real", 0, (9, 13, 7)), ("fake", 1, (5, 11, 5))):
        for label, count in zip(("bird", "cat", "dog"), counts, strict=True):
            images = smooth_images(count, 10, 9, seed=seed + 10 * ord(label[0]), contrast=60.0 + 20 * seed)
            write_folder(root / name / label, images)
    write_folder(root / "damaged", smooth_images(11, 9, 9, seed=5))
    (root / "damaged" / "0001.png").write_bytes(b"no image")
    (root / "damaged" / "0009.png").write_bytes(b"no image")
    write_folder(root / "two", smooth_images(2, 9, 9, seed=6))
    write_folder(root / "mixed", smooth_images(10, 9, 9, seed=6))
    write_folder(root / "mixed" / "z", smooth_images(1, 20, 9, seed=7))
    write_folder(root / "halves" / "a", smooth_images(8, 9, 9, seed=6))
    write_folder(root / "halves" / "b", smooth_images(8, 20, 9, seed=7))
    return {path.name.removesuffix(".py"): str(path) for path in root.iterdir()}


@pytest.fixture(scope="module")
def cases(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    real, fake = folders["real"], folders["fake"]
    target = tmp_path_factory.mktemp("saved")
    every = ["--metrics", "fid,kid,prc,is,mind", "--kid-subset-size", "9", "--isc-splits", "3"]
    return {
        "every": Case([real, fake, *every, "--json"]),
        "again, from the cache": Case([real, fake, *every, "--json"]),
        "uncached": Case([real, fake, *every, "--no-cache", "--json"]),
        "labels": Case([real, fake, "--metrics", "class-fid,fid", "--json"]),
        "skipped": Case([real, folders["damaged"], "--skip-corrupt", "--json"]),
        "fewer than processes": Case([real, folders["two"], "--json"]),
        "two sets": Case([real, fake, folders["damaged"], "--skip-corrupt", "--no-cache", "--json"]),
        "order": Case([fake, "--metrics", "is", "--no-samples-shuffle", "--isc-splits", "4", "--json"]),
        "matching": Case([real, fake, "--match-classes", "top1", "--match-num", "12", "--json"]),
        "saved": Case(["--save-stats", real, f"{target}/OUT.npz", "--metrics", "fid,kid"]),
        "stored": Case([f"{target}/OUT.npz", fake, "--metrics", "fid,kid", "--kid-subset-size", "9", "--json"]),
        "one set damaged": Case([real, fake, folders["damaged"], folders["two"], "--metrics", "fid,prc", "--json"]),
        "damaged on both": Case([real, folders["damaged"]], ".png is truncated or corrupt"),
        "mixed on the last": Case([real, folders["mixed"], "--protocol", "edm"], "scores images of one size"),
        "another size on each": Case([real, folders["halves"], "--protocol", "edm"], "scores images of one size"),
        "absent": Case([real, folders["real"] + "-absent"], "does not exist"),
    }


def _finish(case: Case, folders: dict[str, str], cache: Path, saved: str) -> list[str]:
    network = ["--extractor", f"{folders['own']}:Own"]
    return [
        *(word.replace("OUT", saved) for word in case.arguments),
        *network,
        "--device",
        "cpu",
        "--quiet",
        "--cache-root",
        str(cache),
    ]


@pytest.fixture(scope="module")
def together(cases: dict[str, Case], folders: dict[str, str], tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """Case -> what each of two processes did."""
    root = tmp_path_factory.mktemp("together")
    lines = [_finish(case, folders, root / "cache", "two") for case in cases.values()]
    ranks = _drive(lines, root / "records")
    return {name: [records[index] for records in ranks] for index, name in enumerate(cases)}


def _alone(name: str, cases: dict[str, Case], folders: dict[str, str], cache: Path, capsys) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(_finish(cases[name], folders, cache, "one"))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


_SCORED = [
    "every",
    "again, from the cache",
    "uncached",
    "labels",
    "skipped",
    "fewer than processes",
    "two sets",
    "order",
    "matching",
]


@pytest.mark.parametrize("name", _SCORED)
def test_two_processes_score_as_one(name: str, together, cases, folders, tmp_path: Path, capsys) -> None:
    first, second = together[name]
    assert (first["code"], second["code"]) == (0, 0), first["err"] + second["err"]
    assert second["out"] == "", "one process speaks for all"
    code, out, err = _alone(name, cases, folders, tmp_path, capsys)
    assert code == 0, err
    alone, found = json.loads(out), json.loads(first["out"])
    for ours, theirs in zip(alone["results"], found["results"], strict=True):
        # Batches are cut elsewhere, which moves a float32 feature in its last digit.
        assert theirs["scores"] == pytest.approx(ours["scores"], rel=1e-5, abs=1e-6)
        assert theirs["samples"] == ours["samples"] and theirs["protocols"] == ours["protocols"]
        assert sorted(theirs["notes"]) == sorted(ours["notes"])
    assert found["reference"] == alone["reference"]


def test_a_set_that_fails_keeps_the_others(together, cases, folders, tmp_path: Path, capsys) -> None:
    first, second = together["one set damaged"]
    assert (first["code"], second["code"], second["out"]) == (2, 2, "")
    code, out, err = _alone("one set damaged", cases, folders, tmp_path, capsys)
    assert code == 2 and first["err"].splitlines()[0] == err.splitlines()[0], "what is known at the start"
    told = first["err"] + second["err"]
    assert told.count("2 of 3 sample sets lack scores") == err.count("2 of 3 sample sets lack scores") == 1
    for ours, theirs in zip(json.loads(out)["results"], json.loads(first["out"])["results"], strict=True):
        assert theirs["scores"] == pytest.approx(ours["scores"], rel=1e-5, abs=1e-6)
        assert len(theirs["errors"]) == len(ours["errors"])


def test_saved_statistics_are_those_of_one_process(together, cases, folders, tmp_path: Path, capsys) -> None:
    import numpy as np

    code, out, err = _alone("saved", cases, folders, tmp_path, capsys)
    assert code == 0, err
    first, second = together["saved"]
    assert (first["code"], second["code"], second["out"]) == (0, 0, "")
    assert first["out"] == out.replace("one.npz", "two.npz")
    target = Path(cases["saved"].arguments[2]).parent
    with np.load(target / "one.npz") as one, np.load(target / "two.npz") as two:
        assert sorted(one) == sorted(two) and str(one["provenance"]) == str(two["provenance"]), "the same images, in order"
        np.testing.assert_allclose(one["features_0"], two["features_0"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one["sigma"], two["sigma"], rtol=1e-4, atol=1e-6)
    code, out, err = _alone("stored", cases, folders, tmp_path, capsys)
    assert json.loads(together["stored"][0]["out"])["scores"] == pytest.approx(json.loads(out)["scores"], rel=1e-5)


_REFUSED = ["damaged on both", "mixed on the last", "absent"]


@pytest.mark.parametrize("name", _REFUSED)
def test_an_error_ends_all_processes(name: str, together, cases) -> None:
    for record in together[name]:
        assert record["code"] == 2 and record["out"] == ""
        assert record["err"] == "" or (record["err"].startswith("error: ") and str(cases[name].words) in record["err"])


@pytest.mark.parametrize("name", _REFUSED)
def test_an_error_is_told_once(name: str, together) -> None:
    assert len([record["err"] for record in together[name] if record["err"]]) == 1


def test_sizes_are_compared_over_all_processes(together, cases) -> None:
    records = together["another size on each"]
    assert [record["code"] for record in records] == [2, 2]


@pytest.mark.slow
def test_torchrun(folders: dict[str, str], cases: dict[str, Case], tmp_path: Path, capsys) -> None:
    """The line of the help text, through the launcher itself."""
    line = _finish(cases["labels"], folders, tmp_path / "cache", "two")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", _free_port(), "-m", "metrics.cli"]
    (done,) = _run_group([([sys.executable, *launcher, *line], _environment())])
    assert done.returncode == 0, done.stderr
    code, out, err = _alone("labels", cases, folders, tmp_path / "other", capsys)
    assert json.loads(done.stdout)["scores"] == pytest.approx(json.loads(out)["scores"], rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("done", [set(), {0, 1, 2, 3}, {1, 4, 9}, set(range(11))], ids=len)
def test_what_is_left_of_a_stopped_run_is_shared_evenly(count: int, done: set[int]) -> None:
    """Every tile is some process's, and none has to do more than another by more than one."""
    mine = [tiles_of_process(Processes(rank, count), 11, done) for rank in range(count)]
    assert sorted(tile for tiles in mine for tile in tiles) == list(range(11))
    left = [len(set(tiles) - done) for tiles in mine]
    assert max(left) - min(left) <= 1
    for tiles in mine:
        assert [tile for part in neighbours(tiles) for tile in part] == tiles
