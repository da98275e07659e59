"""``generative posthoc-ema`` from the command line, on a DiT of a few weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from generative.cli.main import main
from generative.core.weights import load_network
from pipelines import load_pipeline

POWER = [{"class_path": "generative.core.ema.PowerEMA", "init_args": {"std": std}} for std in (0.05, 0.1)]
TINY = {"hidden_size": 8, "depth": 1, "num_heads": 1, "patch_size": 4}
SHORT = {
    "batch_size": 8,
    "total_images": 128,
    "grid_images_per_class": 1,
    "lr_schedule": "null",
    "progress": "false",
    "sample_interval_steps": "null",
    "evaluate_interval_steps": "null",
    "checkpoint_interval_steps": "null",
    "ema_snapshot_interval_images": 8,
    "ema_snapshot_dtype": "float32",
}
EVALUATION = {"num_samples": 20, "batch_size": 20, "classifier_data": "null", "input_size": 32, "metrics": '["frechet"]'}


def overrides(output: str) -> list[str]:
    flags = [f"--objective.init_args.denoiser.init_args.{name}={value}" for name, value in TINY.items()]
    flags += [f"--trainer.{name}={value}" for name, value in {**SHORT, "output_dir": output}.items()]
    flags += [f"--evaluation.init_args.{name}={value}" for name, value in EVALUATION.items()]
    return [*flags, "--objective.init_args.ema", json.dumps(POWER), "--objective.init_args.sampling.num_inference_steps=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 16 steps with two power averages and a snapshot of each at every step."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "digits/dit", *overrides(str(folder))]) == 0
    return folder


@pytest.fixture
def run(trained: Path) -> Path:
    """A copy of the run, in the test's folder."""
    shutil.copytree(trained, "run")
    return Path("run")


