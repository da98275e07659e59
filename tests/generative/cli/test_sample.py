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
from generative.core.logging import ROW_NAMES_WIDTH
from pipelines import load_pipeline

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline folder of a tiny DiT of 3 classes."""
    from diffusers import DDPMScheduler

    from generative.diffusion.networks.dit import DiT
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
        (["--class-labels", "1,x"], "class label 'x' is a name, and the pipeline keeps no class names; give numbers in 0..2"),
        (["--class-labels", "1,1"], "names a class twice in '1,1'; use --num-images-per-class"),
        (["--class-labels", ""], "--class-labels takes class numbers or names with commas between them, or `all`, got ''"),
        (["--class-labels", "1,,2"], "--class-labels takes class numbers or names"),
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
        assert (
            f"DiffusionImagePipeline has no use for {name}; it takes --num-inference-steps, --size, --guidance-scale"
            in failure(capsys, str(diffusion), *flags)
        )
    assert "--guidance-interval" in failure(capsys, str(diffusion), "--guidance-interval", "0.1")


def test_another_sampler_and_its_evaluations(diffusion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sample", str(diffusion), "--class-labels", "1", "--num-images-per-class", "2", "--num-inference-steps", "3"]
    told = {}
    for sampler in ("none", "heun", "dpm-solver:order=2", "UniPCMultistepScheduler"):
        assert main([*arguments, "--sampler", sampler, "--output", sampler.replace(":", "-")]) == 0
        told[sampler] = capsys.readouterr().out.splitlines()[-1].removeprefix("evaluations of the denoiser per image: ")
    assert told == {"none": "3", "heun": "5", "dpm-solver:order=2": "3", "UniPCMultistepScheduler": "3"}
    plain, heun = (np.stack(list(pixels(Path(name)).values())) for name in ("none", "heun"))
    assert not np.array_equal(plain, heun)
    assert "there is no sampler named 'eular'" in failure(capsys, str(diffusion), "--sampler", "eular")
    assert "has no option eta (eta is noise within the steps" in failure(capsys, str(diffusion), "--sampler", "heun:eta=1")
    assert "holds samples of other settings" in failure(capsys, *arguments[1:], "--sampler", "heun", "--output", "none")


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


def grid_tiles(path: Path, columns: int, tile: int = 64) -> np.ndarray:
    """Tiles (rows, columns, tile, tile, 3) of a grid with lines of 2 px."""
    pixels = np.asarray(Image.open(path))
    rows = (pixels.shape[0] - 2) // (tile + 2)
    assert pixels.shape == (2 + rows * (tile + 2), 2 + columns * (tile + 2), 3)
    starts = [[(2 + r * (tile + 2), 2 + c * (tile + 2)) for c in range(columns)] for r in range(rows)]
    return np.stack([np.stack([pixels[y : y + tile, x : x + tile] for y, x in row]) for row in starts])


def test_latent_interpolations_as_a_grid(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interpolations lead from image n to image n + 1 of plain sampling with the same seed and options."""
    common = ["--class-labels", "2,0", "--seed", "4", "--truncation", "0.8"]
    assert main(["sample", str(saved), *common, "--num-images-per-class", "3", "--output", "plain"]) == 0
    arguments = ["--interpolate", "latent", "--frames", "5", "--num-images-per-class", "2", "--batch-size", "3"]
    assert main(["sample", str(saved), *common, *arguments]) == 0
    assert "4 interpolations of 5 frames in 'interpolation.png'" in capsys.readouterr().out
    tiles = grid_tiles(Path("interpolation.png"), 5)[:, :, ::8, ::8].astype(int)
    plain = pixels(Path("plain"))
    for row, (label, index) in enumerate([(0, 0), (0, 1), (2, 0), (2, 1)]):
        for column, number in ((0, index), (4, index + 1)):
            expected = plain[f"class-{label:04d}_image-{number:06d}.png"].astype(int)
            assert np.abs(tiles[row, column] - expected).max() <= 1
    before = Path("interpolation.png").read_bytes()
    assert main(["sample", str(saved), *common, *arguments, "--path", "linear", "--output", "linear.png"]) == 0
    assert main(["sample", str(saved), *common, *arguments]) == 0
    assert Path("interpolation.png").read_bytes() == before, "the same seed, the same interpolation"
    assert Path("linear.png").read_bytes() != before


