"""Evaluations as ``fid-score`` makes them: several networks, statistics, options of their own, stopped and gone on with."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_extractor import EXTRACTOR

from generative.core import pipeline_samples
from generative.core.checkpoint import resolve_checkpoint
from generative.core.errors import UserError
from generative.core.evaluation import Evaluator
from generative.core.logging import FEATURES_FOLDER, read_metrics
from generative.core.runtime import build_accelerator
from generative.core.trainer import Trainer
from metrics import registry
from metrics.cli import main as fid_score

pytestmark = pytest.mark.filterwarnings("ignore::metrics.metric.SmallSampleWarning", "ignore::metrics.notes.ScoreNote")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A network of a few weights."""
    file = tmp_path / "tiny.py"
    file.write_text(EXTRACTOR)
    return f"{file}:Tiny"


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A metric whose definition names a second network."""
    file = tmp_path / "other.py"
    text = EXTRACTOR.replace('"tiny", 8', '"other", 8').replace("manual_seed(0)", "manual_seed(1)").replace("Tiny", "Other")
    file.write_text(text)
    score = registry.Score("metrics.scores.frechet:FrechetDistance", "on another network", extractor=f"{file}:Other")
    monkeypatch.setitem(registry.SCORES, "fd-other", score)
    return "fd-other"


@pytest.fixture
def pipeline(toy: ModuleType) -> Any:
    torch.manual_seed(0)
    return toy.ToyPipeline(toy.ToyNet().eval())


def evaluator(toy: ModuleType, extractor: str, **options: Any) -> Evaluator:
    given = {"data": toy.ToyImages(seed=9), "num_samples": 12, "metrics": "fid,kid", **options}
    return Evaluator(extractor=extractor, **given)


def scores_of(scorer: Evaluator, pipeline: Any) -> dict[str, float]:
    return scorer.evaluate(pipeline, build_accelerator(), {}).scores


def store_statistics(folder: Path, pixels: torch.Tensor, *flags: str) -> Path:
    np.savez(folder / "real.npz", arr_0=pixels.permute(0, 2, 3, 1).numpy())
    output = folder / "statistics.npz"
    assert fid_score(["--save-stats", str(folder / "real.npz"), str(output), "--device", "cpu", "--quiet", *flags]) in (0, None)
    return output


def test_several_networks_in_one_pass_score_as_each_alone(toy: ModuleType, pipeline: Any, tiny: str, other: str) -> None:
    both = evaluator(toy, tiny, metrics=["fid", "is", "prc", other], classifier_data=toy.ToyImages(seed=3))
    result = both.evaluate(pipeline, build_accelerator(), {})
    expected = scores_of(evaluator(toy, tiny, metrics="fid,is,prc"), pipeline)
    (alone,) = scores_of(evaluator(toy, tiny, metrics=[other]), pipeline).values()
    own = {name: value for name, value in result.scores.items() if name in expected}
    assert own == pytest.approx(expected)
    assert result.scores["frechet_distance_other"] == pytest.approx(alone) != own["frechet_distance"]
    assert result.protocol["extractor"] == "tiny" and result.protocol["other_networks"][0]["extractor"] == "other"
    # Which of them are better when higher, before one is computed; deviations are no scores.
    directions = both.directions()
    assert {name for name in result.scores if not name.endswith("_std")} <= set(directions)
    assert [name for name in result.scores if directions.get(name)] == [
        "classifier_score_mean",
        "precision",
        "recall",
        "density",
        "coverage",
        "classification_accuracy",
    ]


def test_classes_have_their_distances(toy: ModuleType, pipeline: Any, tiny: str) -> None:
    assert scores_of(evaluator(toy, tiny, metrics="class-fid"), pipeline)["class_frechet_distance"] > 0


def test_a_metric_that_fails_does_not_cost_the_others(
    toy: ModuleType, pipeline: Any, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = scores_of(evaluator(toy, tiny, metrics="class-fid,fid", num_samples=4), pipeline)
    assert list(scores) == ["frechet_distance"]
    assert "note: evaluation: class-wise distances need at least 2 fake images of every class" in capsys.readouterr().err


# ------------------------------------------------------------------ statistics


def test_statistics_stand_for_images(toy: ModuleType, pipeline: Any, tiny: str, tmp_path: Path) -> None:
    statistics = store_statistics(tmp_path, toy.ToyImages(seed=9).pixels, "--extractor", tiny, "--metrics", "fid,kid,prc")
    metrics = "fid,kid,prc,is"
    scorer = evaluator(toy, tiny, data=None, reference=statistics, metrics=metrics)
    result = scorer.evaluate(pipeline, build_accelerator(), {})
    assert result.scores == pytest.approx(scores_of(evaluator(toy, tiny, metrics=metrics), pipeline), rel=1e-6, abs=1e-9)
    assert result.protocol["reference"].startswith("statistics.npz ") and result.protocol["num_real"] == 24
    real = scorer.score_real(toy.ToyImages(seed=4), build_accelerator()).scores
    assert real.keys() == result.scores.keys() and real != result.scores


def test_statistics_that_do_not_fit_are_refused_before_training(toy: ModuleType, tiny: str, other: str, tmp_path: Path) -> None:
    statistics = store_statistics(tmp_path, toy.ToyImages(seed=9).pixels, "--extractor", tiny, "--metrics", "fid")
    altered = tmp_path / "altered.py"
    altered.write_text(EXTRACTOR.replace('"0" * 64', '"1" * 64'))

    def build(**options: Any) -> Trainer:
        scorer = evaluator(toy, options.pop("extractor", tiny), **{"data": None, "reference": statistics, **options})
        return toy.build_trainer(toy.denoiser(), tmp_path / "run", evaluator=scorer)

    build(metrics="fid")
    for options, message in (
        ({"extractor": f"{altered}:Tiny", "metrics": "fid"}, "was made with weights_sha256 '000.* but this run has '111"),
        ({"protocol": "pytorch-fid", "metrics": "fid"}, "was made with resizer 'clean', but this run has 'pytorch-fid'"),
        (
            {"metrics": "prc"},
            "metric precision_recall needs reference images, or 4-d projection of tiny that --save-stats",
        ),
        ({"metrics": [other]}, "metric frechet needs reference images, or 4-d projection of other"),
        ({"metrics": "class-fid"}, "metric class_frechet needs real images by class; give held-out images as data instead"),
        ({"reference": tmp_path / "none.npz"}, "there is no reference .*none.npz: make it with `fid-score --save-stats"),
        ({"reference": tmp_path / "real.npz"}, "holds images and no statistics; give held-out images as data"),
        ({"data": toy.ToyImages()}, "evaluation has held-out images .* and the reference .*; give one of them"),
        ({"reference": None}, "metric fid compares samples with real images|metric frechet compares samples with real images"),
        ({"resizer": "clean", "protocol": "adm"}, "protocol adm has a resizer of its own, got resizer clean"),
        ({"protocol": "amd"}, "protocol 'amd' is not known: choose from clean"),
    ):
        with pytest.raises(UserError, match=message):
            build(**options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="has the reference .* and no held-out images"):
        evaluator(toy, tiny, data=None, reference=statistics).data  # noqa: B018 - the access raises
    assert scores_of(evaluator(toy, tiny, data=None, metrics="is"), toy.ToyPipeline(toy.ToyNet())), "it needs no real images"


# ------------------------------------------------------------------ sampling


def test_sampling_options_of_its_own(toy: ModuleType, pipeline: Any, tiny: str, tmp_path: Path) -> None:
    result = evaluator(toy, tiny, sampling={"truncation": 0.5}).evaluate(pipeline, build_accelerator(), {"truncation": 1.0})
    assert result.protocol["sampling"] == {"truncation": 0.5}
    with pytest.raises(UserError, match="evaluation.sampling: ToyPipeline has no option guidance; it takes truncation"):
        toy.build_trainer(toy.denoiser(), tmp_path, evaluator=evaluator(toy, tiny, sampling={"guidance": 2.0}))


def test_precision_of_sampling(toy: ModuleType, pipeline: Any, tiny: str) -> None:
    half = evaluator(toy, tiny, sample_precision="bfloat16").evaluate(pipeline, build_accelerator(), {})
    exact = evaluator(toy, tiny).evaluate(pipeline, build_accelerator(), {})
    assert half.protocol["sample_precision"] == "bfloat16" and "sample_precision" not in exact.protocol
    assert half.scores != exact.scores and half.scores == pytest.approx(exact.scores, rel=0.2, abs=0.2)
    with pytest.raises(UserError, match="float16 needs a GPU"):
        scores_of(evaluator(toy, tiny, sample_precision="float16"), pipeline)


# ------------------------------------------------------------------ going on


def logged(run: Path) -> list[dict[str, float]]:
    """Scores of every evaluation of a run, oldest first."""
    entries = ({name: value for name, value in entry.items() if "evaluation/" in name} for entry in read_metrics(run))
    return [entry for entry in entries if entry]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that were sampled for scores, an entry a batch."""
    counts: list[int] = []
    generate = pipeline_samples.generate_images

    def counted(*arguments: Any, **options: Any) -> Any:
        for batch in generate(*arguments, **options):
            counts.append(len(batch[0]))
            yield batch

    monkeypatch.setattr(pipeline_samples, "generate_images", counted)
    return counts


