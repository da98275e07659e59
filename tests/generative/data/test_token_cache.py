"""The cache: what is read is what was encoded, at any position, in any order; damage and mismatches are refused."""

from __future__ import annotations

import json
import pickle
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ModelMixin
from safetensors.numpy import load_file, save_file

from generative.core.errors import UserError
from generative.core.images import images_to_float
from generative.core.start_checks import check_fit
from generative.data import cache_writer
from generative.data.base import ImageDataset
from generative.data.cache_files import CACHE_FILE, CacheSpec, ShardReader, map_tensors, shard_name, smallest_type
from generative.data.cache_writer import CacheEncoder, check_output, finish_cache, missing_shards, start_cache, write_shards
from generative.data.digits import DigitsDataset
from generative.data.sampler import PositionDataset, build_loader, position_words
from generative.data.token_cache import TokenCacheDataset
from generative.tokenizers.base import fingerprint
from generative.tokenizers.encoded_objective import FrozenEncoder
from generative.tokenizers.latents import encode_images
from generative.tokenizers.pixel import PixelTokenizer


class FirstDigits(DigitsDataset):
    """The first 70 training digits."""

    def __init__(self, count: int = 70) -> None:
        super().__init__()
        whole = self.labels
        self.labels = whole[:count]
        self._cached = self.images_uint8()[:count]


def make_spec(encoder: ModelMixin, images: ImageDataset, **changes: Any) -> CacheSpec:
    tokens = isinstance(encoder, PixelTokenizer)
    spec = CacheSpec(
        kind="tokens" if tokens else "latents",
        encoder_class=type(encoder).__name__,
        encoder_config={},
        encoder_fingerprint=fingerprint(encoder),
        data_class=type(images).__name__,
        data_fingerprint=images.fingerprint,
        num_images=len(images),
        num_classes=images.num_classes,
        class_names=tuple(images.class_names),
        image_size=images.image_size,
        views="flip",
        crop_sizes=(),
        shape=(encoder.sequence_length,) if tokens else (4, 4, 4),
        num_codes=encoder.num_codes if tokens else None,
        dtype=smallest_type(encoder.num_codes) if tokens else "F32",
        has_std=not tokens,
        mixed_precision="no",
        shard_images=32,
    )
    return replace(spec, **changes)


def write_cache(output: Path, encoder: ModelMixin, images: ImageDataset, **changes: Any) -> CacheSpec:
    spec = make_spec(encoder, images, **changes)
    assert not check_output(output, spec, overwrite=False)
    start_cache(output, spec)
    encode = CacheEncoder(encoder, spec.dtype, batch_size=20, autocast=nullcontext)
    counts = list(write_shards(output, spec, missing_shards(output, spec), [images], encode))
    assert sum(counts) == len(images)
    finish_cache(output, spec, images)
    return spec


@pytest.fixture(scope="module")
def images() -> FirstDigits:
    return FirstDigits()


@pytest.fixture(scope="module")
def tokenizer() -> PixelTokenizer:
    return PixelTokenizer()


SCALINGS: dict[str, dict[str, Any]] = {
    "one shift": {"scaling_factor": 0.7, "shift_factor": 0.2},
    "by channel": {"scaling_factor": 0.7, "latents_mean": (0.1, -0.2, 0.3, 0.0), "latents_std": (0.5, 1.0, 2.0, 1.5)},
}


@pytest.fixture(scope="module", params=SCALINGS)
def autoencoder(request: pytest.FixtureRequest) -> AutoencoderKL:
    torch.manual_seed(0)
    network = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **SCALINGS[request.param], **KL_BLOCKS)
    return network.eval().requires_grad_(False)


KL_BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "sample_size": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, images: FirstDigits, tokenizer: PixelTokenizer) -> Path:
    path = tmp_path_factory.mktemp("caches") / "digits"
    write_cache(path, tokenizer, images)
    return path