def test_class_interpolations_go_in_the_order_given(saved: Path) -> None:
    common = ["--num-images-per-class", "1", "--seed", "4"]
    assert main(["sample", str(saved), *common, "--output", "plain"]) == 0
    arguments = ["--interpolate", "class", "--class-labels", "2,0,1", "--frames", "3", "--output", "frames"]
    assert main(["sample", str(saved), *common, *arguments]) == 0
    frames = pixels(Path("frames"))
    assert list(frames) == [f"row-{row:04d}_frame-{frame:04d}.png" for row in range(2) for frame in range(3)]
    for row, label in enumerate((2, 0)):
        expected = pixels(Path("plain"))[f"class-{label:04d}_image-000000.png"].astype(int)
        assert np.abs(frames[f"row-{row:04d}_frame-0000.png"].astype(int) - expected).max() <= 1
    assert not list(Path().glob(".*partial"))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_interpolations_as_an_animation(saved: Path, suffix: str) -> None:
    arguments = ["--interpolate", "latent", "--frames", "4", "--fps", "10", "--loop", "--output", f"deep/latents{suffix}"]
    assert main(["sample", str(saved), *arguments]) == 0
    assert [path.name for path in Path("deep").iterdir()] == [f"latents{suffix}"]
    with Image.open(f"deep/latents{suffix}") as animation:
        # Three rows play side by side, forth and back: 0 1 2 3 2 1.
        assert animation.size == (2 + 2 * 66, 2 + 2 * 66) and animation.n_frames == 6
        pictures = []
        for number in range(6):
            animation.seek(number)
            pictures.append(np.asarray(animation.convert("RGB")).astype(int))
        assert animation.info["duration"] == 100 and animation.info.get("loop") == 0
    # A GIF has 256 colours to a frame.
    tolerance = 24 if suffix == ".gif" else 0
    for number, mirrored in ((1, 5), (2, 4)):
        assert np.abs(pictures[number] - pictures[mirrored]).max() <= tolerance
    assert np.abs(pictures[0] - pictures[3]).max() > 40
    assert main(["sample", str(saved), "--interpolate", "latent", "--output", f"whole{suffix}"]) == 0
    with Image.open(f"whole{suffix}") as animation:
        assert animation.n_frames == 24


