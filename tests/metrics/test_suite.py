from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from metrics import registry
from metrics.files.statistics import FeatureEntry, ReferenceStatistics
from metrics.metric import FeatureMetric, SmallSampleWarning
from metrics.scores.inception_score import InceptionScore
from metrics.scores.kernel import KernelDistance
from metrics.scores.moments import MomentAccumulator
from metrics.suite import MetricSuite, build_metric, directions, score_images

pytestmark = pytest.mark.filterwarnings("ignore::metrics.metric.SmallSampleWarning")
_ALL = ["frechet", "kid", "precision_recall", "inception_score"]


def _metrics() -> list[Any]:
    return [
        "frechet",
        KernelDistance(subsets=4, subset_size=20),
        "precision_recall",
        InceptionScore(splits=3),
        "cmmd",
    ]


@pytest.fixture(scope="module")
def sets(smooth_images: Any) -> tuple[Tensor, Tensor]:
    return smooth_images(60, 10, 14, seed=0), smooth_images(45, 9, 9, seed=1, contrast=90.0)


def _scored(extractor: Any, sets: tuple[Tensor, Tensor], batch_size: int = 64) -> MetricSuite:
    suite = MetricSuite(_metrics(), extractor, batch_size=batch_size)
    suite.update(sets[0], real=True)
    suite.update(sets[1], real=False)
    return suite


def test_each_image_passes_the_network_once(tiny_extractor, sets) -> None:
    scores = _scored(tiny_extractor, sets).compute()
    assert tiny_extractor.num_seen == 105
    assert set(scores) == {
        "frechet_distance",
        "kernel_distance_mean",
        "kernel_distance_std",
        "precision",
        "recall",
        "density",
        "coverage",
        "classifier_score_mean",
        "classifier_score_std",
        "gaussian_kernel_distance",
    }
    assert not {"fid", "inception_score_mean", "cmmd"} & set(scores), "names belong to published networks"


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_change_nothing(tiny_extractor, sets, batch_size: int) -> None:
    expected = _scored(tiny_extractor, sets).compute()
    assert _scored(tiny_extractor, sets, batch_size).compute() == pytest.approx(expected, rel=1e-5, abs=1e-9)
    suite = MetricSuite(_metrics(), tiny_extractor)
    for image in sets[0]:
        suite.update([image], real=True)
    for chunk in sets[1].split(11):
        suite.update(list(chunk), real=False)
    assert suite.compute() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_order_changes_nothing_but_drawn_subsets(tiny_extractor, sets) -> None:
    names = ["frechet", KernelDistance(subset_size=1000), "precision_recall", "cmmd"]
    expected = score_images([sets[0]], [sets[1]], names, tiny_extractor)
    names = ["frechet", KernelDistance(subset_size=1000), "precision_recall", "cmmd"]
    flipped = score_images([sets[0].flip(0)], [sets[1].flip(0)], names, tiny_extractor)
    del expected["protocol"], flipped["protocol"]
    assert flipped == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_one_reference_scores_many_sets(tiny_extractor, sets) -> None:
    suite = _scored(tiny_extractor, sets)
    first = suite.compute()
    suite.reset_fake()
    suite.update(sets[0], real=False)
    same = suite.compute()
    assert same["frechet_distance"] < 1e-9
    assert same["precision"] == same["recall"] == 1.0
    suite.reset_fake()
    suite.update(sets[1], real=False)
    assert suite.compute() == first
    suite.reset()
    assert suite.count(True) == suite.count(False) == 0


def _gather_in(num_ranks: int, extractor: Any, sets: tuple[Tensor, Tensor], interleave: bool) -> list[MetricSuite]:
    """Play ``num_ranks`` processes: every suite sees its share, then all exchange their states."""
    suites = [MetricSuite(_metrics(), extractor, batch_size=4) for _ in range(num_ranks)]
    for real, images in ((True, sets[0]), (False, sets[1])):
        for rank, suite in enumerate(suites):
            if interleave:
                indices = torch.arange(rank, len(images), num_ranks)
                suite.update(images[indices], real, indices)
            else:
                suite.update(images.chunk(num_ranks)[rank], real)
    for side in (0, 1):
        states: list[Any] = []
        for suite in suites:
            collected: list[Any] = []

            def collect(local: Any, collected: list[Any] = collected) -> list[Any]:
                collected.append(local)
                return [local]

            _peek(suite, collect)
            states.append(collected)
        exchanged = [[state[side] for state in states]]
        for suite in suites:
            suite.pending_exchange = getattr(suite, "pending_exchange", []) + exchanged  # type: ignore[attr-defined]
    for suite in suites:
        exchanges = iter(suite.pending_exchange)  # type: ignore[attr-defined]
        suite.gather(lambda local, exchanges=exchanges: next(exchanges))
    return suites


