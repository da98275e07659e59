"""``generative train`` from the command line: exit codes, folders, resuming, full disks, launchers."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from launching import launch_environment
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from generative.cli.main import main
from generative.core.logging import read_metrics

PROJECT = Path(__file__).parents[3]
TOYS = PROJECT / "tests" / "generative" / "core"


@pytest.fixture
def config(toy: ModuleType, tmp_path: Path) -> Path:
    """A configuration of 6 steps, saved every second one, into ``run/``."""
    content = {
        "objective": {
            "class_path": "toy.ToyDenoiser",
            "init_args": {
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
                "ema": {"class_path": "generative.core.ema.ConstantEMA", "init_args": {"rate": 0.9}},
            },
        },
        "data": {"class_path": "toy.ToyImages"},
        "trainer": {
            "output_dir": "run",
            "total_images": 48,
            "batch_size": 8,
            "log_interval_steps": 1,
            "checkpoint_interval_steps": 2,
            "grid_images_per_class": 2,
            "progress": False,
        },
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(config: Path, *arguments: str) -> int:
    return main(["train", str(config), "--trust-code", *arguments])


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / f"checkpoint-{step:08d}"
    return {f"{p.parent}/{k}": v for p in sorted(folder.rglob("*.safetensors")) for k, v in load_file(p).items()}


def same_weights(one: Path, other: Path, step: int = 6) -> bool:
    ours, theirs = weights(one, step), weights(other, step)
    assert len(ours) == len(theirs) > 20
    return all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_a_run_and_what_it_leaves(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config) == 0
    said = capsys.readouterr().out
    assert "'run/pipeline' holds the pipeline" in said and "data: 24 images of 3 classes, 8 of each" in said
    run = Path("run")
    assert {p.name for p in run.iterdir()} == {
        "config.yaml",
        "data.json",
        "metrics.jsonl",
        "checkpoint-00000004",
        "checkpoint-00000006",
        "pipeline",
        "samples",
        "tensorboard",
    }
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["real", "samples"] and "denoise/loss" in events.Tags()["scalars"]
    assert [image.step for image in events.Images("samples")] == [6]
    assert events.Images("samples")[0].encoded_image_string.startswith(b"\x89PNG")
    found = json.loads((run / "data.json").read_text())["data"]
    assert found["class_names"] == ["0", "1", "2"] and found["images_per_class"] == [8, 8, 8]
    assert (run / "pipeline" / "model_index.json").is_file()
    assert main(["train", "run/config.yaml", "--trust-code", "--trainer.output_dir", "again"]) == 0
    assert same_weights(run, Path("again"))


def test_the_number_of_threads(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    assert train(config, "--trainer.num_threads", "1") == 0 and chosen == [1]
    capsys.readouterr()
    assert train(config, "--trainer.output_dir", "other", "--trainer.num_threads", "0") == 2
    assert "trainer.num_threads must be at least 1, got 0" in failure(capsys) and not Path("other").exists()


def test_an_old_run_is_not_touched(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config) == 0
    before = tree(Path("run"))
    capsys.readouterr()
    assert train(config) == 2
    assert "'run' already holds a run; go on with --resume latest, start anew with --overwrite" in failure(capsys)
    (Path("run") / "config.yaml").unlink()
    assert train(config) == 2
    assert {**tree(Path("run")), "config.yaml": before["config.yaml"]} == before


def test_overwriting_deletes_the_runs_own_files_only(config: Path) -> None:
    assert train(config) == 0
    Path("run/notes.txt").write_text("precious")
    assert train(config, "--overwrite", "--trainer.total_images", "16") == 0
    assert Path("run/notes.txt").read_text() == "precious"
    assert [p.name for p in sorted(Path("run").glob("checkpoint-*"))] == ["checkpoint-00000002"]
    assert [entry["step"] for entry in read_metrics(Path("run"))] == [1, 2]


@pytest.mark.parametrize("arguments", [(), ("--resume", "latest"), ("--overwrite",)])
def test_two_processes_do_not_write_one_run(config: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert train(config) == 0
    before = tree(Path("run"))
    capsys.readouterr()
    descriptor = os.open("run", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # what another process holds
    try:
        if not arguments:
            Path("run/config.yaml").unlink()
            Path("run/pipeline").rename("pipeline")
        assert train(config, *arguments) == 2
        assert "another process is writing to 'run'" in failure(capsys)
    finally:
        os.close(descriptor)
    assert not arguments or tree(Path("run")) == before
    assert not arguments or train(config, *arguments) == 0


@pytest.mark.parametrize(
    "mistake",
    [
        ["--objective.init_args.num_classes", "5"],
        ["--data.init_args.image_size", "6"],
        ["--trainer.batch_size", "7", "--trainer.gradient_accumulation_steps", "2"],
        ["--trainer.evaluate_interval_steps", "2"],
        ["--objective.init_args.ema.init_args.rate", "2"],
        ["--trainer.batch_size", "0"],
        ["--data.init_args.num_images", "0"],
        ["--objective.init_args.optimizer.init_args.lr", "-1"],
    ],
)
def test_a_mistake_costs_the_old_run_nothing(config: Path, capsys: pytest.CaptureFixture[str], mistake: list[str]) -> None:
    """Overwriting and resuming alike: everything is built and checked first."""
    assert train(config) == 0
    before = tree(Path("run"))
    capsys.readouterr()
    assert train(config, "--overwrite", *mistake) == 2
    failure(capsys)
    assert tree(Path("run")) == before
    assert train(config, "--resume", "latest", *mistake) == 2
    failure(capsys)
    assert tree(Path("run")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", "1"], "has seed 0, this run 1"),
        (["--trainer.batch_size", "4"], "has batch_size 8, this run 4"),
        (["--objective.init_args.width", "16"], "was trained with width=8, the configuration says 16"),
        (["--data.init_args.seed", "4"], "has data_fingerprint"),
        (["--objective.init_args.optimizer", "torch.optim.SGD"], "has optimizers"),
        (["--trainer.mixed_precision", "bf16"], "has mixed_precision no, this run bf16"),
    ],
)
def test_resuming_as_something_else_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    """And leaves config.yaml as it was: the message sends the user to it."""
    assert train(config) == 0
    before = tree(Path("run"))
    capsys.readouterr()
    assert train(config, "--resume", "latest", *change) == 2
    assert message in failure(capsys)
    assert tree(Path("run")) == before


def test_a_signal_exits_with_its_number_and_resuming_is_bit_equal(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, "--trainer.output_dir", "whole") == 0
    assert train(config, "--objective.init_args.signal_at_call", "3") == 128 + signal.SIGTERM
    assert "stopped at step 3 of 6; a checkpoint was saved, go on with --resume latest" in capsys.readouterr().out
    assert train(config, "--resume", "latest", "--objective.init_args.signal_at_call", "null") == 0
    assert same_weights(Path("run"), Path("whole"))
    assert [entry["step"] for entry in read_metrics(Path("run"))] == [1, 2, 3, 4, 5, 6]
    assert yaml.safe_load(Path("run/config.yaml").read_text())["objective"]["init_args"]["signal_at_call"] is None


def history(run: str) -> list[dict[str, Any]]:
    path = Path(run) / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


CHANGED = [
    "--objective.init_args.optimizer.init_args.lr",
    "0.002",
    "--trainer.horizontal_flip",
    "true",
    "--trainer.max_grad_norm",
    "0.5",
    "--objective.init_args.ema.init_args.rate",
    "0.5",
]


def test_a_run_goes_on_with_its_own_configuration(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Overrides of the first command hold without being repeated: rates, flips, clipping, averages; and config.yaml stays."""
    assert train(config, *CHANGED, "--trainer.output_dir", "whole") == 0
    assert train(config, *CHANGED, "--objective.init_args.signal_at_call", "3") == 143
    before = Path("run/config.yaml").read_bytes()
    capsys.readouterr()
    # The third call comes at the last step: the signal then changes nothing.
    assert train(config, "--resume", "latest") == 0
    assert same_weights(Path("run"), Path("whole"))
    assert Path("run/config.yaml").read_bytes() == before
    assert history("run") == []
    captured = capsys.readouterr()
    assert "changed:" not in captured.out and captured.err.count("note:") == 1
    assert "the run goes on with its own configuration, 'run/config.yaml'" in captured.err
    assert "optimizer.init_args.lr (0.01 there, 0.002 in the run) and 4 more" in captured.err


