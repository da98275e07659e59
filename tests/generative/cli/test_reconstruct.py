"""``generative reconstruct``: pictures, a grid and scores; one sentence for every mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from generative.cli.main import main
from generative.tokenizers.pixel import PixelTokenizer

SIZE = 16


@pytest.fixture(autouse=True)
def folders(own_folder: None) -> None:
    """A coarse tokenizer in ``pixel/`` and pictures in ``pictures/``."""
    PixelTokenizer(image_size=SIZE, num_levels=3, channels=3).save_pretrained("pixel")
    Path("pictures/inner").mkdir(parents=True)
    for number in range(5):
        noise = np.random.default_rng(number).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"pictures/{'inner/' if number > 2 else ''}p{number}.png")


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def quantised(image: np.ndarray) -> np.ndarray:
    """To the levels 0, 127.5 -> 128 and 255."""
    return np.array([0, 128, 255], np.uint8)[np.rint(image / 127.5).astype(int)]


def test_a_folder_of_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", "--output", "out", "pixel", "pictures", "--batch-size", "2"]) == 0
    names = ["0_p3.png", "1_p4.png", "2_p0.png", "3_p1.png", "4_p2.png"]  # inner/ sorts before p0
    assert sorted(p.name for p in Path("out").iterdir()) == [*names, "grid.png", "manifest.json", "scores.json"]
    originals = [pixels(f"pictures/inner/p{n}.png") for n in (3, 4)] + [pixels(f"pictures/p{n}.png") for n in (0, 1, 2)]
    for name, original in zip(names, originals, strict=True):
        assert np.array_equal(pixels(Path("out") / name), quantised(original))
    scores = json.loads(Path("out/scores.json").read_text())
    errors = [np.square(original - quantised(original).astype(float)).mean() for original in originals]
    assert scores["psnr"] == pytest.approx(np.mean([10 * np.log10(255**2 / error) for error in errors]))
    assert scores["num_images"] == 5 and scores["codes_used"] == 9 and scores["num_codes"] == 9 and 0 < scores["ssim"] < 1
    out = capsys.readouterr().out
    assert f"5 images reconstructed in 'out': PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.4f}, 9 of 9 codes used" in out
    # The grid has each original (enlarged twice, behind a frame of 2 pixels) with its reconstruction on its right.
    grid = pixels("out/grid.png")
    tile = 2 * SIZE
    assert np.array_equal(grid[2 : 2 + tile : 2, 2 : 2 + tile : 2], originals[0])
    assert np.array_equal(grid[2 : 2 + tile : 2, 4 + tile : 4 + 2 * tile : 2], quantised(originals[0]))


def test_a_data_set_as_a_grid(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "DigitsDataset", "--data.split", "test", "--data.image_size", str(SIZE), "--num-images", "70"]
    assert main(["reconstruct", *data, "pixel", "--output", "grid.png"]) == 0
    assert Path("grid.png").is_file() and "70 images reconstructed" in capsys.readouterr().out
    assert Image.open("grid.png").size == (16 * 34 + 2, 8 * 34 + 2)  # 64 pairs, 8 to a row
    assert not list(Path().glob(".*"))


def test_an_autoencoder_and_a_distance(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2, sample_size=8)
    network.save_pretrained("kl")
    arguments = ["kl", "pictures", "--image-size", "12", "--extractor", "efficientnet-lite0", "--output", "out"]
    assert main(["reconstruct", *arguments]) == 0
    scores: dict[str, Any] = json.loads(Path("out/scores.json").read_text())
    assert scores["reconstruction_frechet_distance"] > 0 and scores["protocol"]["num_fake"] == 5
    assert "codes_used" not in scores and Image.open("out/0_p3.png").size == (12, 12)
    captured = capsys.readouterr()
    assert "Frechet distance" in captured.out and "Warning" not in captured.err
    notes = [line.removeprefix("note: ") for line in captured.out.splitlines() if line.startswith("note: ")]
    assert notes == scores["notes"] and all("fewer than the 1280 feature dimensions" in note for note in notes)


def one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run the command; it must fail with one line and leave nothing."""
    before = sorted(str(path) for path in Path().rglob("*"))
    assert main(["reconstruct", *arguments]) == 2
    assert sorted(str(path) for path in Path().rglob("*")) == before
    out, err = capsys.readouterr()
    err = err.split("\r")[-1].lstrip() if "\r" in err else err  # behind a progress bar
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pixel", "--output", "o"], "there are no images; give files and folders, or a data set"),
        (["pixel", "pictures"], "the following arguments are required: --output"),
        (["pixel", "pictures", "--output", "pictures"], "output 'pictures' exists and is not an empty folder"),
        (["pixel", "nowhere.png", "--output", "o"], "'nowhere.png' does not exist"),
        (["pixel", "pixel/config.json", "--output", "o"], "is no image file"),
        (["nowhere", "pictures", "--output", "o"], "'nowhere' does not exist; give the run of a tokenizer"),
        (["pixel", "pictures", "--output", "o", "--image-size", "8"], "takes images of 16 pixels, got 8"),
        (["pixel", "pictures", "--output", "o", "--num-images", "0"], "--num-images must be at least 1, got 0"),
        (["pixel", "pictures", "--output", "o", "--batch-size", "-1"], "--batch-size must be at least 1, got -1"),
        (["pixel", "pictures", "--output", "o", "--weights", "w"], "name that with --extractor"),
        (["pixel", "pictures", "--output", "o", "--extractor", "vgg"], "vgg"),
        (["pixel", "pictures/p0.png", "--output", "o", "--extractor", "efficientnet-lite0"], "at least 2 images"),
        (["pixel", "pictures", "--output", "o", "--device", "warp"], "--device 'warp' cannot be used here"),
        (["pixel", "pictures", "--output", "o", "--data", "DigitsDataset"], "not both"),
        (["pixel", "--output", "o", "--data", "DigitsDataset"], "takes images of 16 pixels, got 8"),
        (["pixel", "--output", "o", "--data", "DigitsDataset", "--image-size", "16"], "--image-size belongs to image files"),
        (["pixel", "pictures", "--output", "o", "--bach", "3"], "unrecognized arguments: --bach"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert re.search(message, one_sentence(capsys, arguments))


def test_a_picture_that_breaks_half_way_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("pictures/p2.png")
    path.write_bytes(path.read_bytes()[:200])
    monkeypatch.setattr("generative.data.base.VERIFY_BELOW_IMAGES", 0)
    assert "p2.png" in one_sentence(capsys, ["pixel", "pictures", "--output", "o", "--batch-size", "1"])
