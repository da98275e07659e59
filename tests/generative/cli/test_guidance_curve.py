"""``generative guidance-curve`` from the command line, on a DiT and with a feature network of a few weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_extractor import EXTRACTOR
from tiny_pipelines import save_tiny_dit

from generative.cli.guidance_curves import Curve, parse_guides, parse_scales
from generative.cli.main import main
from generative.core.errors import UserError
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.adm_classifier import ADMClassifier
from pipelines.diffusion import DiffusionImagePipeline

ARGUMENTS = ["--extractor", "tiny.py:Tiny", "--num-samples", "12", "--num-inference-steps", "2", "--output", "curve"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines of a DiT, of a weaker one, of the DiT with a guide of its own, and a classifier's network."""
    place = tmp_path_factory.mktemp("folders")
    made = {name: save_tiny_dit(place / name, seed, sample_size=8) for seed, name in enumerate(("base", "weaker", "worst"))}
    pipeline = DiffusionImagePipeline.from_pretrained(made["base"])
    pipeline.guide = DiffusionImagePipeline.from_pretrained(made["worst"]).denoiser
    pipeline.save_pretrained(place / "sims")
    torch.manual_seed(0)
    classifier = ADMClassifier(
        sample_size=8,
        num_classes=3,
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        pool="adaptive",
        num_head_channels=32,
    )
    torch.nn.init.normal_(classifier.head.weight, std=1.0)
    classifier.save_pretrained(place / "classifier")
    return made | {name: place / name for name in ("sims", "classifier")}


