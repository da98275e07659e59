"""``generative sample`` and ``generative list`` from the command line."""

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
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the pipeline of a tiny GAN of 3 classes."""
    from generative.gan.sagan import SAGANGenerator
    from pipelines import GANImagePipeline

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "run"
    network = SAGANGenerator(resolution=8, channels=4, z_dim=4, num_classes=3, attention_resolutions=()).eval()
    GANImagePipeline(network).save_pretrained(folder / "pipeline")
    return folder


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline folder of a tiny DiT of 3 classes."""
    from diffusers import DDPMScheduler

    from generative.diffusion.dit import DiT
    from pipelines import DiffusionImagePipeline

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("diffusion")
    network = DiT(sample_size=8, patch_size=4, in_channels=3, hidden_size=16, depth=1, num_heads=2, num_classes=3).eval()
    DiffusionImagePipeline(network, DDPMScheduler(num_train_timesteps=20)).save_pretrained(folder)
    return folder


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["sample", *arguments]) == 2
    err = capsys.readouterr().err
    # Progress bars redraw their line before the sentence.
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in err
    return line


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))}


def test_a_folder_in_class_order(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--class-labels", "2,0", "--num-images-per-class", "3", "--seed", "4", "--truncation", "0.8", "--output", "out"]
    assert main(["sample", str(saved), *arguments]) == 0
    assert "6 images of 2 classes in 'out'" in capsys.readouterr().out
    names = [f"class-{label:04d}_image-{index:06d}.png" for label in (0, 2) for index in range(3)]
    images = pixels(Path("out"))
    assert list(images) == names
    assert all(image.shape == (8, 8, 3) and image.dtype == np.uint8 for image in images.values())
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert [entry["file"] for entry in manifest["images"]] == names
    assert manifest["settings"]["options"] == {"truncation": 0.8} and manifest["settings"]["seed"] == 4
    assert manifest["settings"]["pipeline_class"] == "GANImagePipeline"


def test_npz_holds_the_images_of_the_folder(saved: Path) -> None:
    assert main(["sample", str(saved / "pipeline"), "--num-images-per-class", "4", "--output", "out"]) == 0
    arguments = ["--num-images-per-class", "4", "--batch-size", "5", "--output", "deep/samples.npz"]
    assert main(["sample", str(saved), *arguments]) == 0
    with np.load("deep/samples.npz", allow_pickle=False) as content:
        assert content["arr_0"].shape == (12, 8, 8, 3) and content["arr_0"].dtype == np.uint8
        assert content["arr_1"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        difference = content["arr_0"].astype(int) - np.stack(list(pixels(Path("out")).values())).astype(int)
    assert np.abs(difference).max() <= 1


def test_an_image_does_not_depend_on_what_is_asked_for_beside_it(saved: Path) -> None:
    assert main(["sample", str(saved), "--num-images-per-class", "5", "--output", "all"]) == 0
    assert (
        main(["sample", str(saved), "--class-labels", "1", "--batch-size", "2", "--num-images-per-class", "3", "--output", "one"])
        == 0
    )
    everything, one = pixels(Path("all")), pixels(Path("one"))
    assert len(one) == 3
    for name, image in one.items():
        assert np.abs(image.astype(int) - everything[name].astype(int)).max() <= 1


def test_an_interrupted_run_goes_on(saved: Path) -> None:
    arguments = ["sample", str(saved), "--num-images-per-class", "2", "--output", "out"]
    assert main(arguments) == 0
    before = pixels(Path("out"))
    kept = Path("out/class-0001_image-000000.png")
    Path("out/class-0000_image-000001.png").unlink()
    stamp = kept.stat().st_mtime_ns
    assert main(arguments) == 0
    assert kept.stat().st_mtime_ns == stamp
    after = pixels(Path("out"))
    assert list(after) == list(before)
    assert all(np.abs(after[name].astype(int) - before[name].astype(int)).max() <= 1 for name in before)
    assert main(["sample", str(saved), "--num-images-per-class", "3", "--output", "out"]) == 0
    assert len(pixels(Path("out"))) == len(json.loads(Path("out/manifest.json").read_text())["images"]) == 9


def test_other_settings_into_the_same_folder_are_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(saved), "--num-images-per-class", "1", "--output", "out"]) == 0
    before = pixels(Path("out"))
    for change in (["--seed", "1"], ["--truncation", "0.5"]):
        assert "holds samples of other settings" in failure(capsys, str(saved), "--output", "out", *change)
    assert pixels(Path("out")).keys() == before.keys()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--guidance-scale", "2"], "GANImagePipeline has no use for --guidance-scale; it takes --truncation"),
        (["--num-inference-steps", "5"], "GANImagePipeline has no use for --num-inference-steps"),
        (["--top-k", "5"], "has no use for --top-k"),
        (["--class-labels", "3"], "class label 3 is outside 0..2; this pipeline has 3 classes"),
        (["--class-labels=-1"], "class label -1 is outside 0..2"),
        (["--class-labels", "1,x"], "--class-labels takes integers with commas between them or `all`, got '1,x'"),
        (["--class-labels", "1,1"], "names a class twice in '1,1'; use --num-images-per-class"),
        (["--class-labels", ""], "--class-labels takes integers"),
        (["--num-images-per-class", "0"], "--num-images-per-class must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--truncation", "-1"], "truncation"),
        (["--truncation", "x"], "--truncation"),
        (["--device", "nonsense"], "--device 'nonsense' cannot be used here"),
        (["--device", "cuda:77"], "--device 'cuda:77' cannot be used here"),
        (["--output", "taken.txt"], "output 'taken.txt' is a file"),
        (["--output", "taken"], "is not empty and holds no samples of ours"),
        (["--output", "folder.npz"], "output 'folder.npz' is a folder"),
        (["--guidance", "2"], "unrecognized arguments: --guidance 2"),
    ],
)
def test_wrong_flags(saved: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    Path("taken.txt").write_text("precious")
    Path("taken").mkdir()
    Path("taken/file").write_text("precious")
    Path("folder.npz").mkdir()
    assert message in failure(capsys, str(saved), *flags)
    assert Path("taken.txt").read_text() == Path("taken/file").read_text() == "precious"
    assert not list(Path().rglob("*.png"))
    assert main(["sample", str(saved), "--class-labels", "0", "--num-images-per-class", "1"]) == 0, "no mistake locks a folder"


def test_flags_of_diffusion(diffusion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(diffusion), "--class-labels", "1", "--num-images-per-class", "2", "--num-inference-steps", "3"]
    assert main(["sample", *arguments, "--guidance-scale", "2", "--output", "out"]) == 0
    assert len(pixels(Path("out"))) == 2
    for flags, name in ((["--truncation", "1"], "--truncation"), (["--temperature", "1"], "--temperature")):
        assert f"DiffusionImagePipeline has no use for {name}; it takes --guidance-scale" in failure(
            capsys, str(diffusion), *flags
        )
    assert "--guidance-interval" in failure(capsys, str(diffusion), "--guidance-interval", "0.1")


def test_folders_that_hold_no_pipeline(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'nowhere' does not exist; give a run folder" in failure(capsys, "nowhere")
    Path("empty").mkdir()
    assert "'empty' holds no pipeline" in failure(capsys, "empty")
    index = json.loads((saved / "pipeline" / "model_index.json").read_text())
    for content, message in (
        ("{", "is damaged"),
        (json.dumps({**index, "_class_name": "StableDiffusionPipeline"}), "holds a StableDiffusionPipeline; this project loads"),
        (json.dumps({**index, "generator": ["evil_module", "Net"]}), "asks for component 'generator' of library 'evil_module'"),
    ):
        Path("empty/model_index.json").write_text(content)
        assert message in failure(capsys, "empty")


def test_a_truncated_pipeline(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(saved, "copy")
    path = Path("copy/pipeline/generator/diffusion_pytorch_model.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    assert "pipeline 'copy/pipeline' cannot be loaded, a file of it is missing or damaged" in failure(capsys, "copy")
    path.unlink()
    assert "cannot be loaded, a file of it is missing or damaged" in failure(capsys, "copy")


@pytest.mark.slow
def test_two_processes_sample_the_same_images(saved: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    for output in ("two", "two.npz"):
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "generative.cli.main", "sample"]
        subprocess.run(
            [sys.executable, "-m", *command, str(saved), "--num-images-per-class", "3", "--output", output],
            env=environment,
            check=True,
            timeout=500,
        )
    assert main(["sample", str(saved), "--num-images-per-class", "3", "--output", "one"]) == 0
    one, two = pixels(Path("one")), pixels(Path("two"))
    assert list(one) == list(two)
    with np.load("two.npz") as content:
        for ours, theirs, array in zip(one.values(), two.values(), content["arr_0"], strict=True):
            assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
            assert np.abs(ours.astype(int) - array.astype(int)).max() <= 1


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("models:", "gan.sagan.SAGANGenerator", "diffusion.dit.DiT", "pipelines:", "GANImagePipeline", "digits/dit"):
        assert name in out
    for name in (
        "datasets:",
        "digits.DigitsDataset",
        "schedulers:",
        "DDIMScheduler",
        "metrics:",
        "extractors:",
        "efficientnet-lite0",
    ):
        assert name in out
    assert main(["list", "pipelines"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pipelines:") and "metrics:" not in out
    assert main(["list", "nothing"]) == 2
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
