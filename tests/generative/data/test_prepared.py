"""Prepared shards: exact images, the same bytes for any number of processes and kills, and a sentence for what is wrong."""

from __future__ import annotations

import errno
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from generative.core.errors import RunError, UserError
from generative.data import ImageFolderDataset, PreparedDataset, shard_writer
from generative.data.aspect import AspectDataset
from generative.data.base import ImageDataset
from generative.data.decode import image_to_tensor
from generative.data.finish import finish_batch
from generative.data.open_images import open_images
from generative.data.random_crop import RandomCropDataset
from generative.data.shard_check import check_shards
from generative.data.shard_folder import ShardFolder
from generative.data.shard_images import ShardSettings
from generative.data.shard_writer import finish_shards, write_shards
from generative.data.transforms import center_crop, random_resized_crop, short_side_crop
from metrics.files.shards import read_index
from metrics.sources.open import open_source
from metrics.sources.tar import TarSource

COUNT = 11


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven smooth images of several sizes in two classes, JPEG and PNG, one lying on its side."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        folder = root / ("cat", "dog")[index % 2]
        folder.mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        image = small.resize((20 + 4 * index, 16 + index), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if index == 3:
            exif[0x0112] = 6
        image.save(folder / f"{index:02d}.{'png' if index % 3 == 0 and index != 3 else 'jpg'}", exif=exif)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / "cat" / "square.jpg", quality=60)
    return root


def prepare(source: ImageDataset, output: Path, workers: int = 0, **settings: Any) -> Path:
    folder = ShardFolder(source, ShardSettings(**{"resolution": 16, "shard_images": 4, **settings}), output)
    for _ in write_shards(folder, folder.start(), workers):
        pass
    finish_shards(folder)
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("encode", ["raw", "webp-lossless", "jpeg"])
def test_images_are_those_of_the_source(photos: Path, tmp_path: Path, encode: str) -> None:
    live = ImageFolderDataset(photos, 16)
    prepared = PreparedDataset(prepare(open_images(photos), tmp_path / "out", encode=encode))
    assert (len(prepared), prepared.class_names, prepared.image_size) == (COUNT + 1, ["cat", "dog"], 16)
    assert torch.equal(prepared.labels, live.labels)
    error = (prepared.images_uint8().int() - live.images_uint8().int()).abs().float()
    assert error.max() == 0 if encode != "jpeg" else error.mean() < 3
    assert torch.equal(prepared.images([7, 2, 7]), torch.stack([prepared.image(index) for index in (7, 2, 7)]))
    batch = finish_batch(prepared.examples(torch.tensor([1, 4]), np.array([2**63, 0], dtype=np.uint64), True))
    assert torch.equal(batch["images"][0], (prepared.image(1).flip(-1).float() / 127.5 - 1).clamp(-1, 1))
    again = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(again.image(5), prepared.image(5)) and again.fingerprint == prepared.fingerprint


def test_a_jpeg_file_that_fits_is_kept_byte_by_byte(photos: Path, tmp_path: Path) -> None:
    prepared = PreparedDataset(prepare(open_images(photos), tmp_path / "out"))
    (place,) = (i for i in range(COUNT + 1) if prepared.read_encoded(i) == (photos / "cat" / "square.jpg").read_bytes())
    assert torch.equal(prepared.image(place), image_to_tensor(Image.open(photos / "cat" / "square.jpg")))


def test_whole_pictures_are_kept_for_crops_of_training(photos: Path, tmp_path: Path) -> None:
    source = ImageFolderDataset(photos, 16)
    folder = prepare(open_images(photos), tmp_path / "out", crop="none", resolution=None)
    with pytest.raises(UserError, match="image_size"):
        PreparedDataset(folder)
    prepared = PreparedDataset(folder, image_size=16)
    jpegs = [index for index in range(len(source)) if source.source_name(index).endswith(".jpg")]
    kept = [index for index in jpegs if prepared.read_encoded(index) == source.read_encoded(index)]
    assert len(kept) == len(jpegs) - 1  # but for the one that is turned upright
    assert torch.equal(prepared.images(kept), source.images(kept))
    for wrap in (lambda images: RandomCropDataset(images, 20), lambda images: AspectDataset(images, 4, 30, [1.0, 2.0])):
        ours, theirs = (wrap(images).examples(torch.tensor(kept), np.arange(len(kept), dtype=np.uint64) << 50, False)["images"]
                        for images in (prepared, source))  # fmt: skip
        assert torch.equal(ours, theirs)
    small = prepare(open_images(photos), tmp_path / "small", crop="none", resolution=18)
    assert max(min(PreparedDataset(small, 16).load_picture(index).size) for index in range(COUNT + 1)) == 18