def _peek(suite: MetricSuite, collect: Any) -> None:
    """Record what a suite would send, without merging anything."""
    for real in (True, False):
        side = "real" if real else "fake"
        collect({"indices": list(suite._indices[side]), "states": [metric.state(real) for metric in suite.metrics]})


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("interleave", [True, False])
def test_uneven_processes_equal_one(tiny_extractor, sets, num_ranks: int, interleave: bool) -> None:
    expected = _scored(tiny_extractor, sets).compute()
    for suite in _gather_in(num_ranks, tiny_extractor, sets, interleave):
        assert (suite.count(True), suite.count(False)) == (60, 45)
        assert suite.compute() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_images_counted_twice_are_found(tiny_extractor, sets) -> None:
    suite = MetricSuite(["frechet"], tiny_extractor)
    suite.update(sets[0][:4], real=True, indices=torch.tensor([0, 2, 4, 0]))  # a padded sampler starts over
    with pytest.raises(ValueError, match="1 real images were counted twice over the processes"):
        suite.gather(lambda local: [local])


def test_gathered_side_is_kept_and_closed(tiny_extractor, sets) -> None:
    suite = _scored(tiny_extractor, sets)
    suite.gather(lambda local: [local])
    suite.reset_fake()
    suite.update(sets[1], real=False)
    suite.gather(lambda local: [local])
    assert (suite.count(True), suite.count(False)) == (60, 45)
    with pytest.raises(RuntimeError, match="real side has been gathered"):
        suite.update(sets[0], real=True)