@pytest.fixture(autouse=True)
def inputs(own_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real images that score and others that choose, a feature network, and a cache of features of the test's own."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    Path("tiny.py").write_text(EXTRACTOR)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for name, part in (("real", images[:20]), ("other", images[20:]), ("mixed", images[10:30])):
        np.savez(f"{name}.npz", part)


def run(folder: Path, *flags: str) -> dict[str, Any]:
    assert main(["guidance-curve", str(folder), "--reference", "real.npz", *ARGUMENTS, *flags]) == 0
    content: dict[str, Any] = json.loads(Path("curve/guidance.json").read_text())
    return content


def failure(capsys: pytest.CaptureFixture[str], folder: Path | str, *flags: str) -> str:
    capsys.readouterr()
    assert main(["guidance-curve", str(folder), "--reference", "real.npz", *ARGUMENTS, *flags]) == 2
    err = capsys.readouterr().err
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in err
    return line


def scores(content: dict[str, Any]) -> dict[tuple[str, float, str], dict[str, float]]:
    return {(point["curve"], point["scale"], point["role"]): point["scores"] for point in content["points"]}


def test_all_curves_in_one_picture_and_further_ones_later(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--interval", "0.2,0.8", "--classifier", str(folders["classifier"]), "--guide", str(folders["weaker"])]
    content = run(folders["base"], "--scales", "1,3", *flags)
    before = Path("curve/guidance.png").read_bytes()
    curves = ["classifier-free", "interval", "classifier", "autoguidance"]
    assert list(content["curves"]) == curves
    found = scores(content)
    assert set(found) == {(curve, scale, "scoring") for curve in curves for scale in (1, 3)}
    assert {"frechet_distance", "precision", "recall"} <= set(found["interval", 3, "scoring"])
    unguided = [found[curve, 1, "scoring"] for curve in curves]
    assert all(each == unguided[0] for each in unguided), "without guidance all are one"
    guided = [found[curve, 3, "scoring"]["frechet_distance"] for curve in curves]
    assert len(set(guided)) == len(guided)
    out = capsys.readouterr().out
    assert out.count("(scoring): ") == 5, "the unguided point is scored once"
    assert "least frechet_distance at scale" in out and "12 samples a point; 2 steps; network tiny.py:Tiny" in out
    rows = list(csv.DictReader(Path("curve/guidance.csv").open()))
    assert len(rows) == 8 and float(rows[-1]["frechet_distance"]) == guided[-1]
    with Image.open("curve/guidance.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
    assert sorted(path.name for path in Path("curve").iterdir()) == ["guidance.csv", "guidance.json", "guidance.png"]
    # A guided pipeline's folder stands for its guide, and what is there is not scored again.
    content = run(folders["base"], "--scales", "1,3", *flags, "--guide", f"sims={folders['sims']}")
    assert capsys.readouterr().out.count("(scoring): ") == 1 and scores(content).items() >= found.items()
    assert Path("curve/guidance.png").read_bytes() != before
    other = failure(capsys, folders["base"], "--guide", str(folders["worst"]))
    assert "holds a curve 'autoguidance' of another network or interval" in other


def test_a_point_is_what_sample_and_fid_score_make(folders: dict[str, Path]) -> None:
    from metrics import score

    content = run(folders["base"], "--scales", "2", "--guide", f"weak={folders['weaker']}", "--curves", "weak", "--seed", "3")
    flags = ["--guide", str(folders["weaker"]), "--guide-scale", "2", "--seed", "3", "--num-images-per-class", "4"]
    assert main(["sample", str(folders["base"]), *flags, "--num-inference-steps", "2", "--output", "samples.npz"]) == 0
    expected = score("samples.npz", "real.npz", metrics="fid,prc", extractor="tiny.py:Tiny")["scores"]
    assert scores(content)["weak", 2, "scoring"] == pytest.approx(expected, rel=1e-3)


def test_scales_are_chosen_by_other_images_and_seeds(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--scales", "1,2,4", "--metrics", "fid", "--selection-reference", "other.npz", "--selection-seed", "7"]
    content = run(folders["base"], *flags)
    found, chosen = scores(content), content["chosen"]["classifier-free"]
    swept = {scale: found["classifier-free", scale, "selection"]["frechet_distance"] for scale in (1, 2, 4)}
    assert chosen["scale"] == min(swept, key=lambda scale: swept[scale]) and chosen["by"] == "frechet_distance"
    assert chosen["scores"] == found["classifier-free", chosen["scale"], "scoring"] and len(found) == 4
    assert "there, by the images that score: frechet_distance" in capsys.readouterr().out
    assert content["settings"]["seed"] == 0 and content["settings"]["selection_seed"] == 7


def test_an_interrupted_sweep_goes_on(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import metrics.scoring

    whole, scored = metrics.scoring.score, []

    def interrupted(samples: Path, *args: object, **options: object) -> dict:
        scored.append(samples.name)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return whole(samples, *args, **options)

    monkeypatch.setattr("metrics.score", interrupted, raising=False)
    flags = ["--scales", "1,2,3", "--metrics", "fid"]
    assert main(["guidance-curve", str(folders["base"]), "--reference", "real.npz", *ARGUMENTS, *flags]) == 130
    content = run(folders["base"], *flags)
    assert scored == [f"classifier-free-{scale}" for scale in (1, 2, 2, 3)] and len(content["points"]) == 3
    assert not Path("curve/.sampling").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scales", "0.5,1"], "--scales takes numbers of 1 or more with commas between them, got '0.5'; 1 is no guidance"),
        (["--scales", "2,2"], "--scales names 2 twice"),
        (["--interval", "0.5,1.5"], "--interval must be two numbers with 0 <= low < high <= 1, got '0.5,1.5'"),
        (["--guidance-scale", "2"], "--guidance-scale is what the curves vary; give --scales"),
        (["--curves", "classifier"], "there is no 'classifier' here; with these networks there are classifier-free"),
        (["--guide", "a=x", "--guide", "a=y"], "there are two curves called 'a'"),
        (["--guide", "nowhere"], "'nowhere' does not exist"),
        (["--guide", "{narrow}"], "the guide takes 3 channels of 4x4, the denoiser 3 of 8x8"),
        (["--classifier", "{classifier}", "--num-inference-steps", "0"], "num_inference_steps must be at least 1, got 0"),
        (["--selection-seed", "3"], "add --selection-reference"),
        (["--selection-reference", "other.npz", "--selection-seed", "0"], "--selection-seed and --seed are both 0"),
        (["--selection-reference", "real.npz"], "holds the images of --reference; choose scales by others"),
        (["--selection-reference", "mixed.npz"], "shares 10 images with --reference"),
    ],
)
def test_flags_that_cannot_be_are_refused(
    flags: list[str], message: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = save_tiny_dit(tmp_path / "narrow")
    assert message in failure(capsys, folders["base"], *(flag.format(narrow=narrow, **folders) for flag in flags))
    assert not Path("curve").exists()


def test_what_cannot_be_guided_is_refused(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds a GANImagePipeline, and guidance-curve is for diffusions and flows" in failure(capsys, saved)
    plain = save_tiny_dit(tmp_path / "plain", formulation=Interpolant(), class_dropout_prob=0.0)
    assert "nothing guides this pipeline: it has no null condition" in failure(capsys, plain)
    assert "the denoiser has no null condition; leave it out" in failure(capsys, plain, "--interval", "0.2,0.8")


def test_a_classifiers_scale_is_one_less() -> None:
    assert Curve("c", "classifier_scale").at(3.0)["classifier_scale"] == 2.0
    assert Curve("g", "guide_scale").at(3.0)["guide_scale"] == 3.0
    assert Curve("i", "guidance_scale", {"guidance_interval": (0.2, 0.8)}).at(1.0)["guidance_interval"] is None


def test_guides_are_named_by_what_stands_before_the_equals_sign() -> None:
    assert parse_guides(["runs/a=b/c", "sims=x"]) == {"autoguidance": Path("runs/a=b/c"), "sims": Path("x")}
    assert parse_scales("1, 2.5") == [1.0, 2.5]
    with pytest.raises(UserError, match="--guide takes RUN_OR_FOLDER or NAME=RUN_OR_FOLDER, got '=x'"):
        parse_guides(["=x"])