def test_round_trip(folder: Path, images: FirstDigits, tokenizer: PixelTokenizer) -> None:
    """Every example of the cache is the encoding of the example that the images give at that position."""
    cached, plain = TokenCacheDataset(folder), images
    for flip in (True, False):
        positions = list(range(200))
        ours = PositionDataset(cached, seed=5, horizontal_flip=flip).__getitems__(positions)
        theirs = PositionDataset(plain, seed=5, horizontal_flip=flip).__getitems__(positions)
        assert torch.equal(ours["tokens"], tokenizer.encode(theirs["images"])) and ours["tokens"].dtype == torch.int64
        assert torch.equal(ours["class_labels"], theirs["class_labels"]) and "images" not in ours
    assert cached.num_classes == 10 and cached.image_size == 8 and cached.encoder_fingerprint == tokenizer.fingerprint
    assert cached.class_names == images.class_names
    assert cached.statistics["codes_used"] == len(tokenizer.encode(images_to_float(images.images_uint8())).unique())


def test_types_are_the_smallest() -> None:
    assert [smallest_type(n) for n in (2, 256, 257, 65536, 65537, 2**18)] == ["U8", "U8", "U16", "U16", "I32", "I32"]


def test_positions_alone_decide(folder: Path) -> None:
    """Batches, order and workers do not matter."""
    data = PositionDataset(TokenCacheDataset(folder), seed=1, horizontal_flip=True)
    together = data.__getitems__(list(range(64)))["tokens"]
    alone = torch.stack([data[position]["tokens"] for position in reversed(range(64))]).flip(0)
    assert torch.equal(together, alone)
    kwargs: dict[str, Any] = {"seed": 1, "batch_size": 16, "num_slots": 1, "rank": 0, "world_size": 1, "horizontal_flip": True}
    batches = iter(build_loader(TokenCacheDataset(folder), num_workers=1, **kwargs))
    assert torch.equal(torch.cat([next(batches)["tokens"] for _ in range(4)]), together)


def test_latents_are_drawn_as_from_images(tmp_path: Path, images: FirstDigits, autoencoder: AutoencoderKL) -> None:
    """With the same generator, a frozen encoder draws the same latents from the cache as from the same (mirrored) images."""
    write_cache(tmp_path / "kl", autoencoder, images)
    data = TokenCacheDataset(tmp_path / "kl")
    indices, words = torch.arange(10), position_words(range(10), seed=2)
    batch = data.examples(indices, words, flip=True)
    assert batch["latents"].dtype == batch["latent_std"].dtype == torch.float32 and batch["latents"].shape == (10, 4, 4, 4)
    again = data.examples(indices[3:4], words[3:4], flip=True)
    assert torch.equal(batch["latents"][3:4], again["latents"]) and torch.equal(batch["latent_std"][3:4], again["latent_std"])
    plain = images_to_float(images.images(indices))
    seen = torch.where(torch.from_numpy((words >> np.uint64(63)).astype(bool))[:, None, None, None], plain.flip(-1), plain)
    drawn = FrozenEncoder(autoencoder).encode(batch, torch.Generator().manual_seed(7))
    expected = encode_images(autoencoder, seen, torch.Generator().manual_seed(7))
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)
    assert drawn.dtype == torch.float32 and not torch.equal(drawn, batch["latents"])
    other = FrozenEncoder(autoencoder).encode(batch, torch.Generator().manual_seed(8))
    assert not torch.equal(drawn, other)


def test_half_precision_latents_round_only(tmp_path: Path, images: FirstDigits, autoencoder: AutoencoderKL) -> None:
    write_cache(tmp_path / "half", autoencoder, images, dtype="F16", views="plain")
    write_cache(tmp_path / "full", autoencoder, images, dtype="F32", views="plain")
    words = position_words(range(70), seed=0)
    halves, full = (TokenCacheDataset(tmp_path / name).examples(torch.arange(70), words, False) for name in ("half", "full"))
    for name in ("latents", "latent_std"):
        half = halves[name]
        assert half.dtype == torch.float16 and not torch.equal(half.float(), full[name])
        torch.testing.assert_close(half.float(), full[name], rtol=2e-3, atol=2e-3)


