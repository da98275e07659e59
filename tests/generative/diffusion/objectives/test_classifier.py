"""The objective of noised classifiers, its evaluation and its run."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from generative.core import checkpoint as ckpt
from generative.core.errors import UserError
from generative.core.logging import read_metrics
from generative.core.types import Batch, StepContext
from generative.core.weights import load_network
from generative.data.base import ImageDataset
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.adm_classifier import ADMClassifier
from generative.diffusion.objectives.classifier import NoisedClassifierObjective, is_among, top_counts
from generative.diffusion.objectives.classifier_evaluation import ClassifierEvaluator
from generative.diffusion.objectives.noise_monitor import NoiseMonitor
from pipelines import load_any_pipeline
from pipelines.classifier import NoisedClassifierPipeline


def make_objective(formulation: Any = None, num_classes: int = 3, **options: Any) -> NoisedClassifierObjective:
    """A classifier of 4x4 images, as small as ADM's can be."""
    torch.manual_seed(0)
    classifier = ADMClassifier(
        sample_size=4,
        num_classes=num_classes,
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        num_head_channels=32,
    )
    return NoisedClassifierObjective(
        classifier, formulation or GaussianDiffusion(), partial(torch.optim.AdamW, lr=3e-3), **options
    )


def make_batch(size: int = 8) -> Batch:
    """Images that are their class's colour, which noise hides little."""
    labels = torch.arange(size) % 3
    return {"images": (labels[:, None, None, None] - 1.0).expand(size, 3, 4, 4).contiguous(), "class_labels": labels}


def context(seed: int = 0) -> StepContext:
    return StepContext(0, 0, torch.Generator().manual_seed(seed))


