"""Two processes (gloo) against one process that accumulates over two micro-batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from generative.core import checkpoint as ckpt
from generative.core.ema import ConstantEMA
from generative.core.logging import read_metrics

PROJECT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("ignore::metrics.metric.SmallSampleWarning")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which two processes have run every case of ``two_processes.py``."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(Path(__file__).with_name("two_processes.py")), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", ["gan", "masked", "dropout"])
def test_two_processes_equal_one_that_accumulates(toy: ModuleType, two: Path, tmp_path: Path, case: str) -> None:
    """Noise and dropout included, as they are keyed by slot; losses that average over processes too."""
    objective = {
        "gan": lambda: toy.gan(toy.adam, ema=ConstantEMA(0.9)),
        "masked": toy.masked,
        "dropout": lambda: toy.denoiser(batch_norm=False),
    }[case]()
    evaluator = toy.evaluator(classifier_data=toy.ToyImages(seed=3))
    scores = {"evaluator": evaluator, "evaluate_interval_steps": 3} if case == "dropout" else {}
    trainer = toy.build_trainer(objective, tmp_path, gradient_accumulation_steps=2, **scores)
    trainer.fit()
    assert_close(load_file(two / f"{case}-0.safetensors"), toy.snapshot(trainer))
    if case != "masked":
        for ours, theirs in zip(read_metrics(tmp_path), read_metrics(two / case), strict=True):
            names = [name for name in ours if name != "images_per_second" and not name.startswith("system/")]
            # Samples may differ by a level here and there, which scores show more than losses.
            tolerance = 1e-2 if "evaluation/frechet_distance" in ours else 1e-4
            assert [theirs[name] for name in names] == pytest.approx(
                [ours[name] for name in names], rel=tolerance, abs=tolerance / 10
            )


@pytest.mark.parametrize("case", ["gan", "masked", "dropout", "denoiser", "stopped"])
def test_processes_stay_bit_equal(two: Path, case: str) -> None:
    """Moving statistics included."""
    one, other = (load_file(two / f"{case}-{rank}.safetensors") for rank in (0, 1))
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_two_processes_write_one_run(two: Path) -> None:
    assert [p.name for p in ckpt.list_checkpoints(two / "gan")] == ["checkpoint-00000004", "checkpoint-00000006"]
    assert [entry["step"] for entry in read_metrics(two / "gan")] == [1, 2, 3, 4, 5, 6]
    assert not list((two / "gan").rglob("*.partial"))


def test_a_signal_to_one_process_stops_all_and_resuming_is_bit_equal(two: Path) -> None:
    never, stopped = (load_file(two / f"{case}-0.safetensors") for case in ("denoiser", "stopped"))
    assert not [name for name in never if not torch.equal(never[name], stopped[name])]


def test_gradients_are_summed_in_buckets(two: Path) -> None:
    """Micro-batches count 1 and 2, processes 1 and 2; one without gradient counts as zeros, and nobody's stays none."""
    for rank in (0, 1):
        sums = load_file(two / f"buckets-{rank}.safetensors")
        assert {name: value.unique().tolist() for name, value in sums.items()} == {
            "everywhere": [9.0],
            "on one process": [6.0],
            "scalar": [9.0],
            "half": [9.0],
        }


def test_nan_on_one_process_stops_all(two: Path) -> None:
    messages = [(two / f"diverged-{rank}.txt").read_text() for rank in (0, 1)]
    assert all("training diverged" in message and "checkpoint-00000002" in message for message in messages)


def test_a_checkpoint_of_two_processes_goes_on_in_one(toy: ModuleType, two: Path, tmp_path: Path) -> None:
    """Two slots are two slots: only their number must stay."""
    from generative.core.errors import UserError

    path = ckpt.list_checkpoints(two / "gan")[0]
    trainer = toy.build_trainer(toy.gan(toy.adam, ema=ConstantEMA(0.9)), tmp_path, gradient_accumulation_steps=2)
    trainer.fit(ckpt.resolve_checkpoint(tmp_path, str(path)))
    assert_close(load_file(two / "gan-0.safetensors"), toy.snapshot(trainer))
    alone = toy.build_trainer(toy.gan(toy.adam, ema=ConstantEMA(0.9)), tmp_path / "alone")
    with pytest.raises(UserError, match="has num_slots 2, this run 1"):
        alone.load_checkpoint(path)
