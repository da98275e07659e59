"""``generative data``: from a folder to shards that training and scores read; one sentence for what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generative.cli.main import main
from generative.data import PreparedDataset


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(9):
        folder = tmp_path / "photos" / ("cat", "dog", "emu")[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_prepare_check_and_go_on(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "prepare", str(photos), "out", "--resolution", "16", "--encode", "raw", "--shard-images", "4"]
    (photos / "dog" / "4.png").write_bytes(b"\x89PNG broken")
    assert main([*command, "--workers", "0"]) == 2
    printed = capsys.readouterr()
    assert "9 images of 3 classes (cat, dog, emu)" in printed.out and not Path("out").exists()
    assert "left out: image 'photos/dog/4.png' is truncated or corrupt" in printed.err.replace(str(photos), "photos")
    assert "1 of 9 images cannot be read, listed above" in printed.err and "--skip-corrupt" in printed.err
    assert main([*command, "--skip-corrupt"]) == 0
    printed = capsys.readouterr()
    assert "going on: 3 of 3 shards are whole" in printed.out and "'out': 8 images of 3 classes in 3 shards" in printed.out
    assert main([*command, "--skip-corrupt"]) == 0
    assert "complete already" in capsys.readouterr().out
    assert main(["data", "check", "out", "--decode"]) == 0
    assert "whole, and every image decodes: 8 images of 3 classes in 3 shards" in capsys.readouterr().out
    content = bytearray(Path("out/shard-00001.npy").read_bytes())
    content[-1] ^= 1
    Path("out/shard-00001.npy").write_bytes(content)
    assert main(["data", "check", "out"]) == 2
    assert "shard 'out/shard-00001.npy' was altered" in capsys.readouterr().err
    Path("out/shard-00001.npy").unlink()
    assert main([*command, "--skip-corrupt"]) == 2
    assert "shard-00001.npy is missing" in (error := capsys.readouterr().err) and "--overwrite prepares them anew" in error
    assert main([*command, "--skip-corrupt", "--overwrite"]) == 0


def test_shards_are_trained_on(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", str(photos), "out", "--resolution", "16", "--workers", "0"]) == 0
    arguments = "--data PreparedDataset --data.folder out --print_config"
    assert main(["train", "folder/dit", *arguments.split()]) == 0
    assert "generative.data.prepared.PreparedDataset" in capsys.readouterr().out
    assert PreparedDataset("out").class_names == ["cat", "dog", "emu"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prepare photos out", "crop adm needs a resolution"),
        ("prepare nowhere out --resolution 8", "source 'nowhere' does not exist"),
        ("prepare photos photos/out --resolution 8", "lie in one another"),
        ("prepare photos/cat out --resolution 8", "has images but no class folders"),
        ("prepare photos out --resolution 8 --num-classes 1000", "'photos' has 3 classes, and --num-classes is 1000"),
        ("prepare photos out --resolution 8 --workers -1", "--workers must not be negative"),
        ("prepare photos out --resolution 8 --split test", "--split belongs to CIFAR"),
        ("prepare photos/cat/0.png out --resolution 8", "is a file of no known kind"),
        ("prepare photos photos/cat/0.png --resolution 8", "is a file; give a folder"),
        ("check photos", "holds no prepared images"),
        ("check nowhere", "does not exist"),
        ("mend out", "there is no 'generative data mend'; choose prepare or check"),
    ],
)
def test_wrong_input_is_told_and_nothing_written(
    photos: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert main(["data", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