def test_images_of_a_cache(folder: Path, images: FirstDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.equal(TokenCacheDataset(folder).images_uint8(), images.images_uint8())  # so few are all kept
    monkeypatch.setattr("generative.data.cache_statistics.RANDOM_PREVIEW_BYTES", 5 * 3 * 8 * 8)
    monkeypatch.setattr("generative.data.cache_statistics.GRID_IMAGES_PER_CLASS", 2)
    write_cache(tmp_path / "few", PixelTokenizer(), images)
    few = TokenCacheDataset(tmp_path / "few")
    kept = few.indices_with_images()
    assert 20 <= len(kept) <= 27 and torch.equal(kept, kept.sort().values)
    assert torch.equal(few.images(kept), images.images(kept))
    for label in range(10):
        first = (images.labels == label).nonzero().flatten()[:2]
        assert torch.equal(few.images(first), images.images(first))
    missing = next(index for index in range(70) if index not in kept.tolist())
    with pytest.raises(UserError, match=f"image {missing} is not among them; give data.init_args.images"):
        few.image(missing)
    whole = TokenCacheDataset(tmp_path / "few", images=images)
    assert torch.equal(whole.images([missing]), images.images([missing])) and len(whole.indices_with_images()) == 70
    with pytest.raises(UserError, match="not those it was made from"):
        TokenCacheDataset(folder, images=DigitsDataset(split="test"))


def test_a_sent_cache_opens_its_files_anew(folder: Path) -> None:
    """What a worker that is started afresh gets holds no descriptor of this process."""
    reader = TokenCacheDataset(folder)._shards
    reader.read("tokens", [40, 3], [1, 0])
    sent = pickle.loads(pickle.dumps(reader))
    assert reader._files._open and not sent._files._open
    assert np.array_equal(sent.read("tokens", [40, 3], [1, 0]), reader.read("tokens", [40, 3], [1, 0]))


def test_another_tokenizer_is_refused_by_the_trainer(folder: Path, tokenizer: PixelTokenizer) -> None:
    data = TokenCacheDataset(folder)

    def objective(encoder: PixelTokenizer | None) -> Any:
        fingerprint = encoder and encoder.fingerprint
        return SimpleNamespace(num_classes=10, uses_labels=True, image_size=8, encoder_fingerprint=lambda: fingerprint)

    check_fit(objective(PixelTokenizer()), data)
    for other in (PixelTokenizer(num_levels=16), None):
        with pytest.raises(UserError, match=f"made with the tokenizer or autoencoder {tokenizer.fingerprint[:12]}"):
            check_fit(objective(other), data)


def copy_cache(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_ids_out_of_range_are_refused_at_open(folder: Path, tmp_path: Path) -> None:
    broken = copy_cache(folder, tmp_path)
    path = broken / shard_name(1)
    tensors = load_file(path)
    tensors["tokens"][3, 1, 5] = 17
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"shard 1 of the cache .* holds the id 17, outside 0\.\.16, the 17 codes"):
        TokenCacheDataset(broken)
    TokenCacheDataset(broken, verify=False)


def test_an_id_out_of_range_is_not_written(images: FirstDigits, tokenizer: PixelTokenizer) -> None:
    class Wrong(PixelTokenizer):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return super().encode(images) + 1

    encode = CacheEncoder(Wrong(), "U8", 64, nullcontext)
    with pytest.raises(UserError, match="what Wrong makes of the images holds the id 17"):
        encode(images.images_uint8()[:, None])


def damage_shard(folder: Path) -> None:
    path = folder / shard_name(1)
    path.write_bytes(path.read_bytes()[:-9])


def other_shape(folder: Path) -> None:
    save_file({"tokens": np.zeros((2, 2, 64), np.uint8)}, folder / shard_name(0))


def edit(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        content = json.loads((folder / CACHE_FILE).read_text())
        content.update(changes)
        (folder / CACHE_FILE).write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_shard, "shard-00001.safetensors' is missing or damaged"),
        (lambda folder: (folder / shard_name(2)).unlink(), "shard-00002.safetensors' is missing or damaged"),
        (other_shape, "holds other tensors than cache.json says"),
        (lambda folder: (folder / CACHE_FILE).unlink(), "holds no complete cache"),
        (lambda folder: (folder / CACHE_FILE).write_text("{"), "is damaged"),
        (edit(format_version=2), "format version 2"),
        (edit(kind="pixels"), "is damaged .kind 'pixels'"),
        (edit(views="five"), "views must be one of"),
        (edit(num_images=71), "other tensors|holds 70 labels for 71 images"),
        (edit(surprise=1), "is damaged"),
    ],
)
def test_damage_is_named(folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    broken = copy_cache(folder, tmp_path)
    change(broken)
    with pytest.raises(UserError, match=message):
        TokenCacheDataset(broken)


def test_an_unfinished_cache_goes_on(tmp_path: Path, images: FirstDigits, tokenizer: PixelTokenizer, folder: Path) -> None:
    output = tmp_path / "cache"
    spec = make_spec(tokenizer, images)
    start_cache(output, spec)
    encode = CacheEncoder(tokenizer, spec.dtype, 20, nullcontext)
    steps = write_shards(output, spec, missing_shards(output, spec), [images], encode)
    for _ in range(5):  # 4 batches of 10, 10, 10 and 2 images, and one of the second shard: killed there
        next(steps)
    del steps
    assert missing_shards(output, spec) == [1, 2] and not output.exists()
    first = map_tensors(cache_writer.partial_folder(output) / shard_name(0))["tokens"].copy()

    other = make_spec(PixelTokenizer(num_levels=16), images)
    with pytest.raises(UserError, match="unfinished cache of another tokenizer or autoencoder .*--overwrite"):
        check_output(output, other, overwrite=False)
    assert not check_output(output, spec, overwrite=False)
    start_cache(output, spec)
    assert missing_shards(output, spec) == [1, 2]
    list(write_shards(output, spec, [1, 2], [images], encode))
    finish_cache(output, spec, images)
    assert check_output(output, spec, overwrite=False) and not cache_writer.partial_folder(output).exists()
    assert np.array_equal(ShardReader(output, spec).shard(0)["tokens"], first)
    assert sorted(p.name for p in output.iterdir()) == sorted(p.name for p in folder.iterdir())
    for path in folder.glob("*.safetensors"):
        assert path.read_bytes() == (output / path.name).read_bytes()


def test_another_cache_is_not_overwritten(folder: Path, tmp_path: Path, images: FirstDigits, tokenizer: PixelTokenizer) -> None:
    kept = copy_cache(folder, tmp_path)
    other = make_spec(PixelTokenizer(num_levels=16), images)
    with pytest.raises(UserError, match="already holds a cache of another tokenizer or autoencoder .* or --overwrite"):
        check_output(kept, other, overwrite=False)
    with pytest.raises(UserError, match="already holds a cache with views flip, this one would have plain"):
        check_output(kept, make_spec(tokenizer, images, views="plain"), overwrite=False)
    with pytest.raises(UserError, match="already holds a cache of other images"):
        check_output(kept, make_spec(tokenizer, images, data_fingerprint="x"), overwrite=False)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "file").write_text("")
    with pytest.raises(UserError, match="exists and is no cache of ours"):
        check_output(foreign, other, overwrite=True)
    # Replaced when the new one is whole, not before.
    assert not check_output(kept, other, overwrite=True)
    start_cache(kept, other)
    encode = CacheEncoder(PixelTokenizer(num_levels=16), other.dtype, 64, nullcontext)
    list(write_shards(kept, other, missing_shards(kept, other), [images], encode))
    assert TokenCacheDataset(kept).spec.num_codes == 17
    finish_cache(kept, other, images)
    assert TokenCacheDataset(kept).spec.num_codes == 16
