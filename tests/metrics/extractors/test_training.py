"""A classifier trained on one's own images, and scores on its features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from metrics.cli import main
from metrics.extractors import training as extractor_training
from metrics.extractors.resnet9 import ResNet9, ResNet9Network
from metrics.extractors.training import augment, train_extractor
from metrics.sources import open_source


def write_images(folder: Path, per_class: int, seed: int, size: int = 16) -> Path:
    """Two classes that differ by colour, with noise; a folder for each."""
    rng = np.random.default_rng(seed)
    for name, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.clip(rng.normal(colour, 40, (size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("labelled")
    return write_images(root / "train", 40, seed=0), write_images(root / "test", 20, seed=1)


@pytest.fixture(scope="module")
def weights(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("weights") / "judge.safetensors"
    train, test = map(open_source, folders)
    facts = train_extractor(train, test, output, epochs=6, width=4)
    assert facts["accuracy"] > 0.9
    assert facts["classes"] == ["red", "blue"]  # by length, then by name
    return output


def test_the_extractor_reads_what_was_trained(weights: Path, folders: tuple[Path, Path]) -> None:
    extractor = ResNet9.from_file(weights, None).freeze()
    assert extractor.input_size == 16 and extractor.feature_dims == {"pooled": 32, "logits": 2}
    batch = next(iter(open_source(folders[1]).batches(40)))
    features = extractor(torch.stack(batch.images).float())
    predicted = features["logits"].argmax(1)
    assert batch.labels is not None
    wanted = torch.tensor([["red", "blue"].index(label) for label in batch.labels])
    assert (predicted == wanted).float().mean() > 0.9


def test_training_is_repeatable(folders: tuple[Path, Path], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        train_extractor(open_source(folders[0]), None, file, epochs=1, width=2, seed=seed)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_command_trains_and_scores(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = map(str, folders)
    weights = str(tmp_path / "judge.safetensors")
    assert main(["--train-extractor", train, test, weights, "--extractor", "resnet9", "--train-epochs", "1", "--quiet"]) == 0
    assert "2 classes at 16 px, trained 1 epochs on train, 80 images, accuracy" in capsys.readouterr().out
    arguments = [test, train, "--extractor", "resnet9", "--weights", weights, "--metrics", "fid,am", "--no-cache", "--quiet"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "resnet9" in printed and "am_score" in printed
    assert main(["--train-extractor", train, weights, "--extractor", "resnet9"]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{train}", "{out}"], "--extractor resnet9"),
        (["{train}", "{out}.npz", "--extractor", "resnet9"], ".safetensors"),
        (["{flat}", "{out}", "--extractor", "resnet9"], "needs class labels"),
        (["{out}", "--extractor", "resnet9"], "TRAIN [TEST] OUT.safetensors"),
        (["{train}", "{other}", "{out}", "--extractor", "resnet9", "--train-epochs", "1"], "no training image has"),
        (["{train}", "{out}", "--extractor", "resnet9", "--train-epochs", "0"], "at least 1"),
        (["{train}", "{out}", "--extractor", "resnet9", "--num-samples", "9"], "saved pipelines only"),
        (["{train}", "{out}", "--extractor", "resnet9", "--input-size", "7"], "at least 8 px"),
    ],
)
def test_wrong_input_gets_one_sentence(
    arguments: list[str], said: str, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("green", "red"):  # one folder alone would be a set without labels
        (tmp_path / "other" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "other" / name / "0.png")
    places = {"train": folders[0], "flat": folders[0] / "red", "other": tmp_path / "other", "out": tmp_path / "x.safetensors"}
    assert main(["--train-extractor", "--quiet", *(text.format(**places) for text in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "x.safetensors").exists()


def test_classes_are_matched_by_name_before_training(folders: tuple[Path, Path], tmp_path: Path, capsys, monkeypatch) -> None:
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(folders[1].rglob("*.png"))])  # 20 blue, 20 red
    np.savez(tmp_path / "named.npz", arr_0=images, arr_1=np.repeat([1, 0], 20), class_names=np.array(["red", "blue"]))
    np.savez(tmp_path / "numbers.npz", arr_0=images, arr_1=np.repeat([0, 1], 20))
    np.savez(tmp_path / "other.npz", arr_0=images, arr_1=np.repeat([1, 0], 20), class_names=np.array(["red", "green"]))
    for name in ("named", "numbers"):
        test, output = open_source(tmp_path / f"{name}.npz"), tmp_path / f"{name}.safetensors"
        facts = train_extractor(open_source(folders[0]), test, output, epochs=6, width=4)
        assert facts["accuracy"] > 0.9 and not facts["is_chance"]
    monkeypatch.setattr(extractor_training, "_fit", lambda *_: pytest.fail("trained"))
    paths = [str(folders[0]), str(tmp_path / "other.npz"), str(tmp_path / "x.safetensors")]
    assert main(["--train-extractor", *paths, "--extractor", "resnet9", "--quiet"]) == 2
    assert "blue only in" in (error := capsys.readouterr().err) and "green only in" in error
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "x.safetensors", tmp_path / "file" / "y" / "x.safetensors"):
        assert main(["--train-extractor", str(folders[0]), str(output), "--extractor", "resnet9", "--quiet"]) == 2
        assert "can't be written" in capsys.readouterr().err


def test_small_images_of_few_are_learnt_at_their_own_size(tmp_path: Path) -> None:
    train, test = (write_images(tmp_path / name, 40, seed, size=8) for seed, name in enumerate(("train", "test")))
    output = tmp_path / "eight.safetensors"
    facts = train_extractor(open_source(train), open_source(test), output, width=4)
    assert facts["input_size"] == 8 and facts["accuracy"] > 0.9 and facts["chance"] == 0.5
    assert ResNet9.from_file(output, None).input_size == 8


def test_chance_is_called_chance(folders: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        (tmp_path / "noise" / name).mkdir(parents=True)
        for index in range(30):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "noise" / name / f"{index}.png")
    noise, output = str(tmp_path / "noise"), str(tmp_path / "x.safetensors")
    assert main(["--train-extractor", noise, noise, output, "--extractor", "resnet9", "--train-epochs", "1", "--quiet"]) == 0
    assert "NOTE: this is chance (naming the most frequent class gives 0.5000)" in capsys.readouterr().out
    assert extractor_training._is_chance(0.56, 0.5, 100) and not extractor_training._is_chance(0.7, 0.5, 100)


def test_interrupted_training_leaves_nothing(folders: tuple[Path, Path], tmp_path: Path, capsys, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(extractor_training, "_fit", interrupt)
    output = tmp_path / "deeper" / "x.safetensors"
    assert main(["--train-extractor", str(folders[0]), str(output), "--extractor", "resnet9", "--quiet"]) == 130
    assert "nothing was written" in capsys.readouterr().err and not output.parent.exists()


def test_foreign_weights_are_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--train-extractor"):
        ResNet9.from_file(None, None)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ResNet9.from_file(tmp_path / "none.safetensors", None)
    foreign = tmp_path / "foreign.safetensors"
    save_file(ResNet9Network(2, 2).state_dict(), foreign)
    with pytest.raises(ValueError, match="not written by --train-extractor"):
        ResNet9.from_file(foreign, None)
    foreign.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        ResNet9.from_file(foreign, None)
    with pytest.raises(ValueError, match="at least 8"):
        ResNet9.from_file(weights, 7)


def test_augmentation_shifts_and_flips_only() -> None:
    image = torch.arange(16 * 16, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16).clone()
    image[image == 0] = 1
    seen = set()
    for seed in range(60):
        result = augment(image, torch.Generator().manual_seed(seed))[0, 0]
        pixels = (result * 127.5 + 127.5).round()
        rows = [row[row != 128] for row in pixels if (row != 128).any()]  # what is not padding
        steps = {int(step) for row in rows if len(row) > 1 for step in row[: len(row) // 2].diff()}
        seen |= steps & {1, -1}
        assert result.shape == (16, 16)
    assert seen == {1, -1}  # some flipped, some not
