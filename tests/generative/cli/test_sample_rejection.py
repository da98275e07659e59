"""``generative sample`` with rejection: what is written, resumed, recorded, and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generative.cli.main import main

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def classifier_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from metrics.extractors.resnet9 import ResNet9Network, save_resnet9

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_resnet9(path, ResNet9Network(3, width=4), {"input_size": 16})
    return path


def flags(classifier_weights: Path, keep: str = "0.25") -> list[str]:
    return ["--rejection-extractor", "resnet9", "--rejection-weights", str(classifier_weights), "--rejection-keep", keep]


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted(folder.glob("*.png"))}


def test_the_best_are_written_and_the_settings_recorded(
    saved: Path, classifier_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from generative.core.rejection import ClassifierJudge, choose_best

    assert main(["sample", str(saved), "--num-images-per-class", "8", "--output", "pool"]) == 0
    capsys.readouterr()
    assert main(["sample", str(saved), "--num-images-per-class", "2", "--output", "out", *flags(classifier_weights)]) == 0
    captured = capsys.readouterr()
    assert "6 images of 3 classes in 'out'" in captured.out
    warning = [line for line in captured.err.splitlines() if line.startswith("warning: ")]
    assert len(warning) == 1 and "on that same network would flatter the generator" in warning[0]
    settings = json.loads(Path("out/manifest.json").read_text())["settings"]["rejection"]
    assert settings["extractor"] == "resnet9" and settings["keep"] == 0.25 and settings["num_images_per_class"] == 2
    assert len(settings["weights_sha256"]) == 64
    pool, out = pixels(Path("pool")), pixels(Path("out"))
    classifier = ClassifierJudge("resnet9", classifier_weights, 3)
    for label in range(3):
        images = [pool[f"class-{label:04d}_image-{index:06d}.png"] for index in range(8)]
        batch = torch.from_numpy(np.stack(images)).to(torch.uint8).permute(0, 3, 1, 2)
        for rank, index in enumerate(choose_best(classifier.log_probabilities(batch, [label] * 8).tolist(), 2)):
            assert np.abs(out[f"class-{label:04d}_image-{rank:06d}.png"] - images[index]).max() <= 1


def test_an_interrupted_run_goes_on_and_other_settings_are_refused(
    saved: Path, classifier_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sample", str(saved), "--num-images-per-class", "2", "--output", "out"]
    assert main([*arguments, *flags(classifier_weights)]) == 0
    before = pixels(Path("out"))
    Path("out/class-0001_image-000001.png").unlink()
    assert main([*arguments, *flags(classifier_weights)]) == 0
    after = pixels(Path("out"))
    assert list(after) == list(before) and all(np.abs(after[name] - before[name]).max() <= 1 for name in before)
    more = ["sample", str(saved), "--num-images-per-class", "3", "--output", "out"]
    for other in ([*arguments, *flags(classifier_weights, "0.5")], [*more, *flags(classifier_weights)], arguments):
        assert main(other) == 2
        assert "holds samples of other settings" in capsys.readouterr().err


def test_npz_holds_the_images_of_the_folder(saved: Path, classifier_weights: Path) -> None:
    common = ["sample", str(saved), "--num-images-per-class", "2", *flags(classifier_weights)]
    assert main([*common, "--output", "out"]) == 0
    assert main([*common, "--batch-size", "5", "--output", "out.npz"]) == 0
    with np.load("out.npz", allow_pickle=False) as content:
        assert content["arr_1"].tolist() == [0, 0, 1, 1, 2, 2]
        assert np.abs(content["arr_0"].astype(int) - np.stack(list(pixels(Path("out")).values()))).max() <= 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--rejection-keep", "0.5"], "--rejection-keep describes a rejection; add --rejection-extractor"),
        (["--rejection-weights", "x"], "--rejection-weights describes a rejection; add --rejection-extractor"),
        (["--rejection-extractor", "resnet9"], "rejection: resnet9 has no weights of its own"),
        (["--rejection-extractor", "nonsense"], "rejection: extractor 'nonsense' is not known"),
        (["--rejection-extractor", "resnet9", "--rejection-keep", "0"], "rejection keeps must be in (0, 1], got 0.0"),
        (["--rejection-extractor", "resnet9", "--interpolate", "latent"], "has no use for --interpolate"),
    ],
)
def test_wrong_flags(saved: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str) -> None:
    assert main(["sample", str(saved), *given]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not list(Path().rglob("*.png"))


@pytest.mark.slow
def test_two_processes_keep_the_same_images(saved: Path, classifier_weights: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    common = [str(saved), "--num-images-per-class", "3", *flags(classifier_weights)]
    for output in ("two", "two.npz"):
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "generative.cli.main", "sample"]
        subprocess.run([sys.executable, "-m", *command, *common, "--output", output], env=environment, check=True, timeout=500)
    assert main(["sample", *common, "--output", "one"]) == 0
    one, two = pixels(Path("one")), pixels(Path("two"))
    assert list(one) == list(two)
    with np.load("two.npz") as content:
        for ours, theirs, array in zip(one.values(), two.values(), content["arr_0"], strict=True):
            assert np.abs(ours - theirs).max() <= 1 and np.abs(ours - array).max() <= 1
