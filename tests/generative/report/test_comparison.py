"""Several runs side by side: differences of configurations, curves in one plot, throughput, tables that fit a page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from generative.report.collect import Run, collect_runs
from generative.report.curves import IMAGES, loss_figure, score_figure, time_axis
from generative.report.differences import ABSENT, differences_section, differing_keys
from generative.report.figures import run_colors, thumbnails_element
from generative.report.page import write_report
from generative.report.scores import FRECHET, KNOWN_SCORES, MAX_COLUMNS, Score, num_columns, score_table, side_by_side
from generative.report.throughput import throughput_table

WriteRun = Callable[..., Path]


def of_class(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"package.module.{name}", "init_args": arguments}


def log(run: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change every entry of a run's log."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("".join(json.dumps(change(json.loads(line))) + "\n" for line in lines))


def test_only_what_differs_is_named() -> None:
    first = {
        "seed": 0,
        "objective": of_class("A", network=of_class("DiT", depth=4, width=8), ema=[of_class("Power", std=0.1)], rate=None),
        "trainer": {"batch_size": 64, "output_dir": "runs/one"},
    }
    second = {
        "seed": 0,
        "objective": of_class(
            "A", network=of_class("DiT", depth=6, width=8), ema=[of_class("Power", std=0.2)], rate=0.5, more=True
        ),
        "trainer": {"batch_size": 64, "output_dir": "runs/two"},
    }
    assert differing_keys([first, second]) == {
        "objective.network.depth": ["4", "6"],
        "objective.ema": ["Power", "Power"],
        "objective.rate": ["none", "0.5"],
        "objective.more": [ABSENT, "true"],
    }
    assert differing_keys([first, first, first]) == {}


def test_parts_of_different_classes_are_one_row() -> None:
    first = {"objective": of_class("A", network=of_class("DiT", depth=4))}
    second = {"objective": of_class("A", network=of_class("UViT", skips=True))}
    assert differing_keys([first, second, {"objective": of_class("A")}]) == {"objective.network": ["DiT", "UViT", ABSENT]}
    assert differing_keys([first, {}]) == {"objective": ["A", ABSENT]}


def test_differences_are_a_table_of_escaped_texts(make_run: WriteRun) -> None:
    one, two = make_run("one"), make_run("two")
    config = yaml.safe_load((two / "config.yaml").read_text())
    config["objective"]["init_args"]["guidance_scale"] = "<b>" + "x" * 300
    (two / "config.yaml").write_text(yaml.safe_dump(config))
    text = differences_section(collect_runs([one, two]))
    assert re.findall(r'data-key="([^"]*)"', text) == ["objective.guidance_scale"]
    assert "&lt;b&gt;" in text and "<b>" not in text and "x" * 150 not in text
    assert "<td>1.5</td>" in text
    assert "The configurations are equal" in differences_section(collect_runs([one, make_run("three")]))
    assert "one configuration only" in differences_section(collect_runs([one]))


def lines_of(svg: str) -> int:
    """Curves in a plot of ours: paths that are cut to the axes and have no marker."""
    return len(re.findall(r'<path [^>]*clip-path="[^"]*" style="fill: none; stroke: #(?:0072b2|d55e00|009e73)', svg))


def test_runs_share_a_plot_of_each_quantity(three_runs: list[Path], make_run: WriteRun) -> None:
    runs = collect_runs([three_runs[1], make_run("other", seed=4), three_runs[0]])
    colors = run_colors(runs)
    svg = loss_figure(runs, "denoiser/loss", colors)
    assert lines_of(svg) == 2 * 2, "raw and smoothed, of the two runs that have it"
    assert "training images seen" in svg
    assert lines_of(score_figure(runs, FRECHET, colors, True, None)) == 3
    assert loss_figure(runs, "nothing/loss", colors) == ""


def test_time_is_that_of_the_steps(make_run: WriteRun) -> None:
    path = make_run("dit")
    (run,) = collect_runs([path])
    assert run.seconds_at([0, 12800, 25600, 51200]) == pytest.approx([0, 3.2, 6.4, 12.8])
    log(
        path,
        lambda entry: (
            entry | ({"images_per_second": 40.0} if entry["images_seen"] > 12800 else {}) if "lr/denoiser" in entry else entry
        ),
    )
    (run,) = collect_runs([path])
    seconds = run.seconds_at([12800, 19200, 25600])
    assert seconds == pytest.approx([3.2, 3.2 + 160, 3.2 + 320]) and run.training_seconds == pytest.approx(323.2)
    axis = time_axis([run])
    assert axis is not None and axis.label == "minutes of training" and axis.of(run, [25600]) == pytest.approx([323.2 / 60])
    assert "minutes of training" in loss_figure([run], "denoiser/loss", run_colors([run]), axis)
    log(path, lambda entry: {key: value for key, value in entry.items() if key != "images_per_second"})
    (run,) = collect_runs([path])
    assert run.seconds_at([1]) is None and time_axis([run]) is None
    assert IMAGES.of(run, [1.0]) == [1.0]


def test_a_run_without_times_is_left_out_of_their_plot_alone(make_run: WriteRun) -> None:
    timed, untimed = make_run("timed"), make_run("untimed", seed=3)
    log(untimed, lambda entry: {key: value for key, value in entry.items() if key != "images_per_second"})
    runs = collect_runs([timed, untimed])
    axis = time_axis(runs)
    assert axis is not None
    assert lines_of(loss_figure(runs, "denoiser/loss", run_colors(runs), axis)) == 2
    assert lines_of(loss_figure(runs, "denoiser/loss", run_colors(runs))) == 4


def test_throughput_shows_what_was_logged(make_run: WriteRun) -> None:
    plain, rich = make_run("plain"), make_run("rich")
    log(
        rich,
        lambda entry: entry | {"system/mfu": 0.25, "system/data_wait": 0.015, "system/memory_peak_gb": 1 + entry["step"] / 64},
    )
    runs = collect_runs([plain, rich])
    text = throughput_table(runs, run_colors(runs))
    assert "Images/s (median)" in text and "MFU" in text and "25.0 %" in text and "1.5 %" in text and "7.25 GB" in text
    assert 'data-value="4000.0"' in text and 'data-score="mfu">\u2013<' in text
    alone = throughput_table(runs[:1], run_colors(runs))
    assert "MFU" not in alone and "Memory" not in alone and "Waiting" not in alone


@pytest.mark.parametrize("count", [1, 9, 12, 13, 30])
def test_tables_have_no_more_columns_than_a_page_has_room_for(count: int) -> None:
    scores = [FRECHET, *(Score((f"score_{i}",), f"score {i}", None) for i in range(count))]
    groups = side_by_side(scores)
    assert [score for group in groups for score in group] == scores
    assert all(sum(map(num_columns, group)) <= MAX_COLUMNS for group in groups)
    assert len(groups) == -(-(count + 3) // MAX_COLUMNS)
    assert side_by_side([]) == [[]]


def test_scores_of_every_kind_are_all_there(make_run: WriteRun) -> None:
    path = make_run("dit")
    stored = json.loads((path / "evaluation.json").read_text())
    stored["scores"] = {score.keys[0]: 0.5 for score in KNOWN_SCORES}
    (path / "evaluation.json").write_text(json.dumps(stored))
    runs: list[Run] = collect_runs([path, make_run("other")])
    runs[1].evaluation["protocol"] = {"num_fake": 50_000}
    text = score_table(runs, run_colors(runs), "#000000")
    # A group's heading spans the columns that there are: more of them would take room from the others.
    assert re.findall(r'colspan="(\d+)">Protocol', text)[:2] == ["13", "13"]
    assert text.count("<table") == 2 and all(f'data-score="{score.keys[0]}"' in text for score in KNOWN_SCORES)


def test_small_grids_stand_below_one_another(three_runs: list[Path], tmp_path: Path) -> None:
    runs = collect_runs(three_runs)
    element = thumbnails_element(runs[0], 5)
    assert element.count("<img") == 3 and "--columns:5" in element and "6.4k" in element and "25.6k" in element
    runs[0].grids = runs[0].grids[:1]
    assert thumbnails_element(runs[0], 5) == ""
    text = write_report(three_runs, tmp_path / "report.html", "t").read_text()
    assert text.count('class="thumbnails"') == 3
