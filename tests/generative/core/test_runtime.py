"""Launchers, precisions, and that a wrong combination is refused instead of silently run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from generative.core import runtime
from generative.core.errors import UserError

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@contextmanager
def parent(*arguments: str) -> Iterator[int]:
    """A process with this command line; its own first words make it wait."""
    name, *rest = arguments
    program = "import time; print(flush=True); time.sleep(600)"
    process = subprocess.Popen([name, "-c", program, *rest], executable=sys.executable, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        # Its command line is there once it has started.
        process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


@linux_only
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/usr/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "x.py"], 2),
        (["/usr/bin/accelerate-launch", "--num_processes=3", "--cpu", "x.py"], 3),
        (["accelerate.commands.launch", "--num-processes", "4", "x.py"], 4),
        (["/usr/bin/accelerate", "launch", "x.py"], 1),
        (["/usr/bin/bash", "train.sh", "--num_processes", "2"], 1),
        (["/home/accelerated/python", "x.py", "--num_processes", "2"], 1),
    ],
)
def test_the_launchers_command_line_is_read(monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: int) -> None:
    with parent(*arguments) as pid:
        monkeypatch.setattr(os, "getppid", lambda: pid)
        assert runtime.launched_processes() == expected


def test_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert runtime.launched_processes() == 5


def test_a_number_from_the_launchers_config_file_leaves_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate sets a rendezvous address when it was asked for several processes, and starts one."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert runtime.launched_processes() == 1
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert runtime.launched_processes() == 2


def test_a_wrong_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "launched_processes", lambda: 2)
    with pytest.raises(UserError, match="asked for 2 processes but 1 would train.*--multi_gpu --num_processes 2"):
        runtime.build_accelerator()


def test_fp16_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="mixed_precision fp16 needs a CUDA device"):
        runtime.build_accelerator("fp16")


def test_two_runs_of_one_process_may_differ_in_precision() -> None:
    assert runtime.build_accelerator("bf16").mixed_precision == "bf16"
    assert runtime.build_accelerator("no").mixed_precision == "no"


def test_the_launchers_accumulation_does_not_scale_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = runtime.build_accelerator()
    weight = torch.nn.Parameter(torch.ones(1))
    accelerator.backward(3 * weight.sum())
    assert weight.grad is not None and weight.grad.item() == 3.0


def launch(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    project = Path(__file__).parents[3]
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from generative.core.errors import UserError\n"
        "from generative.core.runtime import build_accelerator\n"
        "try:\n    sys.stdout.write(f'processes {build_accelerator().num_processes}\\n')\n"
        "except UserError as error:\n    print('refused:', error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "MASTER_"))}
    environment |= {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-m", *command, str(program)], env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"],
        ["accelerate.commands.launch", "--cpu", "--num_processes=2"],
    ],
)
def test_the_silent_single_process_of_accelerate_is_refused(tmp_path: Path, command: list[str]) -> None:
    result = launch(tmp_path, *command)
    assert "refused: the launcher asked for 2 processes but 1 would train" in result.stdout, result.stderr[-2000:]


@pytest.mark.slow
def test_a_number_in_accelerates_config_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "launcher.yaml").write_text(
        "use_cpu: true\ndistributed_type: 'NO'\nnum_processes: 2\nnum_machines: 1\nmixed_precision: 'no'\n"
    )
    result = launch(tmp_path, "accelerate.commands.launch", "--config_file", str(tmp_path / "launcher.yaml"))
    assert "refused: the launcher asked for 2 processes but 1 would train" in result.stdout, result.stderr[-2000:]


@pytest.mark.slow
def test_two_cpu_processes_start(tmp_path: Path) -> None:
    result = launch(tmp_path, "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    assert result.stdout.count("processes 2") == 2, result.stderr[-2000:]


@pytest.mark.parametrize(("asked", "given"), [("bf16", "no"), ("fp8", "bf16")])
def test_a_launchers_precision_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, asked: str, given: runtime.Precision) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    with pytest.raises(UserError, match=f"the launcher asks for mixed_precision {asked}, the command for {given}"):
        runtime.build_accelerator(given)


@pytest.mark.parametrize("asked", ["no", "bf16"])
def test_a_launchers_precision_that_agrees_or_says_nothing(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    assert runtime.build_accelerator("bf16").mixed_precision == "bf16"
