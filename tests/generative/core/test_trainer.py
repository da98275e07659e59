"""The trainer's watch over a run: divergence, logs, grids, evaluations, settings, data that does not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from generative.core import checkpoint as ckpt
from generative.core.errors import UserError
from generative.core.evaluation import Evaluation, Evaluator
from generative.core.logging import read_metrics
from generative.core.observer import DivergenceError
from generative.core.trainer import Trainer
from generative.core.trainer_config import TrainerConfig
from generative.data.base import ImageDataset

# ------------------------------------------------------------------ divergence


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    trainer = toy.build_trainer(toy.denoiser(nan_at_call=4), tmp_path)
    with pytest.raises(DivergenceError) as caught:
        trainer.fit()
    message = str(caught.value)
    assert "denoise/loss became nan at step 3" in message and "checkpoint-00000002'" in message and "\n" not in message
    assert [p.name for p in ckpt.list_checkpoints(tmp_path)] == ["checkpoint-00000002"]
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3]

    trainer = toy.build_trainer(toy.denoiser(), tmp_path)
    trainer.fit(ckpt.resolve_checkpoint(tmp_path, "latest"))
    assert trainer.step == 6


def test_nan_before_the_first_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="there is no checkpoint yet"):
        toy.build_trainer(toy.denoiser(nan_at_call=1), tmp_path, log_interval_steps=100).fit()
    assert ckpt.list_checkpoints(tmp_path) == [] and not (tmp_path / "pipeline").exists()


def test_nan_between_log_entries_is_seen_before_a_save(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="at step 2"):
        toy.build_trainer(toy.denoiser(nan_at_call=3), tmp_path, log_interval_steps=100).fit()
    assert [p.name for p in ckpt.list_checkpoints(tmp_path)] == ["checkpoint-00000002"]


def test_nan_is_seen_before_a_grid_is_sampled(toy: ModuleType, tmp_path: Path) -> None:
    settings = {"log_interval_steps": 100, "checkpoint_interval_steps": None, "sample_interval_steps": 3}
    with pytest.raises(DivergenceError, match="at step 1"):
        toy.build_trainer(toy.denoiser(nan_at_call=2), tmp_path, **settings).fit()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_the_last_step_spoiled_are_not_saved(toy: ModuleType, tmp_path: Path, value: float) -> None:
    """The loss of the step was finite: only the weights tell."""
    objective = toy.denoiser()
    phase = objective.phases()[0]

    def spoil(networks: Mapping[str, nn.Module], step: int) -> None:
        if trainer.step == 3:
            networks["net"].first.weight[0, 0] = value

    object.__setattr__(phase, "after_step", spoil)
    objective.phases = lambda: [phase]
    trainer = toy.build_trainer(objective, tmp_path)
    with pytest.raises(DivergenceError, match="weights of network 'net' became NaN or infinite by step 4"):
        trainer.fit()
    assert [p.name for p in ckpt.list_checkpoints(tmp_path)] == ["checkpoint-00000002"]


@pytest.mark.parametrize("place", ["network", "average", "objective"])
def test_buffers_and_averages_that_a_step_spoiled_are_not_saved(toy: ModuleType, tmp_path: Path, place: str) -> None:
    """Batch-norm statistics overflow before any loss shows it, and an average keeps what its network has recovered from."""
    objective = toy.denoiser()
    objective.buffers = {"mean": torch.zeros(2)}
    phase = objective.phases()[0]

    def spoil(networks: Mapping[str, nn.Module], step: int) -> None:
        if trainer.step == 3 and place == "network":
            networks["net"].norm.running_var[0] = math.inf
        if trainer.step == 3 and place == "average":
            trainer.averages["net"].first.weight[0, 0] = math.nan
        if trainer.step == 3 and place == "objective":
            objective.buffers["mean"].fill_(math.nan)

    object.__setattr__(phase, "after_step", spoil)
    objective.phases = lambda: [phase]
    trainer = toy.build_trainer(objective, tmp_path)
    what = {
        "network": "buffers of network 'net'",
        "average": r"weights of network 'net \(average\)'",
        "objective": "the objective's buffer 'mean'",
    }[place]
    with pytest.raises(DivergenceError, match=f"{what} became NaN or infinite by step 4; the last good .*checkpoint-00000002'"):
        trainer.fit()
    assert [p.name for p in ckpt.list_checkpoints(tmp_path)] == ["checkpoint-00000002"]


def test_scores_by_a_network_of_the_loss_are_refused(toy: ModuleType, tmp_path: Path) -> None:
    objective = toy.gan()
    objective.loss_extractors = frozenset({"efficientnet-lite0", "vgg16"})
    with pytest.raises(
        UserError, match="evaluation extractor 'efficientnet-lite0' is the network that the discriminator or a loss"
    ):
        toy.build_trainer(objective, tmp_path, evaluator=toy.evaluator())
    objective.loss_extractors = frozenset({"vgg16"})
    toy.build_trainer(objective, tmp_path, evaluator=toy.evaluator())


@pytest.mark.parametrize(("names", "copied"), [(None, {"generator", "discriminator"}), (("generator",), {"generator"})])
def test_only_networks_that_sample_are_copied(toy: ModuleType, tmp_path: Path, names: Any, copied: set[str]) -> None:
    objective = toy.gan()
    objective.sampling_networks = names
    seen: list[set[str]] = []
    objective.prepare_for_sampling = lambda networks, generator: seen.append(set(networks))
    toy.build_trainer(objective, tmp_path).sampling_pipeline()
    assert seen == [copied]


def test_a_step_builds_one_pipeline_for_all_that_it_samples(toy: ModuleType, tmp_path: Path) -> None:
    objective = toy.gan()
    prepared: list[int] = []
    objective.prepare_for_sampling = lambda networks, generator: prepared.append(trainer.step)
    settings = {"checkpoint_interval_steps": 2, "sample_interval_steps": 2, "evaluate_interval_steps": 3}
    trainer = toy.build_trainer(objective, tmp_path, evaluator=toy.evaluator(), keep_best="frechet_distance", **settings)
    trainer.fit()
    assert prepared == [0, 2, 3, 4, 6]
    pipeline = trainer.sampling_pipeline()
    average = trainer.averages.get("generator", objective.networks["generator"])
    assert pipeline.network is not average
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(pipeline.network.parameters(), average.parameters(), strict=True))


def test_a_stop_signal_does_not_save_nan(toy: ModuleType, tmp_path: Path) -> None:
    objective = toy.denoiser(nan_at_call=3, signal_at_call=3)
    with pytest.raises(DivergenceError):
        toy.build_trainer(objective, tmp_path, log_interval_steps=100).fit()
    assert [p.name for p in ckpt.list_checkpoints(tmp_path)] == ["checkpoint-00000002"]


# ------------------------------------------------------------------ logs, grids, evaluations


def test_the_log(toy: ModuleType, tmp_path: Path) -> None:
    toy.build_trainer(toy.gan(), tmp_path, log_interval_steps=2).fit()
    entries = read_metrics(tmp_path)
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    assert [entry["images_seen"] for entry in entries] == [16, 32, 48]
    expected = {"loss", "real_logits", "grad_norm"}
    assert {name.removeprefix("discriminator/") for name in entries[0] if name.startswith("discriminator/")} == expected
    assert "generator/loss" in entries[0] and "denominator" not in str(entries)
    assert all(entry["images_per_second"] > 0 for entry in entries)


def test_an_entry_is_the_mean_over_its_steps(toy: ModuleType, tmp_path: Path) -> None:
    for interval in (1, 3):
        toy.build_trainer(toy.gan(), tmp_path / str(interval), log_interval_steps=interval).fit()
    single = [entry["generator/loss"] for entry in read_metrics(tmp_path / "1")]
    triple = [entry["generator/loss"] for entry in read_metrics(tmp_path / "3")]
    assert triple == pytest.approx([sum(single[:3]) / 3, sum(single[3:]) / 3], rel=1e-6)


def test_grids(toy: ModuleType, tmp_path: Path) -> None:
    toy.build_trainer(toy.denoiser(), tmp_path, sample_interval_steps=4, grid_images_per_class=5).fit()
    names = {p.name for p in (tmp_path / "samples").iterdir()}
    assert names == {"real.png", "step-00000004.png", "step-00000006.png"}
    for name in names:
        # 3 classes down, 5 columns of 4 pixels enlarged to 32, with 2 pixels between.
        assert Image.open(tmp_path / "samples" / name).size == (5 * 34 + 2, 3 * 34 + 2)


def test_sampling_during_training_does_not_touch_it(toy: ModuleType, tmp_path: Path) -> None:
    snapshots = []
    for interval in (None, 1):
        trainer = toy.build_trainer(toy.denoiser(), tmp_path / str(interval), sample_interval_steps=interval)
        trainer.fit()
        snapshots.append(toy.snapshot(trainer))
    assert all(torch.equal(snapshots[0][name], snapshots[1][name]) for name in snapshots[0])


class CountingEvaluator(Evaluator):
    """Scores a pipeline by how often it was asked, without any network."""

    def __init__(self, data: ImageDataset) -> None:
        super().__init__(data)
        self.calls = 0

    def evaluate(self, pipeline: Any, accelerator: Any, options: Mapping[str, Any], progress: bool = False) -> Evaluation:
        self.calls += 1
        return Evaluation({"score": float(self.calls)}, {"options": dict(options)})

    def score_real(self, *arguments: Any) -> Evaluation:
        return Evaluation({"score": -1.0}, {})


def evaluated(run: Path) -> list[int]:
    return [entry["step"] for entry in read_metrics(run) if "evaluation/score" in entry]


def with_evaluator(toy: ModuleType, run: Path, objective: Any = None, **settings: Any) -> tuple[Trainer, CountingEvaluator]:
    evaluator = CountingEvaluator(toy.ToyImages(seed=9))
    trainer = toy.build_trainer(objective or toy.denoiser(), run, **settings)
    trainer.observer.evaluator = evaluator
    trainer.config.evaluate_interval_steps = 4
    return trainer, evaluator


def test_evaluations_at_the_start_at_intervals_and_at_the_end(toy: ModuleType, tmp_path: Path) -> None:
    trainer, evaluator = with_evaluator(toy, tmp_path)
    trainer.fit()
    assert evaluated(tmp_path) == [0, 4, 6] and evaluator.calls == 3
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["step"] == 6 and content["scores"] == {"score": 3.0} and content["real_scores"] == {"score": -1.0}
    assert trainer.observer.last_evaluation is not None and trainer.observer.last_evaluation.scores == {"score": 3.0}


def test_a_finished_run_is_not_evaluated_twice(toy: ModuleType, tmp_path: Path) -> None:
    trainer, _ = with_evaluator(toy, tmp_path)
    trainer.fit()
    trainer, evaluator = with_evaluator(toy, tmp_path)
    trainer.fit(ckpt.resolve_checkpoint(tmp_path, "latest"))
    assert evaluated(tmp_path) == [0, 4, 6] and evaluator.calls == 0


def test_an_evaluation_that_a_kill_cut_short_is_made_good(toy: ModuleType, tmp_path: Path) -> None:
    trainer, evaluator = with_evaluator(toy, tmp_path)

    def killed(*arguments: Any) -> Evaluation:
        raise KeyboardInterrupt

    original = evaluator.evaluate
    evaluator.evaluate = lambda *arguments: killed() if trainer.step == 4 else original(*arguments)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert evaluated(tmp_path) == [0]
    trainer, evaluator = with_evaluator(toy, tmp_path)
    trainer.fit(ckpt.resolve_checkpoint(tmp_path, "latest"))
    assert evaluated(tmp_path) == [0, 4, 6]
    assert sorted({entry["step"] for entry in read_metrics(tmp_path)}) == list(range(7))


def test_an_interval_without_an_evaluation_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluate_interval_steps is set but there is no evaluation"):
        toy.build_trainer(toy.denoiser(), tmp_path, evaluate_interval_steps=2)


# ------------------------------------------------------------------ settings and data


@pytest.mark.parametrize(
    "name", ["total_images", "batch_size", "gradient_accumulation_steps", "log_interval_steps", "keep_last_checkpoints"]
)
def test_settings_must_be_positive(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"trainer.{name} must be at least 1, got 0"):
        TrainerConfig(**{"output_dir": tmp_path, "total_images": 10, name: 0})  # type: ignore[arg-type]


def test_a_batch_that_does_not_divide_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size 8 does not divide into 3 micro-batches on 1 processes"):
        toy.build_trainer(toy.denoiser(), tmp_path, gradient_accumulation_steps=3)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_other_classes_than_the_networks(toy: ModuleType, tmp_path: Path, num_classes: int) -> None:
    with pytest.raises(UserError, match=f"the data has {num_classes} classes and num_classes of the networks is 3; leave"):
        toy.build_trainer(toy.denoiser(), tmp_path, dataset=toy.ToyImages(num_classes=num_classes))


def test_images_of_another_size(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the data has images of 6 pixels, the networks make 4"):
        toy.build_trainer(toy.denoiser(), tmp_path, dataset=toy.ToyImages(image_size=6))


def test_a_class_without_images(toy: ModuleType, tmp_path: Path) -> None:
    dataset = toy.ToyImages(num_classes=3)
    dataset.labels[dataset.labels == 1] = 0
    with pytest.raises(UserError, match="the data has no images of 1 of its 3 classes: 1; remove"):
        toy.build_trainer(toy.denoiser(), tmp_path, dataset=dataset)


def test_a_method_that_has_no_use_for_labels_takes_any_classes(toy: ModuleType, tmp_path: Path) -> None:
    objective = toy.denoiser(num_classes=5)
    objective.uses_labels = False
    toy.build_trainer(objective, tmp_path, total_images=8).fit()
    assert Image.open(tmp_path / "samples" / "real.png").size == (2 * 34 + 2, 3 * 34 + 2)


def test_the_length_counts_every_repeat(toy: ModuleType, tmp_path: Path) -> None:
    trainer = toy.build_trainer(toy.gan(discriminator_steps=3), tmp_path, total_images=50)
    assert trainer.images_per_step == 24 and trainer.total_steps == 3
    trainer.fit()
    assert trainer.images_seen == 72


@pytest.mark.slow
def test_compiled_training_is_like_eager_training(toy: ModuleType, tmp_path: Path) -> None:
    """And a compiled run saves, samples and resumes like any other."""
    ends = []
    for compiled in (False, True):
        run = tmp_path / str(compiled)
        objective = toy.denoiser(ema=None, dropout=0.0, batch_norm=False, signal_at_call=3)
        toy.build_trainer(objective, run, compile=compiled).fit()
        trainer = toy.build_trainer(toy.denoiser(ema=None, dropout=0.0, batch_norm=False), run, compile=compiled)
        trainer.fit(ckpt.resolve_checkpoint(run, "latest"))
        assert trainer.step == 6
        ends.append(toy.snapshot(trainer))
    assert ends[0].keys() == ends[1].keys()
    assert not [name for name in ends[1] if "_orig_mod" in name]
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_is_refused_where_no_network_has_it(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a network that supports it, and ToyNet does not; set it to false"):
        toy.build_trainer(toy.denoiser(), tmp_path, gradient_checkpointing=True)


def test_channels_last_trains_to_the_same_place(toy: ModuleType, tmp_path: Path) -> None:
    ends = []
    for channels_last in (False, True):
        trainer = toy.build_trainer(toy.denoiser(), tmp_path / str(channels_last), channels_last=channels_last)
        trainer.fit()
        ends.append(toy.snapshot(trainer))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-5)