def test_families_that_cannot_interpolate(diffusion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "DiffusionImagePipeline cannot interpolate, only a GAN's pipeline can; leave --interpolate out"
    assert message in failure(capsys, str(diffusion), "--interpolate", "latent")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--interpolate", "noise"], "--interpolate: invalid choice: 'noise'"),
        (["--interpolate", "latent", "--frames", "1"], "--frames must be at least 2, the two ends of an interpolation, got 1"),
        (["--interpolate", "latent", "--path", "curved"], "--path: invalid choice: 'curved'"),
        (["--interpolate", "class", "--path", "linear"], "--path is the way from noise to noise"),
        (["--interpolate", "class", "--class-labels", "1"], "goes from class to class: name two or more"),
        (["--interpolate", "class", "--class-labels", "1,7"], "class label 7 is outside 0..2"),
        (["--interpolate", "class", "--class-labels", "1,1"], "names a class twice"),
        (["--interpolate", "latent", "--fps", "0", "--output", "a.gif"], "--fps must be above 0 and at most 50, got 0"),
        (["--interpolate", "latent", "--fps", "nan", "--output", "a.gif"], "--fps must be above 0 and at most 50, got nan"),
        (["--interpolate", "latent", "--fps", "5"], "--fps is for animations, and 'interpolation.png' is none"),
        (["--interpolate", "latent", "--loop"], "--loop is for animations, and 'interpolation.png' is none"),
        (["--interpolate", "latent", "--num-images-per-class", "0"], "--num-images-per-class must be at least 1, got 0"),
        (["--interpolate", "latent", "--num-images-per-class", "99"], "297 interpolations are too many for one picture"),
        (["--interpolate", "latent", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--interpolate", "latent", "--truncation", "0"], "truncation must be a positive threshold"),
        (["--interpolate", "latent", "--guidance-scale", "2"], "GANImagePipeline has no use for --guidance-scale"),
        (
            ["--interpolate", "latent", "--output", "latents.npz"],
            "'latents.npz' is of no kind that interpolations are written as",
        ),
        (["--interpolate", "latent", "--output", "taken"], "'taken' is there already; give a folder that is new or empty"),
        (["--interpolate", "latent", "--output", "folder.png"], "'folder.png' is a folder"),
        (["--interpolate", "latent", "--device", "nonsense"], "--device 'nonsense' cannot be used here"),
        (["--frames", "8"], "--frames describes an interpolation between images; add --interpolate"),
        (["--path", "linear"], "--path describes an interpolation"),
        (["--fps", "8"], "--fps describes an interpolation"),
        (["--loop"], "--loop describes an interpolation"),
    ],
)
def test_wrong_interpolations(saved: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    Path("taken").mkdir()
    Path("taken/file").write_text("precious")
    Path("folder.png").mkdir()
    assert message in failure(capsys, str(saved), *flags)
    assert sorted(path.name for path in Path().iterdir()) == ["folder.png", "taken"]
    assert Path("taken/file").read_text() == "precious"


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
    for name in (
        "models:",
        "gan.sagan.SAGANGenerator",
        "diffusion.networks.dit.DiT",
        "pipelines:",
        "GANImagePipeline",
        "digits/dit",
    ):
        assert name in out
    for name in ("objectives:", "gan.am_gan.objective.AMGANObjective", "sources:", "pretrained-biggan"):
        assert name in out
    assert "ResidualGenerator" not in out  # what others are built upon
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


def test_half_precision_changes_pixels_a_little_and_is_recorded(saved: Path) -> None:
    assert main(["sample", str(saved), "--num-images-per-class", "2", "--output", "exact"]) == 0
    arguments = ["--num-images-per-class", "2", "--output", "half", "--mixed-precision", "bf16"]
    assert main(["sample", str(saved), *arguments]) == 0
    exact, half = pixels(Path("exact")), pixels(Path("half"))
    largest = max(int(np.abs(exact[name].astype(int) - half[name].astype(int)).max()) for name in exact)
    assert 0 < largest < 40
    assert json.loads(Path("half/manifest.json").read_text())["settings"]["mixed_precision"] == "bf16"


def test_half_precision_of_an_interpolation_is_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--mixed-precision has no use for --interpolate" in failure(
        capsys, str(saved), "--interpolate", "latent", "--mixed-precision", "bf16"
    )


@pytest.fixture
def named(saved: Path) -> Path:
    pipeline = load_pipeline(saved)
    pipeline.class_names = ["all", "dog, hot", "2"]
    pipeline.save_pretrained(saved.parent / "named")
    return saved.parent / "named"


def test_classes_by_name(named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--num-images-per-class", "2", "--output"]
    assert main(["sample", str(named), "--class-labels", '2,"dog, hot"', *common, "folder"]) == 0
    manifest = json.loads(Path("folder/manifest.json").read_text())
    assert manifest["class_names"] == ["all", "dog, hot", "2"]
    assert [entry["class_label"] for entry in manifest["images"]] == [1, 1, 2, 2]
    assert main(["sample", str(named), "--class-labels", "name=all,label=2", *common, "file.npz"]) == 0
    with np.load("file.npz", allow_pickle=False) as content:
        assert content.files == ["arr_0", "arr_1", "class_names"]
        assert content["arr_1"].tolist() == [0, 0, 2, 2] and content["class_names"].tolist() == ["all", "dog, hot", "2"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("all", "a class is called 'all': write name=all for it, or the names of all classes"),
        ("dog", "there is no class 'dog'; did you mean dog, hot"),
        ('"dog, hot",1', "names a class twice"),
    ],
)
def test_wrong_names(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: str, message: str) -> None:
    assert main(["sample", str(named), "--class-labels", labels, "--output", str(tmp_path / "samples")]) == 2
    assert message in capsys.readouterr().err


def test_a_grid_of_interpolations_shows_the_names(named: Path, tmp_path: Path) -> None:
    arguments = ["--interpolate", "class", "--class-labels", "2,name=all", "--frames", "3", "--output", str(tmp_path / "x.png")]
    assert main(["sample", str(named), *arguments]) == 0
    with Image.open(tmp_path / "x.png") as grid:
        assert grid.width == int(grid.info[ROW_NAMES_WIDTH]) + 2 + 3 * 66
