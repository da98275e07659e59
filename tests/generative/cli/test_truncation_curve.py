"""``generative truncation-curve`` from the command line, with a feature network of a few weights."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_extractor import EXTRACTOR

from generative.cli.main import main

PROJECT = Path(__file__).parents[3]

ARGUMENTS = ["--reference", "real.npz", "--extractor", "tiny.py:Tiny", "--num-samples", "24", "--output", "curve"]


@pytest.fixture(autouse=True)
def inputs(own_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real images, a feature network, and a cache of features of the test's own."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    Path("tiny.py").write_text(EXTRACTOR)
    np.savez("real.npz", np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))


def run(folder: Path, *flags: str) -> None:
    assert main(["truncation-curve", str(folder), *ARGUMENTS, *flags]) == 0


def failure(capsys: pytest.CaptureFixture[str], folder: Path | str, *flags: str) -> str:
    capsys.readouterr()
    assert main(["truncation-curve", str(folder), *ARGUMENTS, *flags]) == 2
    err = capsys.readouterr().err
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in err
    return line


def content() -> dict:
    return json.loads(Path("curve/curve.json").read_text())


def scores() -> dict[float | None, dict[str, float]]:
    return {point["threshold"]: point["scores"] for point in content()["points"]}


def test_files_and_table(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(saved, "--thresholds", "none,0.1,1")
    out = capsys.readouterr().out
    assert list(scores()) == [None, 0.1, 1.0]
    table = out[out.index("threshold  ") :].splitlines()
    assert table[0].split() == ["threshold", "frechet_distance", "classifier_score_mean", "classifier_score_std"], "no FID, no IS"
    assert [line.split()[0] for line in table[1:4]] == ["0.1", "1", "none"]
    assert "a Frechet distance on tiny is not FID" in out and "noise truncated; batch norm as saved" in out
    assert sorted(path.name for path in Path("curve").iterdir()) == ["curve.csv", "curve.json", "curve.png"]
    rows = list(csv.DictReader(Path("curve/curve.csv").open()))
    assert [row["threshold"] for row in rows] == ["0.1", "1", "none"]
    for row, threshold in zip(rows, (0.1, 1.0, None), strict=True):
        assert row["num_samples"] == "24"
        assert float(row["frechet_distance"]) == scores()[threshold]["frechet_distance"]
    with Image.open("curve/curve.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000


def test_a_point_is_what_fid_score_gives_of_the_samples(saved: Path) -> None:
    from metrics import score

    run(saved, "--thresholds", "0.5", "--seed", "3")
    flags = ["--truncation", "0.5", "--seed", "3", "--num-images-per-class", "8", "--batch-size", "50"]
    assert main(["sample", str(saved), *flags, "--output", "samples.npz"]) == 0
    expected = score("samples.npz", "real.npz", metrics="fid,is", extractor="tiny.py:Tiny")["scores"]
    assert scores()[0.5] == pytest.approx(expected, rel=1e-3)


def test_an_interrupted_curve_goes_on(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import metrics.scoring

    whole = metrics.scoring.score
    scored: list[str] = []

    def interrupted(samples: Path, *args: object, **options: object) -> dict:
        scored.append(samples.name)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return whole(samples, *args, **options)

    monkeypatch.setattr("metrics.score", interrupted, raising=False)
    assert main(["truncation-curve", str(saved), *ARGUMENTS, "--thresholds", "0.5,none"]) == 130
    assert list(scores()) == [0.5] and Path("curve/curve.png").exists()
    first = scores()[0.5]
    run(saved, "--thresholds", "0.5,none")
    assert scored == ["threshold-0.5", "threshold-none", "threshold-none"]
    assert list(scores()) == [0.5, None] and scores()[0.5] == first
    assert not Path("curve/.sampling").exists()
    # Other batches are no other settings, and a picture that was lost is drawn again.
    Path("curve/curve.png").unlink()
    run(saved, "--thresholds", "0.5", "--batch-size", "7")
    assert len(scored) == 3 and list(scores()) == [0.5, None] and Path("curve/curve.png").exists()
    # A curve begun at the other end is the same curve.
    Path("curve").rename("pieces")
    run(saved, "--thresholds", "none")
    last = json.loads(Path("pieces/curve.json").read_text())["points"][1]["scores"]
    assert scores()[None] == pytest.approx(last, rel=1e-4)


def test_standing_statistics_change_the_curve_and_are_taken_anew_each_time(saved: Path) -> None:
    run(saved, "--thresholds", "0.5")
    plain = scores()[0.5]
    Path("curve").rename("plain")
    flags = ["--standing-statistics", "3", "--standing-batch-size", "16"]
    run(saved, "--thresholds", "2,0.5", *flags)
    after_another = scores()[0.5]
    assert content()["settings"]["standing_statistics"] == [3, 16]
    Path("curve").rename("standing")
    run(saved, "--thresholds", "0.5", *flags)
    assert scores()[0.5] == pytest.approx(after_another, rel=1e-4), "nothing of the threshold before remains"
    name = "classifier_score_mean"
    assert after_another[name] != pytest.approx(plain[name], rel=1e-2)


def test_other_metrics_are_drawn_as_well(saved: Path) -> None:
    run(saved, "--thresholds", "0.5,none", "--metrics", "fid,prc", "--protocol", "pytorch-fid")
    assert {"frechet_distance", "precision", "recall"} <= set(scores()[None])
    assert "pytorch-fid" in content()["protocol"] and Path("curve/curve.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "1"], "holds a curve of other settings: --seed was 0, now 1"),
        (["--num-samples", "25"], "--num-samples was 24, now 25"),
        (["--reference", "other.npz"], "--reference was"),
        (["--standing-statistics", "2"], "--standing-statistics was None, now [2, 64]"),
        (["--metrics", "fid"], "--metrics was fid,is, now fid"),
        (["--protocol", "adm"], "--protocol was None, now adm"),
        (["--input-size", "9"], "--input-size was None, now 9"),
        (["--extractor", "efficientnet-lite0"], "--extractor was tiny.py:Tiny, now efficientnet-lite0"),
        (["--weights", "other.npz"], "--weights was None, now"),
    ],
)
def test_a_curve_of_other_settings_is_refused(
    saved: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    import shutil

    np.savez("other.npz", np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    if not (saved / "curve").exists():  # made once, for all of these
        run(saved, "--thresholds", "0.5")
        shutil.copytree("curve", saved / "curve")
    else:
        shutil.copytree(saved / "curve", "curve")
    before = Path("curve/curve.json").read_bytes()
    assert message in failure(capsys, saved, "--thresholds", "0.5,1", *flags)
    assert Path("curve/curve.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--thresholds", "0.5,x"], "--thresholds takes positive numbers or none with commas between them, got 'x'"),
        (["--thresholds", "0"], "--thresholds takes positive numbers or none with commas between them, got '0'"),
        (["--thresholds", "inf"], "got 'inf'"),
        (["--thresholds", "1,1.0"], "--thresholds names 1.0 twice"),
        (["--num-samples", "1"], "--num-samples must be at least 2, got 1"),
        (["--num-samples", "x"], "--num-samples"),
        (["--seed", "-1"], "--seed must be an integer from 0 to 2^64 - 1, got -1"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--standing-statistics", "-1"], "--standing-statistics must be at least 0, got -1"),
        (["--standing-batch-size", "8"], "--standing-batch-size is the batch of --standing-statistics"),
        (["--standing-statistics", "1", "--standing-batch-size", "0"], "--standing-batch-size must be at least 1, got 0"),
        (["--reference", "nowhere"], "--reference 'nowhere' does not exist; give images or statistics"),
        (["--reference", "tiny.py"], "--reference: tiny.py is neither a folder nor a file of a known kind"),
        (["--device", "nonsense"], "--device 'nonsense' cannot be used here"),
        (["--extractor", "nonsense"], "'nonsense' is not known"),
        (["--metrics", "nonsense"], "metric 'nonsense' is not known"),
        (["--protocol", "nonsense"], "invalid choice: 'nonsense'"),
        (["--weights", "nowhere.pth"], "'nowhere.pth' does not exist or is no file"),
        (["--input-size", "0"], "input-size"),
        (["--output", "tiny.py"], "--output 'tiny.py' is a file; give a folder"),
        (["--output", "."], "is not empty and holds no curve of ours"),
        (["--threshold", "1"], "unrecognized arguments: --threshold 1"),
    ],
)
def test_wrong_flags(saved: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert message in failure(capsys, saved, *flags)
    assert not list(Path().rglob("*.png")) and not list(Path().rglob("curve.json"))
    assert not list(Path().rglob("model_index.json"))


def test_what_has_no_truncation(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import DDPMScheduler

    from generative.diffusion.networks.dit import DiT
    from pipelines import DiffusionImagePipeline

    network = DiT(sample_size=8, patch_size=4, in_channels=3, hidden_size=16, depth=1, num_heads=2, num_classes=3).eval()
    DiffusionImagePipeline(network, DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path / "dit")
    assert "holds a DiffusionImagePipeline, which has no truncation; give the run of a GAN" in failure(capsys, tmp_path / "dit")
    assert "'nowhere' does not exist; give a run folder" in failure(capsys, "nowhere")
    Path("curve").mkdir()
    Path("curve/curve.json").write_text("{")
    assert "'curve/curve.json' is damaged" in failure(capsys, saved)


@pytest.mark.slow
def test_two_processes_make_the_same_curve(tmp_path: Path) -> None:
    """With batch norm over all processes, which needs every one of them to take the standing statistics."""
    from generative.gan.sagan import SAGANGenerator
    from pipelines import GANImagePipeline

    saved = tmp_path / "cross_replica"
    torch.manual_seed(0)
    network = SAGANGenerator(8, channels=4, z_dim=4, num_classes=3, attention_resolutions=(), cross_replica=True).eval()
    GANImagePipeline(network).save_pretrained(saved)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "generative.cli.main", "truncation-curve"]
    flags = [*ARGUMENTS, "--thresholds", "0.5,none", "--standing-statistics", "2"]
    subprocess.run([sys.executable, "-m", *command, str(saved), *flags], env=environment, check=True, timeout=500)
    two = scores()
    Path("curve").rename("two")
    run(saved, "--thresholds", "0.5,none", "--standing-statistics", "2")
    for threshold in (0.5, None):
        # Two processes put twice as many values into n / (n - 1) of the moving variance.
        assert scores()[threshold] == pytest.approx(two[threshold], rel=5e-3)


def test_statistics_by_truncation_bound_the_thresholds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from generative.cli.truncation_curve import THRESHOLDS, covered_thresholds, parse_thresholds
    from generative.gan.biggan_deep import BigGANDeepGenerator
    from pipelines import GANImagePipeline

    options = {"resolution": 32, "channels": 4, "z_dim": 4, "num_classes": 3, "attention_resolutions": (), "num_statistics": 5}
    pipeline = GANImagePipeline(BigGANDeepGenerator(**options), truncation_law="scaled_truncated")
    default = parse_thresholds(THRESHOLDS)
    assert covered_thresholds(pipeline, default, True, False) == [value for value in default if value is not None and value <= 1]
    pipeline.save_pretrained(tmp_path / "deep")
    for flags, said in ((["--thresholds", "0.5,1.2"], "up to 1;"), (["--standing-statistics", "2"], "leave --standing")):
        assert main(["truncation-curve", str(tmp_path / "deep"), *ARGUMENTS, *flags]) == 2
        error = capsys.readouterr().err.splitlines()[-1]  # after the bar that loading shows
        assert error.startswith("error: ") and said in error


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["truncation-curve", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--standing-statistics 100" in out and "An interrupted command goes on" in out
    assert main(["truncation_curve", "--help"]) == 2 and "there is no command" in capsys.readouterr().err
    assert main([]) == 2 and "truncation-curve" in capsys.readouterr().out