def test_crops(photos: Path, tmp_path: Path) -> None:
    source = open_images(photos)
    assert torch.equal(
        PreparedDataset(prepare(source, tmp_path / "center", crop="center", encode="raw")).image(2),
        image_to_tensor(short_side_crop(source.load_picture(2), 16)),
    )
    one = PreparedDataset(prepare(source, tmp_path / "one", crop="random-resized", encode="raw", seed=1)).images_uint8()
    same = PreparedDataset(prepare(source, tmp_path / "same", crop="random-resized", encode="raw", seed=1, shard_images=5))
    other = PreparedDataset(prepare(source, tmp_path / "other", crop="random-resized", encode="raw", seed=2))
    assert torch.equal(one, same.images_uint8()) and not torch.equal(one, other.images_uint8())


def test_torchvisions_crop_is_ours() -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    rng = np.random.default_rng(1)
    theirs = Compose([Resize(24, InterpolationMode.BICUBIC), CenterCrop(24)])
    for width, height in ((40, 37), (37, 40), (24, 31), (25, 24), (100, 33)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert np.array_equal(np.asarray(short_side_crop(image, 24)), np.asarray(theirs(image)))


def test_random_resized_crops_stay_within_their_ranges() -> None:
    ramp = np.zeros((60, 80, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(80) * 3, np.arange(60)[:, None] * 4
    generator = torch.Generator().manual_seed(0)
    areas = []
    for _ in range(50):
        crop = np.asarray(random_resized_crop(Image.fromarray(ramp), 32, generator)).astype(float)
        width, height = np.ptp(crop[..., 0]) / 3, np.ptp(crop[..., 1]) / 4
        areas.append(width * height / 4800)
    assert 0.02 < min(areas) < 0.3 and 0.7 < max(areas) <= 1
    strip = random_resized_crop(Image.new("RGB", (400, 4)), 8, generator)
    assert strip.size == (8, 8)


def test_shards_do_not_depend_on_processes_or_kills(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_images(photos)
    expected = contents(prepare(source, tmp_path / "one"))
    assert contents(prepare(source, tmp_path / "two", workers=2)) == expected
    folder = ShardFolder(source, ShardSettings(16, shard_images=4), tmp_path / "killed")
    monkeypatch.setattr(shard_writer, "BATCH_IMAGES", 2)
    steps = write_shards(folder, folder.start(), 0)
    for _ in range(3):  # in the middle of the second shard
        next(steps)
    (folder.partial / ".shard-00001.tar.partial").write_bytes(b"what a kill leaves")
    again = ShardFolder(source, ShardSettings(16, shard_images=4), tmp_path / "killed")
    assert again.start() == [1, 2] and not (tmp_path / "killed").exists()
    steps.close()
    assert contents(prepare(source, tmp_path / "killed")) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "one", "two"]
    assert ShardFolder(source, ShardSettings(16, shard_images=4), tmp_path / "killed").is_complete


def test_corrupt_images_are_listed_and_no_other_is_lost(photos: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "cat" / "02.jpg").write_bytes((photos / "cat" / "02.jpg").read_bytes()[:200])
    (tmp_path / "photos" / "dog" / "05.jpg").write_text("no image")
    folder = ShardFolder(open_images(tmp_path / "photos"), ShardSettings(16, shard_images=4), tmp_path / "out")
    assert sum(write_shards(folder, folder.start(), 2)) == COUNT + 1
    assert [Path(entry["name"]).name for entry in folder.left_out()] == ["02.jpg", "05.jpg"]
    assert all("truncated or corrupt" in entry["reason"] for entry in folder.left_out())
    assert folder.start() == []
    index = finish_shards(folder)
    prepared, whole = PreparedDataset(tmp_path / "out"), PreparedDataset(prepare(open_images(photos), tmp_path / "whole"))
    bad = [i for i in range(COUNT + 1) if Path(open_images(photos).source_name(i)).name in ("02.jpg", "05.jpg")]
    others = [i for i in range(COUNT + 1) if i not in bad]
    assert torch.equal(prepared.images_uint8(), whole.images(others)) and torch.equal(prepared.labels, whole.labels[others])
    assert len(index.left_out) == 2 and "could not be read" in next(iter(prepared.left_out))
    assert "2 images that could not be read when the shards were made were left out" in open_source(tmp_path / "out").notes[0]


def test_other_tools_read_the_shards(photos: Path, tmp_path: Path) -> None:
    prepared = PreparedDataset(prepare(open_images(photos), tmp_path / "tar"))
    with tarfile.open(tmp_path / "tar" / "shard-00001.tar") as archive:
        names = archive.getnames()
        assert names[:4] == ["000004.jpg", "000004.cls", "000005.jpg", "000005.cls"]
        image = Image.open(io.BytesIO(archive.extractfile(names[2]).read()))  # type: ignore[union-attr]
        assert torch.equal(image_to_tensor(image), prepared.image(5))
        assert archive.extractfile(names[3]).read() == str(prepared.label(5)).encode()  # type: ignore[union-attr]
    assert TarSource(tmp_path / "tar" / "shard-00001.tar").labels == [str(label) for label in prepared.labels[4:8].tolist()]
    prepare(open_images(photos), tmp_path / "raw", encode="raw")
    array = np.load(tmp_path / "raw" / "shard-00002.npy", mmap_mode="r")
    assert array.shape == (4, 3, 16, 16)
    assert np.array_equal(array[1], PreparedDataset(tmp_path / "raw").image(9).numpy())


@pytest.mark.parametrize("encode", ["raw", "jpeg"])
def test_scores_read_the_folder(photos: Path, tmp_path: Path, encode: str) -> None:
    prepared = PreparedDataset(prepare(open_images(photos), tmp_path / "out", encode=encode))
    source = open_source(tmp_path / "out")
    batches = list(source.batches(5, 1, 2, 11))
    assert [index for batch in batches for index in batch.indices] == list(range(2, 11))
    assert torch.equal(torch.stack([image for batch in batches for image in batch.images]), prepared.images(range(2, 11)))
    labels = [label for batch in batches for label in batch.labels or []]
    assert source.named(labels) == [prepared.class_names[label] for label in prepared.labels[2:11]]
    assert len(dict(source.contents(0, 12))) == 12 and source.identity() == open_source(tmp_path / "out").identity()


def test_memory_does_not_grow_with_the_images_read(tmp_path: Path) -> None:
    root = tmp_path / "photos" / "only"
    root.mkdir(parents=True)
    for index in range(8):
        Image.new("RGB", (1024, 1024), (index, 0, 0)).save(root / f"{index}.jpg")
    prepared = PreparedDataset(prepare(open_images(root.parent), tmp_path / "out", encode="raw", resolution=1024))
    prepared.image(0)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    for index in range(8):
        assert prepared.image(index).shape == (3, 1024, 1024)  # 24 MiB in all
    assert resident() - before < 8 * 2**20


def test_what_is_in_the_way_is_refused(photos: Path, tmp_path: Path) -> None:
    source = open_images(photos)
    prepare(source, tmp_path / "out")
    settings = ShardSettings(16, shard_images=4)
    with pytest.raises(UserError, match="with resolution 16, these would have 8; choose another folder, or --overwrite"):
        ShardFolder(source, ShardSettings(8, shard_images=4), tmp_path / "out")
    with pytest.raises(UserError, match="of other images \\(12 of ImageFolderDataset"):
        ShardFolder(PreparedDataset(tmp_path / "out"), settings, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and holds no prepared images"):
        ShardFolder(source, settings, tmp_path / "mine", overwrite=True)
    started = ShardFolder(source, settings, tmp_path / "new")
    started.start()
    with pytest.raises(UserError, match="holds unfinished shards with encode jpeg, these would have raw"):
        ShardFolder(source, ShardSettings(16, encode="raw"), tmp_path / "new")
    replaced = ShardFolder(source, ShardSettings(8, encode="raw"), tmp_path / "out", overwrite=True)
    list(write_shards(replaced, replaced.start(), 0))
    assert PreparedDataset(tmp_path / "out").image_size == 16  # the old ones stay until the new ones are whole
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for refused in (
        lambda: finish_shards(replaced),
        lambda: ShardFolder(source, ShardSettings(8, encode="raw"), tmp_path / "out", overwrite=True),
    ):
        with pytest.raises(UserError, match=r"holds 'notes.txt' beside its shards, which would be deleted; move it away"):
            refused()
    (tmp_path / "out" / "notes.txt").unlink()
    (tmp_path / "out").rename(tmp_path / ".out.previous.partial")  # a kill between the two renames
    finish_shards(replaced)
    assert PreparedDataset(tmp_path / "out").image_size == 8
    assert not (tmp_path / ".out.previous.partial").exists()


def test_a_link_is_followed_and_a_mounted_disk_is_refused(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, place = open_images(photos), tmp_path / "disk" / "out"
    place.mkdir(parents=True)
    (tmp_path / "link").symlink_to(place)
    prepare(source, tmp_path / "link")
    again = ShardFolder(source, ShardSettings(8), tmp_path / "link", overwrite=True)
    list(write_shards(again, again.start(), 0))
    finish_shards(again)
    assert (tmp_path / "link").is_symlink() and PreparedDataset(tmp_path / "link").image_size == 8
    assert [path.name for path in place.parent.iterdir()] == ["out"]
    monkeypatch.setattr(Path, "is_mount", lambda path: path == place)
    with pytest.raises(UserError, match="is where a disk is mounted"):
        ShardFolder(source, ShardSettings(8), place)


def test_pictures_longer_than_a_format_allows_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    Image.new("RGB", (16_400, 1)).save(tmp_path / "photos" / "a" / "long.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "a" / "short.png")
    settings = ShardSettings(None, "none", "webp-lossless")
    folder = ShardFolder(open_images(tmp_path / "photos"), settings, tmp_path / "out")
    list(write_shards(folder, folder.start(), 0))
    (entry,) = folder.left_out()
    assert "long.png' cannot be stored as webp-lossless, which takes sides up to 16,383" in entry["reason"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": None}, "crop adm needs a resolution"),
        ({"resolution": 0}, "resolution must be at least 1"),
        ({"resolution": 8, "crop": "none", "encode": "raw"}, "raw pixels are of one size"),
        ({"resolution": 8, "quality": 101}, "quality must be between 1 and 100"),
        ({"resolution": 8, "shard_images": 0}, "shard_images must be at least 1"),
        ({"resolution": 8, "crop": "middle"}, "crop must be one of"),
        ({"resolution": 8, "encode": "png"}, "encode must be one of"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShardSettings(**settings)


def test_a_full_disk_keeps_what_is_whole(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_images(photos)
    expected = contents(prepare(source, tmp_path / "one"))
    folder = ShardFolder(source, ShardSettings(16, shard_images=4), tmp_path / "out")
    inner, calls = shard_writer.flush_to_disk, []

    def flush(path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        inner(path)

    monkeypatch.setattr(shard_writer, "flush_to_disk", flush)
    with pytest.raises(RunError, match="no space left on the disk while writing .*; 1 of 3 shards are whole and kept: free"):
        list(write_shards(folder, folder.start(), 0))
    assert [path.name for path in folder.partial.glob("*.tar")] == ["shard-00000.tar"] and not list(
        folder.partial.glob(".*part*")
    )
    assert contents(prepare(source, tmp_path / "out")) == expected
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="the pixels take .* GiB left"):
        ShardFolder(source, ShardSettings(16, encode="raw"), tmp_path / "raw").start()


def test_a_killed_worker_is_told(photos: Path, tmp_path: Path) -> None:
    import os
    import signal

    class Deadly(ImageFolderDataset):
        def read_encoded(self, index: int) -> bytes:
            if index == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read_encoded(index)

    folder = ShardFolder(Deadly(photos, 16, verify=False), ShardSettings(16, shard_images=4), tmp_path / "out")
    with pytest.raises(RunError, match="a worker process was killed.* of 3 shards are whole and kept"):
        list(write_shards(folder, folder.start(), 1))


def test_damage_is_found(photos: Path, tmp_path: Path) -> None:
    folder = prepare(open_images(photos), tmp_path / "out")
    index = read_index(folder)
    assert [found for _, found in check_shards(folder, index, decode=True)] == [[], [], []]
    shard = folder / "shard-00001.tar"
    good = shard.read_bytes()
    damaged = bytearray(good)
    damaged[int(index.offsets[5]) + 30] ^= 255
    shard.write_bytes(damaged)
    assert "was altered" in [fault for _, found in check_shards(folder, index) for fault in found][0]
    damaged = bytearray(good)
    block = int(index.offsets[5]) + -(-int(index.lengths[5]) // 512) * 512 + 512
    damaged[block : block + 1] = b"7"
    shard.write_bytes(damaged)
    faults = [fault for _, found in check_shards(folder, index) for fault in found]
    assert len(faults) == 2 and "is of class '7' in the tar" in faults[1] and "image 1 of" in faults[1]
    shard.write_bytes(good)
    last = int(index.ends[1]) - 1
    offsets = index.offsets.copy()
    offsets[last] = len(good) - index.lengths[last]
    faults = [fault for _, found in check_shards(folder, replace(index, offsets=offsets)) for fault in found]
    assert faults == [f"image 3 of {shard} has no class behind it"]
    shard.write_bytes(good[:-512])
    with pytest.raises(UserError, match="shard .*shard-00001.tar has .* bytes and the index says .*: prepare the images anew"):
        PreparedDataset(folder)
    shard.unlink()
    with pytest.raises(UserError, match="shard .*shard-00001.tar is missing"):
        PreparedDataset(folder)


def test_an_index_that_lies_is_refused(photos: Path, tmp_path: Path) -> None:
    pixels = prepare(open_images(photos), tmp_path / "pixels", encode="raw")
    arrays = dict(np.load(pixels / "index.npz"))
    np.savez(pixels / "index.npz", **{**arrays, "lengths": arrays["lengths"] - 1})
    with pytest.raises(UserError, match="damaged .*pixels of another number than images of side 16 have"):
        PreparedDataset(pixels)
    folder = prepare(open_images(photos), tmp_path / "out")
    with pytest.raises(UserError, match="has 2 classes, and num_classes of the data is 3"):
        PreparedDataset(folder, num_classes=3)
    arrays = dict(np.load(folder / "index.npz"))
    np.savez(folder / "index.npz", **{**arrays, "offsets": arrays["offsets"] + 10**6})
    with pytest.raises(UserError, match="index of .* is damaged .*beyond its shard"):
        PreparedDataset(folder)
    most = np.full_like(arrays["offsets"], 2**63 - 1)
    np.savez(folder / "index.npz", **{**arrays, "offsets": most, "lengths": most})  # whose sum is -2 in int64
    with pytest.raises(UserError, match="index of .* is damaged .*beyond its shard"):
        PreparedDataset(folder)
    np.savez(folder / "index.npz", **{**arrays, "labels": arrays["labels"] + 1})
    with pytest.raises(UserError, match="damaged .*class label outside 0..1"):
        PreparedDataset(folder)
    (folder / "index.npz").unlink()
    with pytest.raises(UserError, match="index.npz is missing"):
        PreparedDataset(folder)
    np.savez(folder / "index.npz", **arrays)
    content = json.loads((folder / "index.json").read_text())
    shards = [{**shard, "images": 10**30} for shard in content["shards"]]
    for lie in ({"image_size": "16"}, {"image_size": -1}, {"left_out": 3}, {"shards": shards}):
        (folder / "index.json").write_text(json.dumps({**content, **lie}))
        with pytest.raises(UserError, match="index of .* is damaged"):
            PreparedDataset(folder)
    (folder / "index.json").write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        PreparedDataset(folder)
    with pytest.raises(UserError, match="holds no prepared images"):
        PreparedDataset(photos)
    with pytest.raises(UserError, match="does not exist"):
        PreparedDataset(photos / "nowhere")


def test_center_crop_is_what_adm_stores(photos: Path, tmp_path: Path) -> None:
    source = open_images(photos)
    again = prepare(PreparedDataset(prepare(source, tmp_path / "a", encode="raw")), tmp_path / "b", encode="raw", resolution=8)
    expected = image_to_tensor(center_crop(center_crop(source.load_picture(4), 16), 8))
    assert torch.equal(PreparedDataset(again).image(4), expected)
