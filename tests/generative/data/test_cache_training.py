"""Training from a cache takes the steps that training from its images takes; images stand beside the latents of their views."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ModelMixin
from safetensors.numpy import load_file, save_file

from generative.autoregressive.next_token.objective import AutoregressiveObjective
from generative.autoregressive.next_token.transformer import ImageTransformer
from generative.autoregressive.options import NextTokenOptions
from generative.core.errors import UserError
from generative.core.objective import Objective
from generative.core.runtime import build_accelerator
from generative.core.trainer import Trainer
from generative.core.trainer_config import TrainerConfig
from generative.data.base import ImageDataset
from generative.data.cache_files import CACHE_FILE, CacheSpec, ShardReader, shard_name, smallest_type
from generative.data.cache_writer import CacheEncoder, finish_cache, missing_shards, start_cache, write_shards
from generative.data.digits import DigitsDataset
from generative.data.finish import finish_batch
from generative.data.sampler import PositionDataset, position_words
from generative.data.token_cache import TokenCacheDataset
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.dit import DiT
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.options import DiffusionOptions
from generative.tokenizers.base import ImageTokenizer, fingerprint
from generative.tokenizers.latents import latent_moments, scale_latents
from generative.tokenizers.vq import VQTokenizer

PROJECT = Path(__file__).parents[3]
OPTIMIZER = partial(torch.optim.AdamW, lr=1e-2)
SIZE = 16


def make_autoencoder() -> AutoencoderKL:
    """Stride 2, with a deviation that matters."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    options = {"latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 0.7, "shift_factor": 0.2, "sample_size": SIZE}
    return AutoencoderKL(**blocks, block_out_channels=(8, 8), **options).eval()


def make_tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    small = {"ch": 8, "ch_mult": (1, 1), "num_res_blocks": 1, "z_channels": 8, "norm_groups": 4}
    return VQTokenizer(image_size=SIZE, num_codes=300, code_dim=4, using_sa=False, using_mid_sa=False, **small).eval()


