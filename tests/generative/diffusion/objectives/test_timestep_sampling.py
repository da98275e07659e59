"""Timesteps drawn by the second moment of their losses."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from generative.core import checkpoint as ckpt
from generative.core.ema import ConstantEMA
from generative.core.errors import UserError
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.dit import DiT
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.objectives.timestep_sampling import LossSecondMoment
from generative.diffusion.options import DiffusionOptions

PROJECT = Path(__file__).parents[4]


def make_objective(formulation: Any = None, **options: Any) -> DiffusionObjective:
    """A tiny DiT on 4x4 images, on a chain of five steps with learned variance."""
    torch.manual_seed(0)
    arguments = {"sample_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 1, "num_heads": 2}
    denoiser = DiT(num_classes=3, learn_sigma=True, **arguments)
    formulation = formulation or GaussianDiffusion(num_train_timesteps=5, learned_variance=True)
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    given = {"ema": ConstantEMA(0.9), "timestep_sampling": LossSecondMoment(history_per_timestep=2)}
    given |= {"sampling": DiffusionOptions(num_inference_steps=5)} | options
    return DiffusionObjective(denoiser, formulation, optimizer, **given)


def started(num_timesteps: int = 3, history: int = 2, **options: Any) -> LossSecondMoment:
    sampling = LossSecondMoment(history, **options)
    sampling.start(num_timesteps)
    return sampling


def test_draws_are_uniform_until_every_step_has_a_full_history() -> None:
    sampling = started()
    sampling.add(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([9.0, 9.0, 1.0, 1.0, 1.0]))
    timesteps, weights = sampling.draw(3000, torch.Generator().manual_seed(0))
    assert torch.equal(weights, torch.ones(3000))
    assert (timesteps.bincount(minlength=3) / 3000 - 1 / 3).abs().max() < 0.03
    sampling.add(torch.tensor([2]), torch.tensor([1.0]))
    assert sampling.draw(9, torch.Generator().manual_seed(0))[1].max() > 1


def test_probabilities_are_roots_of_second_moments_and_weights_undo_them() -> None:
    sampling = started(uniform_probability=0.1)
    sampling.add(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([3.0, 4.0, 1.0, 1.0, 0.0, 0.0]))
    roots = torch.tensor([12.5**0.5, 1.0, 0.0])
    probabilities = 0.9 * roots / roots.sum() + 0.1 / 3
    torch.testing.assert_close(sampling.density() / 3, probabilities)
    timesteps, weights = sampling.draw(20000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(timesteps.bincount() / 20000, probabilities, atol=0.01, rtol=0)
    torch.testing.assert_close(weights, 1 / (3 * probabilities[timesteps]))
    values = torch.tensor([5.0, 2.0, 8.0])
    assert (weights * values[timesteps]).mean().item() == pytest.approx(5.0, rel=0.03)


def test_the_newest_losses_are_kept_as_one_after_another_would_keep_them() -> None:
    generator = torch.Generator().manual_seed(0)
    together, single = started(4, 3), started(4, 3)
    expected: dict[int, list[float]] = {step: [] for step in range(4)}
    for _ in range(6):
        timesteps, losses = torch.randint(4, (11,), generator=generator), torch.rand(11, generator=generator)
        together.add(timesteps, losses)
        for step, loss in zip(timesteps, losses, strict=True):
            single.add(step[None], loss[None])
            expected[int(step)].append(float(loss))
    assert torch.equal(together.history, single.history) and torch.equal(together.counts, single.counts)
    for step, losses in expected.items():
        assert sorted(together.history[step].tolist()) == pytest.approx(sorted(losses[-3:]))


@pytest.mark.parametrize("formulation", [Interpolant(), EDM(), ContinuousDiffusion()], ids=lambda value: type(value).__name__)
def test_continuous_times_are_refused(formulation: Any) -> None:
    with pytest.raises(UserError, match=f"{type(formulation).__name__} has continuous times; leave it out, or train"):
        make_objective(formulation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_per_timestep": 0}, "history_per_timestep must be at least 1, got 0"),
        ({"uniform_probability": 0.0}, r"uniform_probability must be in \(0, 1\], got 0.0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LossSecondMoment(**options)


def test_a_resumed_run_is_bit_equal(toy: ModuleType, tmp_path: Path) -> None:
    whole = toy.build_trainer(make_objective(), tmp_path / "whole")
    whole.fit()
    assert int(whole.objective.buffers["timestep_counts"].sum()) == whole.images_seen
    weights = whole.objective.timestep_sampling.draw(8, torch.Generator())[1]
    assert not torch.equal(weights, torch.ones(8)), "the history was never full"
    stopped = toy.build_trainer(make_objective(), tmp_path / "stopped")
    stopped.objective.loss = lambda *given, loss=stopped.objective.loss: (
        stopped.request_stop(15) if stopped.step == 2 else None,
        loss(*given),
    )[1]
    stopped.phases = stopped.objective.phases()
    stopped.fit()
    assert stopped.step == 3
    resumed = toy.build_trainer(make_objective(), tmp_path / "stopped")
    resumed.fit(ckpt.resolve_checkpoint(tmp_path / "stopped", "latest"))
    one, other = toy.snapshot(whole), toy.snapshot(resumed)
    assert one.keys() == other.keys() and not [name for name in one if not torch.equal(one[name], other[name])]
    for name, buffer in whole.objective.buffers.items():
        assert torch.equal(buffer, resumed.objective.buffers[name])


SCRIPT = """
import os, sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.path[:0] = sys.argv[2:]
import toy, torch
from safetensors.torch import save_file
from test_timestep_sampling import make_objective
torch.set_num_threads(1)
trainer = toy.build_trainer(make_objective(), folder / "run")
trainer.fit()
save_file(toy.snapshot(trainer) | dict(trainer.objective.buffers), folder / (os.environ["RANK"] + ".safetensors"))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_keep_the_history_of_one_that_accumulates(toy: ModuleType, tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(PROJECT / "tests" / "generative" / "core")]
    (tmp_path / "train.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(tmp_path / "train.py"), str(tmp_path), *paths]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    trainer = toy.build_trainer(make_objective(), tmp_path / "one", gradient_accumulation_steps=2)
    trainer.fit()
    save_file(toy.snapshot(trainer) | dict(trainer.objective.buffers), tmp_path / "one.safetensors")
    one, *two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "0", "1"))
    assert not [name for name in two[0] if not torch.equal(two[0][name], two[1][name])]
    for name in one:
        torch.testing.assert_close(two[0][name], one[name], rtol=1e-4, atol=1e-6)


def test_a_run_that_began_without_a_history_is_told_so(toy: ModuleType, tmp_path: Path) -> None:
    toy.build_trainer(make_objective(timestep_sampling=None), tmp_path).fit()
    with pytest.raises(UserError, match="is missing: the run began without 'timestep_losses', which this"):
        toy.build_trainer(make_objective(), tmp_path).load_checkpoint(ckpt.resolve_checkpoint(tmp_path, "latest"))
