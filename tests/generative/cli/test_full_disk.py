"""Commands whose disk takes no more: one sentence, exit code 1, nothing half-written, and the same command goes on later."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_pipelines import tiny_gan

from generative.cli.main import main
from generative.core import checkpoint as ckpt
from generative.data.prepared import PreparedDataset


@contextmanager
def files_below(num_bytes: int) -> Iterator[None]:
    """Inside, the system lets no file of this process become larger; Python ignores the signal that goes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for index in range(12):
        path = tmp_path / "photos" / ("ant" if index % 2 else "bee") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def toy_config(toy: Any, tmp_path: Path) -> dict[str, Any]:
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    return {
        "objective": {"class_path": "toy.ToyDenoiser", "init_args": {"optimizer": optimizer, "width": 400}},
        "data": {"class_path": "toy.ToyImages"},
        "trainer": {
            "output_dir": "run",
            "total_images": 16,
            "batch_size": 8,
            "log_interval_steps": 1,
            "checkpoint_interval_steps": 1,
            "progress": False,
        },
    }


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error of a command, after its notes and progress bars."""
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.count("error: ") == 1, err
    return err[err.index("error: ") :]


LIMIT = "a file may not become that large, by a limit of the process (ulimit -f) or of the file system while writing"


@pytest.mark.parametrize("how", ["now", "later"])
def test_a_checkpoint(toy_config: dict[str, Any], capsys: pytest.CaptureFixture[str], how: str) -> None:
    Path("toy.yaml").write_text(yaml.safe_dump(toy_config))
    command = ["train", "toy.yaml", "--trust-code", "--trainer.async_checkpoint", str(how == "later").lower()]
    with files_below(40_000):
        assert main(command) == 1
    assert f"{LIMIT} 'run/checkpoint-00000001'; nothing half-written remains: raise the limit" in told(capsys)
    assert not [path.name for path in Path("run").iterdir() if "checkpoint" in path.name or "pipeline" in path.name]
    assert main([*command, "--resume", "auto"]) == 0
    assert len(ckpt.list_checkpoints(Path("run"))) == 2


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_log(toy_config: dict[str, Any], capsys: pytest.CaptureFixture[str], name: str) -> None:
    toy_config["trainer"].update(total_images=800_000, checkpoint_interval_steps=None, grid_images_per_class=2)
    toy_config["trainer"].update({"trackers": None} if name == "metrics.jsonl" else {"log_interval_steps": 10})
    Path("toy.yaml").write_text(yaml.safe_dump(toy_config))
    with files_below(2500):
        assert main(["train", "toy.yaml", "--trust-code"]) == 1
    sentence = told(capsys)
    assert sentence.startswith("error: a file may not become that large") and "raise the limit" in sentence
    assert ("'run/metrics.jsonl'" in sentence) == (name == "metrics.jsonl")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_shards(photos: Path, capsys: pytest.CaptureFixture[str], workers: str) -> None:
    command = ["data", "prepare", "photos", "shards", "--resolution", "16", "--encode", "raw", "--shard-images", "10"]
    with files_below(6000):
        assert main([*command, "--workers", workers]) == 1
    assert f"{LIMIT} 'shards'; 0 of 2 shards are whole and kept: raise the limit" in told(capsys)
    assert not Path("shards").exists() and not list(Path(".shards.partial").rglob(".shard-*"))
    assert main([*command, "--workers", workers]) == 0
    assert len(PreparedDataset("shards")) == 12


def test_a_cache(photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks).save_pretrained("vae")
    monkeypatch.setattr("generative.data.cache_writer.SHARD_IMAGES", 10)
    data = ["--data", "ImageFolderDataset", "--data.root", "photos", "--data.image_size", "16"]
    command = ["encode", "vae", *data, "--output", "cache", "--dtype", "float32"]
    with files_below(15_000):
        assert main(command) == 1
    assert f"{LIMIT} 'cache'; 0 of 2 shards are whole and kept: raise the limit" in told(capsys)
    assert not Path("cache").exists() and not list(Path(".cache.partial").glob(".shard-*"))
    assert main(command) == 0
    assert main(["data", "check", "cache"]) == 0


def test_an_export(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_gan().save_pretrained("gan")
    with files_below(2000):
        assert main(["export", "gan", "out"]) == 1
    assert f"{LIMIT} 'out'; nothing half-written remains" in told(capsys)
    assert not Path("out").exists() and not list(Path().glob(".out*"))
    assert main(["export", "gan", "out"]) == 0