def write_cache(output: Path, encoder: ModelMixin, images: ImageDataset, sources: Any = None, **changes: Any) -> Path:
    is_tokenizer = isinstance(encoder, ImageTokenizer)
    content: dict[str, Any] = {
        "kind": "tokens" if is_tokenizer else "latents",
        "encoder_class": type(encoder).__name__,
        "encoder_config": {},
        "encoder_fingerprint": fingerprint(encoder),
        "data_class": type(images).__name__,
        "data_fingerprint": images.fingerprint,
        "num_images": len(images),
        "num_classes": images.num_classes,
        "class_names": tuple(images.class_names),
        "image_size": images.image_size,
        "views": "flip",
        "crop_sizes": (),
        "shape": (encoder.sequence_length,) if is_tokenizer else (4, SIZE // 2, SIZE // 2),
        "num_codes": encoder.num_codes if is_tokenizer else None,
        "dtype": smallest_type(encoder.num_codes) if is_tokenizer else "F32",
        "has_std": not is_tokenizer,
        "mixed_precision": "no",
        "shard_images": 100,
    }
    spec = CacheSpec(**(content | changes))
    start_cache(output, spec)
    encode = CacheEncoder(encoder, spec.dtype, 64, nullcontext)
    list(write_shards(output, spec, missing_shards(output, spec), sources or [images], encode))
    finish_cache(output, spec, images)
    return output


def losses_of(objective: Objective, data: ImageDataset, folder: Path, **options: Any) -> list[float]:
    """The losses of five steps, mirrored images among them."""
    config = TrainerConfig(
        output_dir=folder,
        total_images=5 * 32,
        batch_size=32,
        horizontal_flip=True,
        log_interval_steps=1,
        grid_images_per_class=1,
        progress=False,
        **options,
    )
    Trainer(objective, data, config, build_accelerator("no"), seed=3).fit()
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [value for entry in entries for name, value in entry.items() if name.endswith("/loss")]


def make_diffusion() -> DiffusionObjective:
    autoencoder = make_autoencoder()
    torch.manual_seed(1)
    denoiser = DiT(sample_size=SIZE // 2, patch_size=2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=10)
    sampling = DiffusionOptions(num_inference_steps=1)
    return DiffusionObjective(
        denoiser, Interpolant(time_scale=1000.0), OPTIMIZER, autoencoder=autoencoder, sampling=sampling, label_dropout=0.2
    )


def make_transformer() -> AutoregressiveObjective:
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    network = ImageTransformer(300, 10, (8, 8), hidden_size=16, depth=1, num_heads=2, mlp_multiple_of=8)
    return AutoregressiveObjective(network, tokenizer, OPTIMIZER, sampling=NextTokenOptions(), label_dropout=0.2)


@pytest.fixture(scope="module")
def images() -> DigitsDataset:
    return DigitsDataset("test", image_size=SIZE)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory, images: DigitsDataset) -> Path:
    return write_cache(tmp_path_factory.mktemp("caches") / "kl", make_autoencoder(), images)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_training_from_latents_is_training_from_images(
    latents: Path, images: DigitsDataset, tmp_path: Path, micro_batches: int
) -> None:
    """The same draws of latents, dropped labels, noise levels and noise: losses differ by float32's rounding only."""
    options = {"gradient_accumulation_steps": micro_batches}
    live = losses_of(make_diffusion(), images, tmp_path / "live", **options)
    cached = losses_of(make_diffusion(), TokenCacheDataset(latents), tmp_path / "cached", **options)
    assert len(live) == 5 and live[0] != live[-1]
    np.testing.assert_allclose(cached, live, rtol=1e-5)


def test_half_precision_latents_train_as_images_within_their_rounding(images: DigitsDataset, tmp_path: Path) -> None:
    half = write_cache(tmp_path / "half", make_autoencoder(), images, dtype="F16")
    live = losses_of(make_diffusion(), images, tmp_path / "live")
    np.testing.assert_allclose(losses_of(make_diffusion(), TokenCacheDataset(half), tmp_path / "cached"), live, rtol=1e-3)


def test_training_from_ids_is_training_from_images(images: DigitsDataset, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "vq", make_tokenizer(), images)
    live = losses_of(make_transformer(), images, tmp_path / "live")
    assert losses_of(make_transformer(), TokenCacheDataset(cache), tmp_path / "cached") == live and len(live) == 5


def views_at(data: ImageDataset, flip: bool) -> dict[str, Any]:
    return dict(PositionDataset(data, seed=4, horizontal_flip=flip).__getitems__(list(range(60))))


def encoded(images: torch.Tensor) -> torch.Tensor:
    network = make_autoencoder()
    with torch.no_grad():
        return scale_latents(network, latent_moments(network, images)[0])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_images_stand_beside_their_latents(latents: Path, images: DigitsDataset, flip: bool, kept: bool) -> None:
    """Mirrored or not, the image is the one whose encoding the latents are, from the data set or the cache's own copies."""
    batch = views_at(TokenCacheDataset(latents, images=None if kept else images, with_images=True), flip)
    assert set(batch) == {"images", "latents", "latent_std", "class_labels"} and batch["images"].dtype == torch.float32
    torch.testing.assert_close(encoded(batch["images"]), batch["latents"], rtol=1e-4, atol=1e-5)
    assert torch.equal(batch["images"], views_at(images, flip)["images"])
    assert flip == (not torch.equal(batch["images"], views_at(images, False)["images"]))
    assert "images" not in views_at(TokenCacheDataset(latents), flip)


def test_images_wait_for_the_device(latents: Path) -> None:
    """Loaders hand on bytes and flags, which are finished after the transfer."""
    data, words = TokenCacheDataset(latents, with_images=True), position_words(range(20), seed=4)
    batch = data.examples(torch.arange(20), words, True)
    assert batch["images"].dtype == torch.uint8 and batch["mirrored"].tolist() == (words >> np.uint64(63)).astype(bool).tolist()
    finished = finish_batch(batch)
    assert "mirrored" not in finished and finish_batch(finished) is finished
    torch.testing.assert_close(encoded(finished["images"]), batch["latents"], rtol=1e-4, atol=1e-5)


def test_crops_stand_beside_their_latents(images: DigitsDataset, tmp_path: Path) -> None:
    sources = [DigitsDataset("test", image_size=size) for size in (18, 20)]
    ten = write_cache(tmp_path / "ten", make_autoencoder(), images, sources, views="ten-crop", crop_sizes=(18, 20))
    for flip in (False, True):
        batch = views_at(TokenCacheDataset(ten, with_images=True, crop_images=sources), flip)
        torch.testing.assert_close(encoded(batch["images"]), batch["latents"], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="needs crop_images, .* image_size 18 and 20; got none"):
        TokenCacheDataset(ten, images, with_images=True)
    with pytest.raises(UserError, match="got 20 and 18"):
        TokenCacheDataset(ten, with_images=True, crop_images=sources[::-1])
    others = [DigitsDataset("train", image_size=size) for size in (18, 20)]
    with pytest.raises(UserError, match="crop_images are others than the cache .*: their classes differ"):
        TokenCacheDataset(ten, with_images=True, crop_images=others)


def test_images_that_are_not_there_are_asked_for(
    images: DigitsDataset, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generative.data.cache_statistics.RANDOM_PREVIEW_BYTES", 0)
    few = write_cache(tmp_path / "few", make_autoencoder(), images)
    with pytest.raises(UserError, match="with_images needs all images, and the cache .* keeps 160 of 500; give data.init_args"):
        TokenCacheDataset(few, with_images=True)
    TokenCacheDataset(few, images, with_images=True)
    with pytest.raises(UserError, match="crop_images belong to ten-crop views"):
        TokenCacheDataset(latents, with_images=True, crop_images=[images])


def copy_cache(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def alter_latents(folder: Path) -> None:
    """As long as before, and no header touched."""
    path = folder / shard_name(1)
    tensors = load_file(path)
    tensors["mean"][3, 1, 2, 0, 0] += 0.25
    save_file(tensors, path)


def alter_labels(folder: Path) -> None:
    tensors = load_file(folder / "labels.safetensors")
    tensors["labels"][7] = (tensors["labels"][7] + 1) % 10
    save_file(tensors, folder / "labels.safetensors")


def lengthen_previews(folder: Path) -> None:
    with (folder / "previews.safetensors").open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (alter_latents, r"shard-00001.safetensors' was altered \(its sha256 begins with .*encode the images anew, or restore"),
        (alter_labels, "labels.safetensors' was altered"),
        (lengthen_previews, "previews.safetensors' (is missing or damaged|has .* bytes and cache.json says)"),
        (lambda folder: (folder / "labels.safetensors").unlink(), "labels.safetensors' is missing"),
        (lambda folder: (folder / "previews.safetensors").unlink(), "previews.safetensors' is missing"),
    ],
)
def test_altered_files_are_refused(latents: Path, tmp_path: Path, change: Any, message: str) -> None:
    broken = copy_cache(latents, tmp_path / "broken")
    change(broken)
    with pytest.raises(UserError, match=message):
        TokenCacheDataset(broken)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 11},
        {"num_images": "70"},
        {"shape": [4, 8]},
        {"num_codes": 16},
        {"shard_images": 0},
        {"files": {"../x": {"bytes": 1, "sha256": ""}}},
        {"files": [1]},
    ],
)
def test_a_description_that_cannot_be_is_refused(latents: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    broken = copy_cache(latents, tmp_path / "broken")
    content = json.loads((broken / CACHE_FILE).read_text())
    (broken / CACHE_FILE).write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=r"cache.json' is damaged \(.*encode the images anew"):
        TokenCacheDataset(broken)


