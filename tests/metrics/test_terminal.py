"""Surroundings of a program: readers that leave, terminals that lack characters, users without a home, small disks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metrics.scores import classification_accuracy
from metrics.terminal import EXIT_NO_READER, drawable, until_nobody_reads

_ROOT = Path(__file__).parents[2]
_SCORE = ["-m", "metrics.cli"]
_FAST = ["--extractor", "efficientnet-lite0", "--input-size", "32", "--device", "cpu", "--quiet"]

_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def _environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONIOENCODING", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    }
    return {**kept, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "TRIPTYCH_CACHE": str(tmp_path / "cache"), **changes}


def _run_without_reader(arguments: list[str], tmp_path: Path, stream: str) -> tuple[int, str]:
    """Run a program whose standard output (or error) nobody reads; return its exit code and the other stream's text."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    try:
        done = subprocess.run(
            [sys.executable, *arguments], **streams, text=True, timeout=120, env=_environment(tmp_path), check=False
        )
    finally:
        os.close(writer)
    return done.returncode, (done.stderr if stream == "stdout" else done.stdout) or ""


@pytest.mark.skipif(os.name == "nt", reason="pipes differ there")
@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "generative.cli.main"],
        ["-m", "generative.cli.main", "list"],
        ["-m", "generative.cli.main", "train", "--help"],
        ["-m", "generative.cli.main", "sample", "--help"],
        [*_SCORE, "--help"],
    ],
)
def test_a_reader_that_leaves_ends_a_program_quietly(arguments: list[str], tmp_path: Path) -> None:
    code, errors = _run_without_reader(arguments, tmp_path, "stdout")
    assert code in (0, EXIT_NO_READER) and errors == ""


@pytest.mark.skipif(os.name == "nt", reason="pipes differ there")
def test_a_score_that_nobody_reads(tmp_path: Path, smooth_images, write_folder) -> None:
    folder = write_folder(tmp_path / "set", smooth_images(4, 8, 8, seed=0))
    code, errors = _run_without_reader([*_SCORE, str(folder), str(folder), *_FAST], tmp_path, "stdout")
    assert (code, errors) == (EXIT_NO_READER, "")
    assert _run_without_reader([*_SCORE, "absent", str(folder)], tmp_path, "stderr") == (EXIT_NO_READER, "")


def test_another_pipe_that_breaks_is_an_error() -> None:
    def run() -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        until_nobody_reads(run)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="file names are text elsewhere")
@pytest.mark.parametrize("changes", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}, {}])
def test_names_that_cannot_be_printed_cost_no_number(
    changes: dict[str, str], tmp_path: Path, smooth_images, write_folder
) -> None:
    images = smooth_images(4, 8, 8, seed=0)
    folders = [write_folder(tmp_path / os.fsdecode(name), images) for name in (b"plain", "\u4e00 $x".encode(), b"bad\xff")]
    written = [tmp_path / "scores.csv", tmp_path / "scores.json", tmp_path / "scores.png"]
    arguments = [*_SCORE, *map(os.fspath, folders), *_FAST]
    arguments += ["--csv", str(written[0]), "--json", str(written[1]), "--plot", str(written[2])]
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, timeout=120, env=_environment(tmp_path, **changes), check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert rb"bad\udcff" in done.stdout and done.stdout.count(b"0.000000") == 2
    assert all(path.stat().st_size > 0 for path in written)


def test_drawable() -> None:
    assert drawable("a$b" + os.fsdecode(b"\xff")) == r"a\$b\udcff"


_UNKNOWN_USER = """
import os, pwd, sys
os.getuid = lambda: 987654321
def unknown(*args):
    raise KeyError("getpwuid(): uid not found: 987654321")
pwd.getpwuid = pwd.getpwnam = unknown
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "TRIPTYCH_CACHE"):
    os.environ.pop(name, None)
sys.argv = sys.argv[1:]
if sys.argv[0] == "generative":
    from generative.cli.main import main
    sys.exit(main())
from metrics.cli import entry
entry()
"""


@pytest.mark.skipif(os.name == "nt", reason="users differ there")
@pytest.mark.parametrize("program", ["fid-score", "generative"])
def test_a_user_that_the_system_does_not_know(program: str, tmp_path: Path, smooth_images, write_folder) -> None:
    folder = write_folder(tmp_path / "set", smooth_images(4, 8, 8, seed=0))
    (tmp_path / "tmp").mkdir()
    arguments = [str(folder), str(folder), *_FAST] if program == "fid-score" else ["list"]
    done = subprocess.run(
        [sys.executable, "-c", _UNKNOWN_USER, program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=_environment(tmp_path, TMPDIR=str(tmp_path / "tmp")),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_disk_too_small_for_the_classifiers_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ValueError, match=r"images take 2 GB in .*: set TMPDIR"):
        classification_accuracy._reserve(tmp_path / "train", 2_000_000_000)


def test_reserved_space_is_there(tmp_path: Path) -> None:
    classification_accuracy._reserve(tmp_path / "train", 5_000_000)
    status = (tmp_path / "train").stat()
    assert status.st_size == 5_000_000 and status.st_blocks * 512 >= 5_000_000


def test_threads_wait_asleep_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    code = f"from metrics.terminal import prepare; prepare(); import os; print(*map(os.environ.get, {_WAITING}))"
    cases = (({}, "10000 None"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, "9 None"))
    for changes, expected in cases:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(tmp_path, **changes), check=True
        )
        assert done.stdout.strip() == expected