_WORKER = """
import sys, torch
import torch.distributed as dist
from metrics.scores.kernel import KernelDistance
from metrics.suite import MetricSuite
sys.path.insert(0, sys.argv[1])
from conftest import TinyExtractor, _smooth_images
rank = int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
suite = MetricSuite(["frechet", KernelDistance(subsets=4, subset_size=20)], TinyExtractor().freeze())
for real, images in ((True, _smooth_images(31, 10, 10, 0)), (False, _smooth_images(25, 10, 10, 1))):
    indices = torch.arange(rank, len(images), 2)
    suite.update(images[indices], real, indices)
def everyone(local):
    parts = [None, None]
    dist.all_gather_object(parts, local)
    return parts
suite.gather(everyone)
print(repr(suite.compute()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over files")
def test_two_real_processes_equal_one(tiny_extractor, smooth_images, tmp_path, request) -> None:
    import os
    from pathlib import Path

    here, root = Path(__file__).parent, Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", _WORKER, str(here)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in (0, 1)
    ]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    suite = MetricSuite(["frechet", KernelDistance(subsets=4, subset_size=20)], tiny_extractor)
    suite.update(smooth_images(31, 10, 10, 0), real=True)
    suite.update(smooth_images(25, 10, 10, 1), real=False)
    expected = suite.compute()
    for output in outputs:
        values = dict(item.split(": ") for item in output.strip().strip("{}").split(", "))
        assert {key.strip("'"): float(value) for key, value in values.items()} == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_protocol_is_complete_and_json_able(tiny_extractor, sets) -> None:
    protocol = json.loads(json.dumps(_scored(tiny_extractor, sets).protocol))
    assert protocol["extractor"] == "tiny"
    assert (protocol["resizer"], protocol["input_size"]) == ("clean", 8)
    assert (protocol["num_real"], protocol["num_fake"]) == (60, 45)
    assert protocol["metrics"]["kid"] == {"feature": "projection", "subsets": 4, "subset_size": 20, "seed": 2020}
    assert MetricSuite(["frechet"], tiny_extractor, resizer=None).protocol["resizer"] == "clean"


def test_reference_from_statistics(tiny_extractor, sets) -> None:
    suite = MetricSuite(["frechet"], tiny_extractor)
    suite.update(sets[0], real=True)
    suite.update(sets[1], real=False)
    expected = suite.compute()
    stored = _statistics(suite, sets[0])
    other = MetricSuite(["frechet", "inception_score"], tiny_extractor)
    assert other.load_statistics(stored) == []
    other.update(sets[1], real=False)
    assert other.compute()["frechet_distance"] == pytest.approx(expected["frechet_distance"], rel=1e-6)
    assert other.protocol["reference"] == {"path": "ref.npz", "num_images": 60}
    assert other.protocol["num_real"] == 60
    with pytest.raises(ValueError, match="made with resizer 'clean', but this run has 'tensorflow'"):
        MetricSuite(["frechet"], tiny_extractor, resizer="tensorflow").load_statistics(stored)
    narrow = ReferenceStatistics("narrow.npz", (FeatureEntry(None, None, torch.zeros(3), torch.eye(3)),))
    (lacking,) = other.load_statistics(narrow)
    assert lacking.name == "frechet"
    (lacking,) = MetricSuite(["kid"], tiny_extractor).load_statistics(stored)
    assert lacking.name == "kid", "moments are not enough for a kernel"


def test_both_sides_from_stored_features(tiny_extractor, sets) -> None:
    suite = _scored(tiny_extractor, sets)
    expected = suite.compute()
    stored = MetricSuite(_metrics(), tiny_extractor)
    for real, images in ((True, sets[0]), (False, sets[1])):
        found = _statistics(suite, images, with_features=True)
        assert {metric.name for metric in stored.load_statistics(found, real)} <= {"inception_score"}
    stored.add({"logits": suite.extraction(sets[1], ["logits"])["logits"]}, False, torch.arange(45), metrics=stored.metrics[3:4])
    assert stored.compute() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def _statistics(suite: MetricSuite, images: Tensor, with_features: bool = False) -> ReferenceStatistics:
    features = suite.extraction(images, ["projection"])["projection"]
    accumulator = MomentAccumulator()
    accumulator.append(features)
    fit = accumulator.gaussian()
    entry = FeatureEntry(
        "tiny",
        "projection",
        fit.mu,
        fit.covariance(),
        features if with_features else None,
        suite.extraction.protocol("projection"),
        num_images=len(images),
    )
    return ReferenceStatistics("ref.npz", (entry,), num_images=len(images), has_provenance=True)


def test_only_metrics_that_look_at_real_images_cost_them(tiny_extractor, sets) -> None:
    suite = MetricSuite(["is"], tiny_extractor)
    suite.update(sets[0], real=True)
    assert tiny_extractor.num_seen == 0
    suite.update(sets[1], real=False)
    assert suite.compute()["classifier_score_mean"] >= 1.0


def test_a_new_metric_is_one_class_and_one_line(tiny_extractor, sets, monkeypatch: pytest.MonkeyPatch) -> None:
    class MeanGap(FeatureMetric):
        name = "mean_gap"

        def compute(self) -> dict[str, float]:
            return {"mean_gap": float((self.features(True).mean(0) - self.features(False).mean(0)).norm())}

    monkeypatch.setattr("metrics.scores.kernel.MeanGap", MeanGap, raising=False)
    monkeypatch.setitem(registry.SCORES, "mean_gap", registry.Score("metrics.scores.kernel:MeanGap", "a test's"))
    assert score_images([sets[0]], [sets[1]], ["mean_gap"], tiny_extractor)["mean_gap"] > 0


def test_bad_input_is_told(tiny_extractor, sets) -> None:
    with pytest.raises(ValueError, match="metric 'sharpness' is not known: choose from fid"):
        MetricSuite(["sharpness"], tiny_extractor)
    with pytest.raises(ValueError, match="list of at least one metric"):
        MetricSuite("frechet", tiny_extractor)
    with pytest.raises(ValueError, match="twice"):
        MetricSuite(["frechet", "fid"], tiny_extractor)
    with pytest.raises(ValueError, match="no feature 'pool3'"):
        MetricSuite([KernelDistance(feature="pool3")], tiny_extractor)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        MetricSuite(["kid"], tiny_extractor, batch_size=0)
    suite = MetricSuite(["frechet", "kid"], tiny_extractor)
    with pytest.raises(TypeError, match="uint8"):
        suite.update(torch.zeros(2, 3, 8, 8), real=True)
    with pytest.raises(ValueError, match="one entry per image"):
        suite.update(sets[0][:2], real=True, indices=torch.arange(3))
    suite.update(sets[0][:1], real=True)
    suite.update(sets[1], real=False)
    with pytest.raises(ValueError, match="at least 2 real images and got 1"):
        suite.compute()


def test_nan_features_are_named(tiny_extractor, sets) -> None:
    with torch.no_grad():
        tiny_extractor.projection[0, 0] = torch.nan
    suite = MetricSuite(["frechet"], tiny_extractor, batch_size=2)
    with pytest.raises(ValueError, match="feature projection of fake image 0 is NaN or infinite: the weights of tiny"):
        suite.update(sets[1], real=False)


def test_small_samples_warn(tiny_extractor, sets) -> None:
    suite = MetricSuite(["frechet"], tiny_extractor)
    suite.update(sets[0][:5], real=True)
    suite.update(sets[1], real=False)
    with pytest.warns(SmallSampleWarning, match="5 real images are fewer than the 12 feature dimensions"):
        suite.compute()


def test_metrics_know_which_of_their_numbers_are_better_when_higher(tiny_extractor, smooth_images) -> None:
    """Whatever is computed is among the names said before, but for deviations and errors."""
    names = ["fid", "fid-infinity", "class-fid", "is", "am", "kid", "cmmd", "cmmd-unbiased", "mind", "prc"]
    suite = MetricSuite(names, tiny_extractor)
    suite.metrics += [build_metric("kid", subset_size=10, feature="logits"), build_metric("fid", feature="logits")]
    for metric in suite.metrics[-2:]:
        metric.bind(tiny_extractor)
    labels = torch.arange(30) % 3
    for real in (True, False):
        suite.update(smooth_images(30, 8, 8, seed=int(real)), real, labels=labels)
    known = directions([suite])
    scores = {name for name in suite.compute() if not name.endswith(("_std", "_stderr"))}
    assert {"classifier_score_mean", "kernel_distance_mean", "frechet_distance_logits", "am_score"} <= scores <= set(known)
    higher = {name for name in scores if known[name]}
    assert higher == {"classifier_score_mean", "precision", "recall", "density", "coverage"}
