"""What goes wrong with one sample set, file or analysis does not cost the scores of the others."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metrics.cli import main
from metrics.scoring import score
from metrics.scoring.report import IncompleteError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folders(tmp_path: Path, smooth_images: Any, write_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder: ``real``, ``good`` and ``other`` of enough images, ``few`` of three, ``bad`` with a damaged one."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, count) in enumerate({"real": 20, "good": 16, "other": 14, "few": 3, "bad": 12}.items()):
        write_folder(tmp_path / name, smooth_images(count, 9, 9, seed=seed, contrast=90.0))
    path = Path("bad/0007.png")
    path.write_bytes(path.read_bytes()[:60])


@pytest.fixture
def run(tiny_options: list[str], capsys: pytest.CaptureFixture[str]) -> Run:
    """The function (arguments) -> exit code, stdout and stderr with the tiny network."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, *tiny_options])
        return code, *capsys.readouterr()

    return run


def rows(path: str) -> dict[str, dict[str, str]]:
    with Path(path).open(newline="") as stream:
        return {row["samples"]: row for row in csv.DictReader(stream)}


@pytest.mark.usefixtures("folders")
def test_a_set_too_small_for_one_metric_keeps_the_others(run: Run, images_run: list[int]) -> None:
    code, out, err = run("real", "good", "few", "other", "--metrics", "fid,prc", "--csv", "l.csv", "--plot", "l.png")
    assert code == 2 and sum(images_run) == 20 + 16 + 3 + 14
    warning, error = err.splitlines()
    assert warning.startswith("warning: few: metric precision_recall needs at least 4 fake images, and few holds 3")
    assert error.startswith("error: 1 of 3 sample sets lack scores: few (metric precision_recall needs at least 4 fake images")
    found = rows("l.csv")
    assert [name for name, row in found.items() if row["precision"] and row["frechet_distance"]] == ["good", "other"]
    assert found["few"]["frechet_distance"] and not found["few"]["precision"] and "at least 4" in found["few"]["error"]
    assert not found["good"]["error"] and found["good"]["precision"][:6] in out and Path("l.png").is_file()


@pytest.mark.usefixtures("folders")
def test_what_a_set_will_lack_is_said_before_any_work(tiny_options: list[str], capsys, monkeypatch) -> None:
    from metrics.scoring.extraction import Extraction

    said: list[str] = []
    monkeypatch.setattr(Extraction, "run", lambda *_: said.append(capsys.readouterr().err) or pytest.fail("fed"))
    with pytest.raises(pytest.fail.Exception):
        main(["real", "good", "few", "--metrics", "fid,prc", *tiny_options])
    assert said[0].startswith("warning: few: metric precision_recall needs at least 4")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["real", "few", "--metrics", "fid,prc"], "needs at least 4 fake images, and few holds 3"),
        (["few", "real", "good", "--metrics", "fid,prc"], "needs at least 4 real images, and few holds 3"),
        (["real", "few", "few", "--metrics", "prc"], "needs at least 4 fake images, and few holds 3"),
        (["real", "few", "--metrics", "prc", "--nearest-k", "20"], "needs at least 21 real images, and real holds 20"),
        (["real", "few", "--metrics", "fid-infinity"], "frechet_infinity needs at least 30 fake images, and few holds 3"),
        (["real", "good", "--metrics", "class-fid"], "class_frechet needs class labels, and real has none"),
        (["real", "good", "absent"], "path absent does not exist"),
        (["real", "good", "other", "--cas", "resnet18"], "--cas needs a reference and one sample set"),
    ],
)
@pytest.mark.usefixtures("folders")
def test_what_leaves_nothing_to_score_is_refused_at_the_start(
    run: Run, images_run: list[int], arguments: list[str], words: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out, images_run) == (2, "", []) and err.count("\n") == 1 and words in err, err


@pytest.mark.usefixtures("folders")
def test_a_damaged_set_keeps_the_others(run: Run) -> None:
    Path("broken.npz").write_bytes(b"PK\3\4")
    code, out, err = run("real", "bad", "good", "broken.npz", "--json", "--csv", "l.csv")
    assert code == 2 and "2 of 3 sample sets lack scores: bad (image bad/0007.png" in err and "broken.npz" in err
    results = {result["path"]: result for result in json.loads(out)["results"]}
    assert list(results) == ["bad", "good", "broken.npz"] and list(results["good"]["scores"]) == ["frechet_distance"]
    assert not results["bad"]["scores"] and "truncated" in results["bad"]["errors"][0]
    assert not results["broken.npz"]["scores"] and results["broken.npz"]["errors"] and not results["good"]["errors"]
    assert run("real", "good", "--json")[1].count(str(results["good"]["scores"]["frechet_distance"])) == 2
    assert [name for name, row in rows("l.csv").items() if row["frechet_distance"]] == ["good"]
    code, out, err = run("real", "bad", "broken.npz")
    assert code == 2 and out == "" and "bad/0007.png" in err, "nothing could be scored"