def test_changes_are_listed_and_kept(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = ["--trainer.lr_schedule", "generative.core.schedules.Linear"]
    assert train(config, *schedule, "--trainer.total_images", "32") == 0
    capsys.readouterr()
    assert train(config, "--resume", "latest", "--trainer.total_images", "48", "--trainer.log_interval_steps", "2") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("changed: trainer.total_images: 32 -> 48\nchanged: trainer.log_interval_steps: 1 -> 2\n")
    assert "note: learning rate of 'net' at step 4: 0 -> 0.00333333" in captured.err
    saved = yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]
    assert saved["total_images"] == 48 and saved["lr_schedule"]["class_path"].endswith("Linear")
    [entry] = history("run")
    assert entry["step"] == 4 and torch.__version__.startswith(entry["versions"]["torch"])
    assert entry["changed"]["trainer.total_images"] == {"from": 32, "to": 48}
    # Said again, nothing is another change.
    assert train(config, "--resume", "latest", "--trainer.total_images", "48") == 0
    assert "changed" not in capsys.readouterr().out and len(history("run")) == 1


def test_a_runs_folder_is_a_configuration(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a run that was moved: it goes on where it lies."""
    assert train(config, "--trainer.total_images", "32") == 0
    Path("run").rename("moved")
    capsys.readouterr()
    assert main(["train", "moved", "--trust-code", "--resume", "latest", "--trainer.total_images", "48"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("changed: trainer.total_images: 32 -> 48\n") and "note:" not in captured.err
    assert Path("moved/checkpoint-00000006").is_dir() and not Path("run").exists()
    assert main(["train", "moved", "--trust-code"]) == 2
    assert "'moved' already holds a run" in failure(capsys)
    assert main(["train", "moved", "--trust-code", "--trainer.output_dir", "again"]) == 0
    assert same_weights(Path("moved"), Path("again"))


def test_a_run_without_its_configuration_takes_the_one_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, "--trainer.total_images", "32") == 0
    Path("run/config.yaml").unlink()
    capsys.readouterr()
    assert train(config, "--resume", "latest") == 0
    assert "note: 'run' holds no config.yaml" in capsys.readouterr().err
    assert Path("run/checkpoint-00000006").is_dir()
    Path("run/config.yaml").write_text("trainer: [")
    assert train(config, "--resume", "latest") == 2
    assert "configuration 'run/config.yaml' cannot be read" in failure(capsys)


def test_resuming_a_folder_of_another_name(config: Path) -> None:
    assert train(config) == 0
    Path("run/checkpoint-00000004").rename("best")
    assert train(config, "--resume", "best", "--trainer.output_dir", "fresh") == 0
    assert same_weights(Path("run"), Path("fresh"))


def test_nothing_to_resume(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, "--resume", "latest") == 2
    assert "'run' holds no complete checkpoint to resume from" in failure(capsys)
    assert train(config, "--resume", "nowhere") == 2
    assert "checkpoint 'nowhere' does not exist" in failure(capsys)
    assert not Path("run").exists()
    assert train(config, "--resume", "auto") == 0


def test_auto_goes_on_after_a_kill_before_the_first_checkpoint(config: Path) -> None:
    """There is nothing to lose: a repeated command must get through."""
    assert train(config, "--trainer.output_dir", "whole") == 0
    Path("run").mkdir()
    Path("run/config.yaml").write_text("half")
    Path("run/.checkpoint-00000002.partial").mkdir()
    assert train(config, "--resume", "auto") == 0
    assert same_weights(Path("run"), Path("whole"))
    assert not list(Path("run").glob(".*"))


def test_a_half_written_checkpoint_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config) == 0
    path = Path("run/checkpoint-00000006/networks/net/diffusion_pytorch_model.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    assert train(config, "--resume", "latest") == 2
    assert "'networks/net/diffusion_pytorch_model.safetensors' is missing or cut short" in failure(capsys)


def test_divergence_exits_with_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, "--objective.init_args.nan_at_call", "4") == 1
    message = failure(capsys)
    assert "denoise/loss became nan at step 3; the last good checkpoint is 'run/checkpoint-00000002'" in message


def test_fp16_on_a_cpu_is_refused(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train(config, "--trainer.mixed_precision", "fp16") == 2
    assert "fp16 needs a CUDA device" in failure(capsys)
    assert not Path("run").exists()


def test_an_output_folder_that_cannot_be(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("x")
    assert train(config, "--trainer.output_dir", "file") == 2
    assert "output folder 'file' is a file" in failure(capsys)
    assert train(config, "--trainer.output_dir", "file/run") == 2
    failure(capsys)
    assert Path("file").read_text() == "x"


@pytest.mark.parametrize("where", ["save_file", "metrics.jsonl", "config.yaml"])
def test_a_full_disk(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """While a checkpoint, the log or the configuration is written: one sentence, and the run can go on later."""
    assert train(config, "--trainer.output_dir", "whole") == 0
    assert train(config, "--objective.init_args.signal_at_call", "3") == 143
    good = tree(Path("run"))
    capsys.readouterr()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)

    def save_file(*arguments: Any, **options: Any) -> None:
        raise full

    original_write, original_open = Path.write_text, Path.open

    def write_text(self: Path, text: str, *arguments: Any, **options: Any) -> int:
        if where in self.name:
            original_write(self, text[:5])
            raise full
        return original_write(self, text, *arguments, **options)

    def open_path(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if self.name == where and mode == "a":
            raise full
        return original_open(self, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        if where == "save_file":
            patch.setattr("generative.core.checkpoint.save_file", save_file)
        else:
            patch.setattr(Path, "write_text", write_text)
            patch.setattr(Path, "open", open_path)
        assert train(config, "--resume", "latest", "--objective.init_args.signal_at_call", "null") == 1
    assert "no space left on the disk" in failure(capsys)
    after = tree(Path("run"))
    assert all(after[name] == content for name, content in good.items() if name.startswith(("checkpoint", "pipeline")))
    assert after["metrics.jsonl"].startswith(good["metrics.jsonl"])
    assert yaml.safe_load(after["config.yaml"])["trainer"]["output_dir"] == "run"
    assert not list(Path("run").rglob("*.partial"))
    assert train(config, "--resume", "latest") == 0
    assert same_weights(Path("run"), Path("whole"))


def test_every_shipped_option_of_main(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], ["train", "--help"], ["sample", "--help"], ["list", "--help"]):
        assert main(arguments) == 0
        assert "generative" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip().endswith(tuple("0123456789"))
    assert main(["trian"]) == 2
    assert "there is no command 'trian'; choose one of" in failure(capsys)


# ------------------------------------------------------------------ processes of their own


def command(config: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> list[str]:
    module = [*launcher, "-m", "generative.cli.main"] if launcher else ["-m", "generative.cli.main"]
    return [sys.executable, *module, "train", str(config), "--trust-code", *arguments]


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"'{path}' did not appear"
        time.sleep(0.01)


LONG = ["--trainer.total_images", "100000", "--trainer.keep_last_checkpoints", "2"]


@pytest.mark.parametrize("delay", [0.0, pytest.param(0.023, marks=pytest.mark.slow), pytest.param(0.1, marks=pytest.mark.slow)])
def test_sigkill_at_any_moment(config: Path, delay: float) -> None:
    """The process saves nearly all the time, so that a kill hits a save."""
    process = subprocess.Popen(
        command(config, "--trainer.checkpoint_interval_steps", "1", *LONG),
        env=launch_environment(TOYS),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(Path("run/pipeline"), process)
        time.sleep(delay)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    reached = max(int(p.name.split("-")[1]) for p in Path("run").glob("checkpoint-*"))
    images = str(8 * (reached + 2))
    assert train(config, "--resume", "latest", "--trainer.total_images", images) == 0
    assert train(config, "--trainer.output_dir", "whole", "--trainer.total_images", images) == 0
    assert same_weights(Path("run"), Path("whole"), reached + 2)
    assert [entry["step"] for entry in read_metrics(Path("run"))] == list(range(1, reached + 3))
    assert not list(Path("run").rglob("*.partial"))


@pytest.mark.slow
def test_sigterm_from_outside(config: Path) -> None:
    process = subprocess.Popen(
        command(config, *LONG), env=launch_environment(TOYS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(Path("run/pipeline"), process)
        process.terminate()
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 143 and "a checkpoint was saved" in out and "Traceback" not in err


ACCELERATE = ("-m", "accelerate.commands.launch")


@pytest.mark.slow
def test_two_processes_from_the_command_line(config: Path) -> None:
    launcher = (*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    plain = ["--objective.init_args.batch_norm", "false"]
    result = subprocess.run(
        command(config, "--trainer.output_dir", "two", *plain, launcher=launcher),
        env=launch_environment(TOYS),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("done:") == 1
    assert train(config, "--trainer.gradient_accumulation_steps", "2", *plain) == 0
    ours, theirs = weights(Path("run"), 6), weights(Path("two"), 6)
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    states = [json.loads(Path(run, "checkpoint-00000006", "state.json").read_text()) for run in ("run", "two")]
    assert states[0]["num_slots"] == states[1]["num_slots"] == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the launcher's command line from /proc")
def test_a_launcher_that_starts_one_process_for_two_is_refused(config: Path) -> None:
    result = subprocess.run(
        command(config, launcher=(*ACCELERATE, "--cpu", "--num_processes", "2")),
        env=launch_environment(TOYS),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert "error: the launcher asked for 2 processes but 1 would train" in result.stderr
    assert "exit status 2" in result.stderr and result.returncode != 0
    assert not Path("run").exists()
