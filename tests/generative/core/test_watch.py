"""The watch over scores: what is worth a warning, what is not, and that each is said once while it lasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from generative.core.watch import HISTORY_ENTRIES, Watch, main_score, score_warnings


def evaluations(*values: float, name: str = "frechet_distance") -> list[dict[str, Any]]:
    return [{"step": 100 * index, f"evaluation/{name}": value, "evaluation/recall": 0.5} for index, value in enumerate(values)]


@pytest.mark.parametrize(
    "values",
    [
        (),
        (500.0,),
        (500.0, 90.0, 40.0, 30.0, 25.0),
        (500.0, 40.0, 42.0, 41.0, 44.0, 43.0, 45.0),  # up and down about a level
        (500.0, 40.0, 41.0, 42.0),  # two in a row
        (500.0, 40.0, 59.0),  # 48 % above
        (-0.001, 0.001, -0.002),  # unbiased distances pass below 0, where no ratio means anything
    ],
)
def test_healthy_scores(values: tuple[float, ...]) -> None:
    assert score_warnings(evaluations(*values)) == {}


def test_a_score_that_rises_names_its_best_and_where() -> None:
    found = score_warnings(evaluations(500.0, 40.0, 41.0, 42.0, 43.5))
    assert list(found) == ["score_rising"]
    sentence = found["score_rising"]
    assert "frechet_distance rose 3 evaluations running, to 43.5" in sentence and "best was 40 at step 100" in sentence
    assert "\n" not in sentence


def test_a_score_far_above_its_best() -> None:
    found = score_warnings(evaluations(500.0, 40.0, 61.0, name="kernel_distance_mean"))
    assert list(found) == ["score_above_best"]
    assert "kernel_distance_mean is 61, 1.5 times its best: the best was 40 at step 100" in found["score_above_best"]


def test_scores_of_different_metrics_do_not_compare() -> None:
    assert score_warnings([*evaluations(1.0, 1.1, 1.2), *evaluations(50.0, name="fid")]) == {}


def test_the_main_score_is_a_distance() -> None:
    assert main_score({"step": 0, "evaluation/kernel_distance": 0.1, "evaluation/fid": 8.0}) == ("fid", 8.0)
    assert main_score({"step": 0, "evaluation/recall": 0.1}) is None
    assert main_score({"step": 0, "fid": 0.1}) is None


def rules(history: Sequence[Any]) -> dict[str, str]:
    return {"high": f"value is {history[-1]['value']}"} if history and history[-1]["value"] > 1 else {}


def entry(value: float) -> dict[str, Any]:
    return {"step": 0, "value": value}


def test_each_warning_is_said_once_while_it_lasts() -> None:
    watch = Watch(rules)
    said = [watch.update(entry(value)) for value in (0.5, 2.0, 3.0, 0.5, 4.0)]
    assert said == [{}, {"high": "value is 2.0"}, {}, {}, {"high": "value is 4.0"}]


def test_a_resumed_run_does_not_repeat_what_was_said() -> None:
    watch = Watch(rules)
    watch.resume(
        [entry(0.5), entry(2.0), {"step": 0, "warning": "value is 2.0", "rule": "high"}, *evaluations(500.0, 40.0, 70.0)]
    )
    assert watch.update(entry(2.0)) == {}
    assert watch.update(evaluations(80.0)[0]) == {}
    assert watch.update(evaluations(30.0)[0]) == {}
    assert list(watch.update(evaluations(90.0)[0])) == ["score_above_best"]


def test_evaluations_outlast_the_window_of_log_entries() -> None:
    watch = Watch(rules)
    watch.update(evaluations(10.0)[0])
    for _ in range(HISTORY_ENTRIES + 5):
        watch.update(entry(0.0))
    assert len(watch.history) == HISTORY_ENTRIES
    assert "best was 10 at step 0" in watch.update({"step": 5, "evaluation/frechet_distance": 20.0})["score_above_best"]