@pytest.fixture
def reference() -> str:
    np.savez("real.npz", np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    return "real.npz"


def failure(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    assert main(["posthoc-ema", *flags]) == 2
    err = capsys.readouterr().err
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in err
    return line


def test_a_length_as_a_pipeline(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stored one is itself, another lies where it should; any command takes the folder."""
    assert main(["posthoc-ema", str(run), "--std", "0.1"]) == 0
    assert "holds the pipeline of the average of std 0.1 at 128 images, made of 32 snapshots" in capsys.readouterr().out
    stored = load_network(run, "denoiser-std-0.1")[0].state_dict()
    made = load_pipeline(run / "posthoc-ema/std-0.1").denoiser.state_dict()
    assert made.keys() == stored.keys() and all(torch.equal(made[key], value) for key, value in stored.items())

    assert main(["posthoc-ema", str(run), "--std", "0.07", "--output", "between"]) == 0
    first, between = load_network(run)[0].state_dict(), load_network("between", "denoiser")[0].state_dict()
    key = "final_layer.linear.weight"
    assert torch.dist(between[key], first[key]) < torch.dist(stored[key], first[key])
    facts = json.loads(Path("between/posthoc_ema.json").read_text())
    assert sum(facts["coefficients"].values()) == pytest.approx(1) and facts["profile_error"] < 0.1

    assert main(["posthoc-ema", str(run), "--std", "0.05", "--images", "64"]) == 0
    earlier = load_file(run / "ema-snapshots/denoiser/000000000064.safetensors")
    pipeline = load_pipeline(run / "posthoc-ema/std-0.05-images-64")
    assert torch.equal(pipeline.denoiser.state_dict()[key], earlier[key])
    assert main(["sample", "between", "--class-labels", "0", "--num-images-per-class", "1", "--output", "samples"]) == 0


def test_a_sweep_goes_on_where_it_was_stopped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored by the run's own evaluation; killed after a point, more lengths later, the picture lost."""
    from generative.core.evaluation import Evaluation, Evaluator

    whole, scored = Evaluator.evaluate, []

    def interrupted(self: Evaluator, pipeline: object, *arguments: object, **options: object) -> object:
        scored.append(pipeline)
        if len(scored) == 2:
            raise KeyboardInterrupt
        if len(scored) == 5:  # the others are too slow for what they would show
            return whole(self, pipeline, *arguments, **options)
        weight = pipeline.denoiser.state_dict()["final_layer.linear.weight"]
        return Evaluation({"frechet_distance": float(weight.norm()), "precision": 0.5}, {})

    monkeypatch.setattr(Evaluator, "evaluate", interrupted)
    command = ["posthoc-ema", str(run), "--output", "sweep", "--seed", "3"]
    assert main([*command, "--sweep", "0.05..0.2", "--num", "3"]) == 130
    first = json.loads(Path("sweep/posthoc-ema.json").read_text())["points"]
    assert [point["std"] for point in first] == [0.05] and Path("sweep/posthoc-ema.png").exists()
    assert main([*command, "--sweep", "0.05..0.2", "--num", "3"]) == 0
    content = json.loads(Path("sweep/posthoc-ema.json").read_text())
    assert [point["std"] for point in content["points"]] == [0.05, 0.1, 0.2] and content["points"][0] == first[0]
    assert len(scored) == 4 and content["settings"]["seed"] == 3 and content["settings"]["num_samples"] == 20
    best = min(content["points"], key=lambda point: point["scores"]["frechet_distance"])
    assert content["best"] == {"std": best["std"], "frechet_distance": best["scores"]["frechet_distance"]}
    assert main(["posthoc-ema", str(run), "--std", str(best["std"]), "--output", "alone"]) == 0
    assert load_network("sweep/pipeline", "denoiser")[1] == load_network("alone", "denoiser")[1]
    with Image.open("sweep/posthoc-ema.png") as picture:
        assert picture.format == "PNG" and picture.width > 800
    assert Path("sweep/posthoc-ema.csv").read_text().startswith("std,num_samples,frechet_distance")
    # Nothing is scored twice, and further lengths can be added.
    Path("sweep/posthoc-ema.png").unlink()
    assert main([*command, "--sweep", "0.2,0.15,0.05"]) == 0
    assert len(scored) == 5 and Path("sweep/posthoc-ema.png").exists()


def test_a_sweep_against_a_reference(run: Path, reference: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--reference", reference, "--extractor", "efficientnet-lite0", "--input-size", "32", "--num-samples", "20"]
    command = ["posthoc-ema", str(run), "--sweep", "0.05,0.1", *flags]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "least frechet_distance" in out and "from 32 snapshots of std 0.05, 0.1" in out
    assert "protocol" in out and "holds posthoc-ema.json" in out
    assert not (run / "posthoc-ema/sweep/.sampling").exists()
    assert "--num-samples was 20, now 21" in failure(capsys, *command[1:], "--num-samples", "21")
    (run / "ema-snapshots/denoiser/000000000064.safetensors").unlink()
    assert "curve of other settings: the snapshots was" in failure(capsys, *command[1:])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either --std S, for one average, or --sweep A..B"),
        (["--std", "0.1", "--sweep", "0.1"], "give either --std S"),
        (["--std", "0.3"], "must be above 0 and below 0.2887, got 0.3"),
        (["--std", "0.001"], "32 EMA snapshots cannot tell an average of std 0.001 at 128 images"),
        (["--sweep", "0.001..0.2"], "32 EMA snapshots cannot tell an average of std 0.001 at 128 images"),
        (["--std", "0.1", "--images", "129"], "--images must be in 1..128, the images of the last EMA snapshot, got 129"),
        (["--std", "0.1", "--network", "generator"], "holds no EMA snapshots of a network 'generator'; it has denoiser"),
        (["--std", "0.1", "--seed", "1"], "--seed is of a sweep"),
        (["--std", "0.1", "--output", "real.npz"], "--output 'real.npz' is a file; give a folder"),
        (["--std", "0.1", "--output", "."], "is not empty and holds no average of ours"),
        (["--sweep", "0.1", "--output", "."], "is not empty and holds no curve of ours"),
        (["--sweep", "0.1", "--num", "3"], "--num counts the lengths of a range"),
        (["--sweep", "x"], "--sweep takes a range such as 0.02..0.25"),
        (["--sweep", "0.1", "--metrics", "kid"], "--metrics describes scores against --reference"),
        (["--sweep", "0.1", "--num-samples", "1"], "--num-samples must be at least 2, got 1"),
        (["--sweep", "0.1", "--reference", "nowhere"], "--reference 'nowhere' does not exist"),
    ],
)
def test_wrong_flags(
    trained: Path,
    reference: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
) -> None:
    """Before any network runs."""
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *arguments: pytest.fail("a network ran"))
    assert message in failure(capsys, str(trained), *flags)
    assert not (trained / "posthoc-ema").exists()


def test_runs_that_have_none(trained: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'nowhere' does not exist; give a run" in failure(capsys, "nowhere", "--std", "0.1")
    assert "holds no EMA snapshots" in failure(capsys, str(trained / "pipeline"), "--std", "0.1")
    (run / "config.yaml").unlink()
    assert "holds no config.yaml, whose evaluation would score; give --reference" in failure(capsys, str(run), "--sweep", "0.1")
    next((run / "ema-snapshots").rglob("*.safetensors")).write_bytes(b"x")
    assert "is damaged or no EMA snapshot" in failure(capsys, str(run), "--std", "0.1")
    wrong = json.dumps([{**POWER[0], "init_args": {"std": 0.5}}])
    assert main(["train", "digits/dit", *overrides("wrong"), "--objective.init_args.ema", wrong]) == 2
    assert "error: the std of a power-function average must be above 0 and below 0.2887" in capsys.readouterr().err
    without = [flag for flag in overrides("plain") if "ema" not in flag and flag != json.dumps(POWER)]
    assert main(["train", "digits/dit", *without, "--trainer.ema_snapshot_interval_images=8"]) == 2
    assert "keeps power-function averages, and this run has none" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["posthoc-ema", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--sweep 0.02..0.25" in out and "report it with another --seed" in out