class Recorder(torch.nn.Module):
    """Stands in for a classifier: remembers its inputs, knows nothing."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        self.sample, self.timestep = sample, timestep
        return torch.zeros(len(sample), 3)


@pytest.mark.parametrize("formulation", [GaussianDiffusion(), Interpolant(), EDM()], ids=lambda value: type(value).__name__)
def test_images_are_noised_as_the_formulation_does(formulation: Any) -> None:
    objective, recorder, batch = make_objective(formulation), Recorder(), make_batch()
    losses = objective.loss({"classifier": recorder}, batch, context())
    assert losses["loss"].item() == pytest.approx(torch.tensor(3.0).log().item())
    times = formulation.draw_times(8, generator := torch.Generator().manual_seed(0))
    noised = formulation.add_noise(batch["images"], torch.randn(8, 3, 4, 4, generator=generator), times)
    sample, told = formulation.network_input(noised, times)
    assert torch.equal(recorder.sample, sample) and torch.equal(recorder.timestep, told)


@pytest.mark.parametrize("formulation", [GaussianDiffusion(), Interpolant(), EDM()], ids=lambda value: type(value).__name__)
def test_clean_images_are_told_to_be_clean(formulation: Any) -> None:
    objective, recorder, batch = make_objective(formulation, noised=False), Recorder(), make_batch()
    objective.loss({"classifier": recorder}, batch, context())
    told = formulation.network_time(formulation.nearest_time())
    torch.testing.assert_close(recorder.timestep, told.to(recorder.timestep.dtype).expand(8))
    if not isinstance(formulation, EDM):  # which scales what the network gets
        assert torch.equal(recorder.sample, batch["images"])
    assert objective.identity()["noised"] is False


def test_accuracies() -> None:
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert is_among(logits, torch.tensor([2, 0]), 1).tolist() == [0.0, 1.0]
    assert is_among(logits, torch.tensor([2, 2]), 2).tolist() == [1.0, 0.0]
    assert top_counts(9) == {"top1": 1} and top_counts(10) == {"top1": 1, "top5": 5}
    batch = make_batch()
    assert set(
        make_objective(num_classes=10).loss(
            {"classifier": make_objective(num_classes=10).networks["classifier"]}, batch, context()
        )
    ) == {"loss", "top1", "top5"}


def test_means_by_quarter_of_the_noise_level() -> None:
    monitor = NoiseMonitor(("loss",))
    monitor.record(torch.tensor([0.0, 0.1, 0.3]), {"loss": torch.tensor([1.0, 2.0, 5.0])})
    monitor.record(torch.tensor([0.2, 1.0]), {"loss": torch.tensor([6.0, 4.0])})
    monitor.fold()
    assert {name: float(value) for name, value in monitor.means().items()} == pytest.approx(
        {"loss_q0": 3.0, "loss_q1": 5.0, "loss_q3": 4.0}
    )


def test_means_are_the_same_under_autocast() -> None:
    losses = torch.linspace(0, 1, 1000)
    plain, halved = NoiseMonitor(("loss",)), NoiseMonitor(("loss",))
    plain.record(losses, {"loss": losses})
    with torch.autocast("cpu", torch.bfloat16):
        halved.record(losses, {"loss": losses})
    plain.fold()
    halved.fold()
    assert torch.equal(plain.sums, halved.sums)


class Colours(ImageDataset):
    """Images whose class is their brightness."""

    def __init__(self, num_images: int = 24, seed: int = 0) -> None:
        labels = torch.arange(num_images) % 3
        generator = torch.Generator().manual_seed(seed)
        self.pixels = (labels[:, None, None, None] * 100 + torch.randint(50, (num_images, 3, 4, 4), generator=generator)).byte()
        super().__init__(labels, 3, 4, f"colours-{seed}")
        self.prepare(cache=False, verify=False)

    def load_image(self, index: int) -> Tensor:
        return self.pixels[index]

    def source_name(self, index: int) -> str:
        return f"colour {index}"


def test_a_run_learns_scores_and_draws(toy: ModuleType, tmp_path: Path) -> None:
    trainer = toy.build_trainer(
        make_objective(),
        tmp_path,
        dataset=Colours(),
        evaluator=ClassifierEvaluator(Colours(60, seed=1), batch_size=16),
        total_images=240,
        evaluate_interval_steps=10,
        sample_interval_steps=10,
        keep_best="noised_accuracy",
    )
    trainer.fit()
    entries = read_metrics(tmp_path)
    scores = [entry["evaluation/noised_accuracy"] for entry in entries if "evaluation/noised_accuracy" in entry]
    assert len(scores) == 4 and scores[-1] > 0.6 > scores[0]
    last = [entry for entry in entries if "classifier/top1" in entry][-1]
    assert 0 <= last["classifier/top1"] <= 1 and last["diagnosis/top1_q0"] >= last["diagnosis/top1_q3"]
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["protocol"]["num_images"] == 60 and set(evaluation["scores"]) > {"noised_accuracy_q0", "noised_accuracy_q3"}
    assert Image.open(tmp_path / "samples" / "step-00000030.png").width > 10 * 4
    # What --classifier reads.
    network, _ = load_network(tmp_path, "classifier")
    pipeline = load_any_pipeline(tmp_path)
    assert isinstance(pipeline, NoisedClassifierPipeline) and isinstance(network, ADMClassifier)
    assert pipeline.formulation.identity() == GaussianDiffusion().identity()
    assert pipeline.class_names is None or len(pipeline.class_names) == 3
    assert (pipeline(Colours().pixels).argmax(1) == Colours().labels).float().mean() > 0.8


def test_a_resumed_run_is_bit_equal(toy: ModuleType, tmp_path: Path) -> None:
    whole, again = (toy.build_trainer(make_objective(), tmp_path / name) for name in ("whole", "again"))
    whole.fit()
    again.objective.formulation.draw_times = lambda *given, draw=again.objective.formulation.draw_times: (
        again.request_stop(15) if again.step == 2 else None,
        draw(*given),
    )[1]
    again.fit()
    assert again.step == 3
    resumed = toy.build_trainer(make_objective(), tmp_path / "again")
    resumed.fit(ckpt.resolve_checkpoint(tmp_path / "again", "latest"))
    one, other = toy.snapshot(whole), toy.snapshot(resumed)
    assert not [name for name in one if not torch.equal(one[name], other[name])]
    assert torch.equal(whole.objective.buffers["by_noise_level"], resumed.objective.buffers["by_noise_level"])


def test_latents_are_refused() -> None:
    classifier = make_objective().networks["classifier"]
    classifier.register_to_config(in_channels=4)
    with pytest.raises(UserError, match="of images, whose in_channels are 3, got 4"):
        NoisedClassifierObjective(classifier, GaussianDiffusion(), torch.optim.AdamW)


def test_another_evaluation_is_refused_before_training(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="NoisedClassifierPipeline tells the classes .* set evaluation.class_path to .*ClassifierEv"
    ):
        toy.build_trainer(make_objective(), tmp_path, evaluator=toy.evaluator())
    with pytest.raises(UserError, match="ToyPipeline classifies no images; score it with generative.core.evaluation.Evaluator"):
        toy.build_trainer(toy.denoiser(), tmp_path, evaluator=ClassifierEvaluator(toy.ToyImages()))