def test_a_stopped_evaluation_goes_on(toy: ModuleType, tiny: str, tmp_path: Path, sampled: list[int]) -> None:
    """Asked to stop in the midst of the evaluation of step 4, at a step that no checkpoint was due at."""
    settings = {"evaluate_interval_steps": 4, "checkpoint_interval_steps": None, "progress": False}

    def build(run: Path) -> Trainer:
        scorer = evaluator(toy, tiny, num_samples=100, batch_size=16)
        trainer: Trainer = toy.build_trainer(toy.denoiser(), run, evaluator=scorer, **settings)
        return trainer

    whole = build(tmp_path / "whole")
    whole.fit()
    sampled.clear()
    trainer = build(tmp_path / "run")
    assert trainer.observer.evaluator is not None
    # 100 of step 0 in 7 batches; then two and a half tiles of step 4.
    trainer.observer.evaluator.should_stop = lambda: len(sampled) >= 12 and (trainer.request_stop(15) or True)
    trainer.fit()
    assert trainer.step == 4 and sum(sampled) == 180 and not trainer.is_done
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-00000004"]
    assert [entry["step"] for entry in read_metrics(tmp_path / "run") if "evaluation/frechet_distance" in entry] == [0]
    assert (tmp_path / "run" / FEATURES_FOLDER).is_dir()
    sampled.clear()
    resumed = build(tmp_path / "run")
    resumed.fit(resolve_checkpoint(tmp_path / "run", "latest"))
    assert sum(sampled) == 100 - 2 * 32 + 100, "two tiles of step 4 were there; and the end's"
    assert not (tmp_path / "run" / FEATURES_FOLDER).exists() and resumed.is_done
    ours, theirs = (logged(tmp_path / run) for run in ("run", "whole"))
    assert len(ours) == 3 and ours == theirs


