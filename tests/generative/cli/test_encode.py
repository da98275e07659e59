"""``generative encode``: caches from the command line, interrupted and shared, and one sentence for every mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from PIL import Image

from generative.cli.main import main
from generative.cli.overrides import split_overrides
from generative.core.images import images_to_float
from generative.data import cache_writer
from generative.data.cache_files import shard_name
from generative.data.digits import DigitsDataset
from generative.data.image_folder import ImageFolderDataset
from generative.data.token_cache import TokenCacheDataset
from generative.tokenizers.pixel import PixelTokenizer
from generative.tokenizers.vq import VQTokenizer

PROJECT = Path(__file__).parents[3]
DIGITS = ["--data", "DigitsDataset", "--data.split", "test"]


@pytest.fixture(autouse=True)
def tokenizer(own_folder: None) -> PixelTokenizer:
    """A tokenizer in ``pixel/``."""
    network = PixelTokenizer()
    network.save_pretrained("pixel")
    return network


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_writer, "SHARD_IMAGES", 100)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run the command; it must fail with one line and leave no cache."""
    before = sorted(str(path) for path in Path().rglob("*"))
    assert main(["encode", *arguments]) == 2
    assert sorted(str(path) for path in Path().rglob("*")) == before
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_a_data_class(tokenizer: PixelTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", *DIGITS, "pixel", "--views", "flip", "--output", "caches/digits"]) == 0
    out = capsys.readouterr().out
    assert "500 images of 10 classes x 2 views x 64 tokens; 17 of 17 codes used, 262 bits per image" in out
    data, images = TokenCacheDataset("caches/digits"), DigitsDataset("test")
    assert len(data) == 500 and torch.equal(data.labels, images.labels)
    tokens = data.examples(torch.arange(500), np.zeros(500, np.uint64), flip=True)["tokens"]
    assert torch.equal(tokens, tokenizer.encode(images_to_float(images.images_uint8())))
    before = tree(Path("caches"))
    assert main(["encode", "pixel", *DIGITS, "--views", "flip", "--output", "caches/digits"]) == 0
    assert "is complete already: 500 images" in capsys.readouterr().out and tree(Path("caches")) == before


def test_the_data_section_of_a_configuration(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", "digits/transformer"]
    assert main(["encode", "pixel", *config, "--data.init_args.split", "test", "--output", "first"]) == 0
    assert main(["encode", "pixel", *DIGITS, "--output", "second"]) == 0
    assert tree(Path("first")) == tree(Path("second"))
    Path("cached.yaml").write_text(
        "data: {class_path: generative.data.token_cache.TokenCacheDataset, init_args: {folder: first, images: "
        "{class_path: generative.data.DigitsDataset, init_args: {split: test}}}}"
    )
    assert main(["encode", "pixel", "--config", "cached.yaml", "--output", "third"]) == 0
    assert tree(Path("first")) == tree(Path("third"))
    Path("none.yaml").write_text(
        "data: {class_path: generative.data.token_cache.TokenCacheDataset, init_args: {folder: first, images: null}}"
    )
    capsys.readouterr()
    error = one_sentence(capsys, ["pixel", "--config", "none.yaml", "--output", "fourth"])
    assert "trains on a cache and names no images" in error


def test_an_interrupted_run_goes_on(
    small_shards: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["encode", "pixel", *DIGITS, "--views", "flip"]
    assert main([*arguments, "--output", "whole"]) == 0
    write, names = cache_writer.write_tensors, []

    def interrupted(path: Path, tensors: Any) -> None:
        if path.name == shard_name(2):
            raise KeyboardInterrupt
        write(path, tensors)

    monkeypatch.setattr(cache_writer, "write_tensors", interrupted)
    assert main([*arguments, "--output", "cache"]) == 130
    assert not Path("cache").exists() and (Path(".cache.partial") / shard_name(1)).is_file()
    capsys.readouterr()
    other = ["pixel", "--data", "DigitsDataset", "--output", "cache"]
    assert "holds an unfinished cache of other images" in one_sentence(capsys, other)

    def recorded(path: Path, tensors: Any) -> None:
        names.append(path.name)
        write(path, tensors)

    monkeypatch.setattr(cache_writer, "write_tensors", recorded)
    assert main([*arguments, "--output", "cache"]) == 0
    assert names[:3] == [shard_name(2), shard_name(3), shard_name(4)]  # what was written is kept
    assert tree(Path("cache")) == tree(Path("whole")) and not Path(".cache.partial").exists()


def test_overwrite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "pixel", *DIGITS, "--output", "cache"]) == 0
    PixelTokenizer(num_levels=5).save_pretrained("five")
    capsys.readouterr()
    error = one_sentence(capsys, ["five", *DIGITS, "--output", "cache"])
    assert "already holds a cache of another tokenizer or autoencoder" in error and "--overwrite" in error
    assert main(["encode", "five", *DIGITS, "--output", "cache", "--overwrite"]) == 0
    assert TokenCacheDataset("cache").spec.num_codes == 5


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    """``generative data check`` reads a cache as it reads shards."""
    assert main(["encode", "pixel", *DIGITS, "--views", "flip", "--output", "cache"]) == 0
    capsys.readouterr()
    assert main(["data", "check", "cache"]) == 0
    assert "'cache' is whole: tokens of 500 images of 10 classes x 2 views" in capsys.readouterr().out
    assert main(["data", "check", "cache", "--decode"]) == 2
    assert "--decode looks at images, and 'cache' is a cache" in capsys.readouterr().err
    for name in ("labels.safetensors", shard_name(0)):
        content = bytearray((Path("cache") / name).read_bytes())
        content[-1] ^= 1
        (Path("cache") / name).write_bytes(content)
    assert main(["data", "check", "cache"]) == 2
    error = capsys.readouterr().err
    assert "also: 'cache/shard-00000.safetensors' was altered" in error and "error: 'cache/labels.safetensors' was alt" in error
    (Path("cache") / shard_name(0)).unlink()
    assert main(["data", "check", "cache"]) == 2
    assert "shard-00000.safetensors' is missing" in capsys.readouterr().err


def test_ten_crops_at_two_sizes(tokenizer: PixelTokenizer) -> None:
    Path("images/a").mkdir(parents=True)
    for number in range(3):
        noise = np.random.default_rng(number).integers(256, size=(20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"images/a/{number}.png")
    data = ["--data", "generative.data.ImageFolderDataset", "--data.root", "images", "--data.image_size", "8"]
    arguments = ["--views", "ten-crop", "--crop-range", "1.25,1.5", "--batch-size", "7", "--output", "cache"]
    assert main(["encode", "pixel", *data, *arguments]) == 0
    cache = TokenCacheDataset("cache")
    assert cache.spec.crop_sizes == (10, 12) and cache.spec.make_views().count == 20
    assert torch.equal(cache.images_uint8(), ImageFolderDataset("images", 8).images_uint8())  # as they are, for grids
    larger = images_to_float(ImageFolderDataset("images", 12).images_uint8())
    expected = tokenizer.encode(larger[..., 0:8, 4:12].flip(-1))  # second size, top right, mirrored
    assert np.array_equal(cache._shards.read("tokens", [0, 1, 2], [10 + 2 * 1 + 1] * 3), expected.numpy())


def test_a_learned_tokenizer() -> None:
    torch.manual_seed(0)
    network = VQTokenizer(**VQ).eval()
    network.save_pretrained("vq")
    assert (
        main(["encode", "vq", "--data", "DigitsDataset", "--data.split=test", "--data.image_size=16", "--output", "cache"]) == 0
    )
    data, images = TokenCacheDataset("cache"), DigitsDataset("test", image_size=16)
    tokens = data.examples(torch.arange(20), np.zeros(20, np.uint64), flip=False)["tokens"]
    with torch.no_grad():
        assert torch.equal(tokens, network.encode(images_to_float(images.images(range(20)))))
    assert data.encoder_fingerprint == network.fingerprint


@pytest.mark.parametrize("kind", ["kl", "dc"])
def test_autoencoders(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = (AutoencoderKL(**KL) if kind == "kl" else AutoencoderDC(**DC)).eval()
    network.save_pretrained("autoencoder")
    assert main(["encode", "autoencoder", *DIGITS, "--dtype", "float32", "--output", "cache"]) == 0
    assert f"500 images of 10 classes x 1 view x 4 x 4 x 4 {'means' if kind == 'kl' else 'latents'}" in capsys.readouterr().out
    data = TokenCacheDataset("cache")
    images = images_to_float(DigitsDataset("test").images(range(5)))
    with torch.no_grad():
        encoded = network.encode(images)
        mean = encoded.latent_dist.mean if kind == "kl" else encoded.latent
    torch.testing.assert_close(torch.from_numpy(data._shards.read("mean", range(5), [0] * 5)), mean * 0.5, rtol=1e-4, atol=1e-5)
    assert data.spec.has_std == (kind == "kl")
    words = np.arange(5, dtype=np.uint64)
    batch = data.examples(torch.arange(5), words, flip=False)
    assert torch.equal(batch["latents"], torch.from_numpy(data._shards.read("mean", range(5), [0] * 5)))
    assert ("latent_std" in batch) == (kind == "kl")


KL: dict[str, Any] = {
    "block_out_channels": (4, 4),
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "sample_size": 8,
    "scaling_factor": 0.5,
}
DC: dict[str, Any] = {
    "latent_channels": 4,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), ()),
    "decoder_qkv_multiscales": ((), ()),
    "scaling_factor": 0.5,
}
VQ: dict[str, Any] = {
    "image_size": 16,
    "num_codes": 300,
    "code_dim": 4,
    "ch": 8,
    "ch_mult": (1, 1),
    "num_res_blocks": 1,
    "z_channels": 8,
    "norm_groups": 4,
    "using_sa": False,
    "using_mid_sa": False,
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pixel", *DIGITS], "the following arguments are required: --output"),
        (["pixel", "--output", "c"], "has no images; give --config CONFIG .* or --data CLASS"),
        (["pixel", "--output", "c", "--config", "digits/nothing"], "configuration 'digits/nothing' does not exist"),
        (["nowhere", *DIGITS, "--output", "c"], "'nowhere' does not exist; give the run of a tokenizer"),
        (["pixel", *DIGITS, "--output", "c", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["pixel", *DIGITS, "--output", "c", "--batch-size", "x"], "--batch-size: invalid int value: 'x'"),
        (["pixel", *DIGITS, "--output", "c", "--views", "five"], "--views: invalid choice: 'five'"),
        (["pixel", *DIGITS, "--output", "c", "--crop-range", "1.1"], "--crop-range belongs to --views ten-crop"),
        (["pixel", *DIGITS, "--output", "c", "--views", "ten-crop", "--crop-range", "0.9"], "must be at least 1"),
        (["pixel", *DIGITS, "--output", "c", "--views", "ten-crop", "--crop-range", "a"], "--crop-range: invalid"),
        (["pixel", *DIGITS, "--output", "c", "--device", "warp"], "--device 'warp' cannot be used here"),
        (["pixel", *DIGITS, "--output", "c", "--mixed-precision", "int8"], "--mixed-precision: invalid choice: 'int8'"),
        (["pixel", *DIGITS, "--output", "c", "--dtype", "float32"], "--dtype is how latents are stored"),
        (["pixel", *DIGITS, "--output", "pixel/config.json"], "output 'pixel/config.json' is a file"),
        (["pixel", *DIGITS, "--output", "pixel"], "output 'pixel' exists and is no cache of ours"),
        (["pixel", *DIGITS, "--output", "."], "must be a folder with a name"),
        (["pixel", *DIGITS, "--output", "c", "--bach", "3"], "unrecognized arguments: --bach 3"),
        (["pixel", *DIGITS, "--output", "c", "--data.splt", "test"], "splt"),
        (
            ["pixel", *DIGITS, "--output", "c", "--data.image_size", "16"],
            "takes images of 8 pixels, the data has 16; set image_size",
        ),
        (["pixel", "--data", "os.path", "--output", "c"], "names 'os.path', which is not of .*--trust-code"),
        (["pixel", "--data", "NoSuchData", "--output", "c"], "NoSuchData"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert re.search(message, one_sentence(capsys, arguments))


def test_data_arguments_may_stand_anywhere() -> None:
    own, data = split_overrides(
        ["a", "--data", "X", "--data.n", "3", "--output", "o", "--data.m=4", "b", "--data.last"], ("data",)
    )
    assert own == ["a", "--output", "o", "b"] and data == ["--data", "X", "--data.n", "3", "--data.m=4", "--data.last"]


@pytest.mark.slow
def test_two_processes_go_on_where_a_killed_one_stopped(small_shards: None) -> None:
    """And write what one process does."""
    arguments = ["encode", "pixel", *DIGITS, "--views", "flip", "--output"]
    assert main([*arguments, "whole"]) == 0
    # What a kill leaves: a plan, some shards, and one half-written.
    assert main([*arguments, "killed"]) == 0
    Path("killed").rename(".killed.partial")
    os.replace(".killed.partial/cache.json", ".killed.partial/plan.json")
    for name in (shard_name(1), shard_name(3), shard_name(4), "labels.safetensors"):
        (Path(".killed.partial") / name).unlink()
    Path(f".killed.partial/.{shard_name(1)}.partial").write_bytes(b"half")
    Path("encode.py").write_text(
        "import sys\nfrom generative.cli.main import main\nfrom generative.data import cache_writer\n"
        "cache_writer.SHARD_IMAGES = 100\nsys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "encode.py"]
    result = subprocess.run(
        [*launcher, *arguments, "killed"], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.count("data: 500 images") == 1  # the main process speaks
    assert tree(Path("killed")) == tree(Path("whole"))