def test_a_cache_of_before_there_were_sums_is_read(latents: Path, tmp_path: Path) -> None:
    old = copy_cache(latents, tmp_path / "old")
    content = json.loads((old / CACHE_FILE).read_text())
    assert set(content.pop("files")) == {path.name for path in old.glob("*.safetensors")}
    (old / CACHE_FILE).write_text(json.dumps(content))
    words = position_words(range(20), seed=0)
    ours, theirs = (TokenCacheDataset(folder).examples(torch.arange(20), words, True) for folder in (old, latents))
    assert torch.equal(ours["latents"], theirs["latents"])


def test_a_shard_cut_short_while_training_is_told(latents: Path, tmp_path: Path) -> None:
    broken = copy_cache(latents, tmp_path / "broken")
    data, words = TokenCacheDataset(broken), position_words(range(500), seed=0)
    os.truncate(broken / shard_name(2), 1000)
    with pytest.raises(UserError, match="shard-00002.safetensors' was cut short; encode the images anew"):
        data.examples(torch.arange(500), words, True)


def test_a_kill_before_the_last_rename_costs_nothing(
    images: DigitsDataset, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = copy_cache(latents, tmp_path / "cache")  # replaced by --overwrite, and killed between two renames
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == ".cache.partial":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write_cache(output, make_autoencoder(), images)
    monkeypatch.undo()
    assert not output.exists()
    spec = TokenCacheDataset(latents).spec
    start_cache(output, spec)
    assert missing_shards(output, spec) == []
    finish_cache(output, spec, images)
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in latents.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_more_shards_than_files_may_be_open(latents: Path) -> None:
    """Memory does not grow with what is read, and no descriptor is held for each shard."""
    script = (
        "import resource, sys, numpy, torch\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from metrics.files import random_reads\n"
        "random_reads._MAX_OPEN = 8\n"
        "from generative.data.token_cache import TokenCacheDataset\n"
        "data = TokenCacheDataset(sys.argv[1], verify=False)\n"
        "read = lambda: data.examples(torch.randperm(len(data)), numpy.arange(len(data), dtype=numpy.uint64) << 59, True)\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "read()\n"
        "before = resident()\n"
        "for _ in range(5): read()\n"
        "print(resident() - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    folder = latents.with_name("many")
    if not folder.exists():
        write_cache(folder, make_autoencoder(), DigitsDataset("test", image_size=SIZE), shard_images=5)
    assert len(list(folder.glob("shard-*"))) == 100
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) < 4 * 2**20


def test_the_reader_holds_few_files(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metrics.files.random_reads._MAX_OPEN", 2)
    data = TokenCacheDataset(latents)
    reader = ShardReader(latents, data.spec)
    for index in (0, 100, 200, 300, 400, 0):
        rows = reader.read("mean", [index], [1])
        assert np.array_equal(rows[0], reader.shard(index // 100)["mean"][index % 100, 1])
    assert len(reader._files._open) == 2
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0