@pytest.mark.usefixtures("folders")
def test_a_statistics_file_of_another_protocol_keeps_the_others(run: Run) -> None:
    assert run("--save-stats", "good", "other-protocol.npz", "--protocol", "tensorflow")[0] == 0
    assert run("--save-stats", "good", "good.npz")[0] == 0
    assert run("--save-stats", "real", "real.npz")[0] == 0
    for reference in ("real", "real.npz"):
        code, out, err = run(reference, "good.npz", "other-protocol.npz", "--json")
        assert code == 2 and "resizer" in err and "tensorflow" in err
        good, other = json.loads(out)["results"]
        assert good["scores"] and not other["scores"] and "tensorflow" in other["errors"][0]


@pytest.mark.usefixtures("folders")
def test_from_python_the_scores_come_with_the_error(tiny_options: list[str]) -> None:
    with pytest.raises(IncompleteError, match="1 of 2 sample sets lack scores: bad") as caught:
        score(["good", "bad"], "real", extractor="tiny", device="cpu", csv="l.csv")
    good, bad = caught.value.record["results"]
    assert rows("l.csv")["good"]["frechet_distance"] == str(good["scores"]["frechet_distance"]) and not bad["scores"]


@pytest.fixture
def classes(tmp_path: Path, smooth_images: Any, write_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder: ``real`` and ``fake`` of two classes."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("real/cat", "real/dog", "fake/cat", "fake/dog")):
        write_folder(tmp_path / name, smooth_images(6, 9, 9, seed=seed))


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "the classification accuracy score was interrupted"),
        (OSError(28, "No space left on device", "/tmp/x"), 2, "failed: /tmp/x: No space left on device"),
        (ZeroDivisionError("a fault of ours"), None, ""),
    ],
)
@pytest.mark.usefixtures("classes")
def test_an_analysis_that_ends_early_keeps_the_scores(
    tiny_options, capsys, monkeypatch, failure: BaseException, code: int | None, words: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("metrics.scores.classification_accuracy.classification_accuracy_score", fail)
    arguments = ["real", "fake", "--cas", "resnet18", "--csv", "l.csv", *tiny_options]
    if code is None:
        with pytest.raises(ZeroDivisionError):
            main(arguments)
    else:
        assert main(arguments) == code
    row = rows("l.csv")["fake"]
    assert row["frechet_distance"] and words in row["error"]
    assert f"{float(row['frechet_distance']):.6f}" in capsys.readouterr().out


@pytest.mark.usefixtures("folders")
def test_an_interruption_keeps_the_sets_that_are_done(tiny_options, capsys, monkeypatch) -> None:
    from metrics.scores.frechet import FrechetDistance

    compute = FrechetDistance.compute
    values = iter((compute, lambda metric: (_ for _ in ()).throw(KeyboardInterrupt())))
    monkeypatch.setattr(FrechetDistance, "compute", lambda metric: next(values)(metric))
    assert main(["real", "good", "other", "--json", *tiny_options]) == 130
    captured = capsys.readouterr()
    good, other = json.loads(captured.out)["results"]
    assert good["scores"] and not good["errors"] and not other["scores"] and "interrupted" in other["errors"][0]
    assert captured.err.startswith("interrupted: ")


@pytest.mark.usefixtures("folders")
def test_outputs_that_cannot_be_written_are_refused_at_the_start(run: Run, images_run: list[int]) -> None:
    for flag, name in (("--csv", "good/0000.png/x.csv"), ("--json", "good/0000.png/x.json"), ("--plot", "l" * 300 + ".png")):
        code, out, err = run("real", "good", f"{flag}={name}")
        assert code == 2 and out == "" and err.startswith(f"error: {flag} ") and err.count("\n") == 1, err
    assert "can't be written" in run("real", "good", "--sensitivity-map", "/proc/map.png")[2]
    assert "both name" in run("real", "good", "--csv", "x.json", "--json", "x.json")[2]
    assert "is an input" in run("real", "good/0000.png", "--csv", "good/0000.png")[2]
    assert "--save-stats output" in run("--save-stats", "real", "good/0000.png/x.npz")[2]
    with pytest.raises(ValueError, match="NUL"):
        score("good", "real", extractor="tiny", csv="a\0.csv")
    assert images_run == [] and not list(Path().glob(".*"))


@pytest.mark.usefixtures("folders")
def test_one_output_that_fails_at_the_end_keeps_the_others(run: Run, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "l.json")

    monkeypatch.setattr("metrics.scoring.outputs.write_json", fail)
    code, out, err = run("real", "good", "--json=l.json", "--csv", "l.csv")
    assert code == 2 and err == "error: l.json: No space left on device\n"
    assert f"{float(rows('l.csv')['good']['frechet_distance']):.6f}" in out


@pytest.mark.usefixtures("folders")
def test_an_error_of_one_metric_keeps_the_others(run: Run, monkeypatch) -> None:
    from metrics.scores.kernel import KernelDistance

    def fail(metric: KernelDistance) -> dict[str, float]:
        raise ValueError("no such distance.")

    monkeypatch.setattr(KernelDistance, "compute", fail)
    code, out, err = run("real", "good", "--metrics", "kid,fid", "--json")
    assert code == 2 and err == "error: no such distance.\n"
    assert list(json.loads(out)["scores"]) == ["frechet_distance"]