def test_features_of_other_samples_are_not_taken(
    toy: ModuleType, pipeline: Any, tiny: str, tmp_path: Path, sampled: list[int]
) -> None:
    root = tmp_path / FEATURES_FOLDER

    def stop_after(batches: int, made: Any, **options: Any) -> None:
        sampled.clear()
        scorer = evaluator(toy, tiny, **{"num_samples": 96, "batch_size": 32, **options})
        scorer.features_root, scorer.should_stop = root, lambda: len(sampled) >= batches
        with pytest.raises(pipeline_samples.SamplingStopped):
            scorer.evaluate(made, build_accelerator(), {})

    stop_after(2, pipeline)
    stop_after(1, pipeline)  # goes on with the third
    altered = toy.ToyPipeline(toy.ToyNet().eval())
    assert len(list(root.iterdir())) == 1
    for made, options in ((altered, {}), (pipeline, {"seed": 1}), (pipeline, {"sampling": {"truncation": 0.5}})):
        stop_after(2, made, **options)
        assert len(list(root.iterdir())) == 1, "those of before are deleted"


def test_an_evaluation_without_a_score_ends_no_run(
    toy: ModuleType, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = evaluator(toy, tiny, metrics="class-fid", num_samples=4)
    trainer = toy.build_trainer(toy.denoiser(), tmp_path, evaluator=scorer, evaluate_interval_steps=2)
    trainer.fit()
    assert trainer.is_done and "the other scores are computed" in capsys.readouterr().err


# ------------------------------------------------------------------ intervals


def test_intervals_in_images(toy: ModuleType, tiny: str, tmp_path: Path) -> None:
    """Steps of 8 images: 20 are passed at step 3, 40 at step 5."""
    trainer = toy.build_trainer(toy.denoiser(), tmp_path, evaluator=evaluator(toy, tiny), evaluate_interval_images=20)
    trainer.fit()
    assert [entry["step"] for entry in read_metrics(tmp_path) if "evaluation/frechet_distance" in entry] == [0, 3, 5, 6]
    with pytest.raises(UserError, match="evaluate_interval_steps is 2 and trainer.evaluate_interval_images 20; give one"):
        toy.build_trainer(toy.denoiser(), tmp_path, evaluate_interval_steps=2, evaluate_interval_images=20)
    with pytest.raises(UserError, match="evaluate_interval_images is set but there is no evaluation"):
        toy.build_trainer(toy.denoiser(), tmp_path, evaluate_interval_images=20)


def test_real_scores_are_taken_up(toy: ModuleType, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = lambda: toy.build_trainer(toy.denoiser(), tmp_path, evaluator=evaluator(toy, tiny), evaluate_interval_steps=3)  # noqa: E731
    first = build()
    first.objective.on_call = lambda batch: first.request_stop(15) if first.step == 1 else None
    first.fit()
    monkeypatch.setattr(Evaluator, "score_real", lambda *arguments: pytest.fail("they are in evaluation.json"))
    build().fit(resolve_checkpoint(tmp_path, "latest"))


def test_the_best_by_a_score_that_no_evaluation_gives(toy: ModuleType, tiny: str, tmp_path: Path) -> None:
    def build(score: str) -> Trainer:
        scorer = evaluator(toy, tiny, metrics="is,prc")
        return toy.build_trainer(toy.denoiser(), tmp_path, evaluator=scorer, evaluate_interval_steps=2, keep_best=score)

    for name in ("classifier_score_mean", "coverage"):
        best = build(name).best
        assert best is not None and best.sign == 1.0
    with pytest.raises(UserError, match="has no score 'classifier_score_std' for trainer.keep_best, it has classifier_score"):
        build("classifier_score_std")
    assert not list(tmp_path.glob("checkpoint*"))
