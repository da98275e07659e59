"""Images as people have them: archives, ImageNet's validation folder, downsampled ImageNet, CIFAR-100."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from generative.core.errors import UserError
from generative.data import ImageFolderDataset, PreparedDataset
from generative.data.archive import ArchiveDataset
from generative.data.imagenet import ImageNetValidationDataset, class_words, imagenet_wnids, name_classes, read_devkit
from generative.data.open_images import open_images
from generative.data.pixel_batches import CIFAR100Dataset, DownsampledImageNetDataset
from generative.data.shard_folder import ShardFolder
from generative.data.shard_images import ShardSettings
from generative.data.shard_writer import finish_shards, write_shards

WNIDS = ["n01440764", "n01443537", "n02012849", "n03126707"]


def picture(index: int, size: int = 12) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for index in range(6):
        place = root / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.png").write_bytes(picture(index))
    return root


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """A kit of four classes whose own numbers run against the sorted ids, and a parent synset beside them."""
    data = tmp_path / "kit" / "data"
    data.mkdir(parents=True)
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("num_children", "i4")]
    rows = [(number + 1, wnid, 0) for number, wnid in enumerate(reversed(WNIDS))] + [(5, "n00001740", 4)]
    savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n4\n4\n3\n")
    return tmp_path / "kit"


def test_archives_give_the_images_of_their_folder(folder: Path, tmp_path: Path) -> None:
    expected = ImageFolderDataset(folder, 12)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(folder, "photos")
    for name in ("photos.zip", "photos.tar"):
        images = ArchiveDataset(tmp_path / name, 12)
        order = [next(i for i in range(6) if torch.equal(images.image(i), expected.image(j))) for j in range(6)]
        assert sorted(order) == list(range(6)) and torch.equal(images.labels[order], expected.labels)
        assert (images.class_names, images.num_turned) == (["a", "b"], 0) and name in images.source_name(3)
        assert type(open_images(tmp_path / name)) is ArchiveDataset
    with pytest.raises(UserError, match="has 2 classes, and num_classes of the data is 3"):
        ArchiveDataset(tmp_path / "photos.zip", 12, num_classes=3)
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.add(folder, "photos")
    with pytest.raises(UserError, match="compressed as a whole .* run gunzip first"):
        open_images(tmp_path / "photos.tar.gz")
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        archive.writestr("one.png", picture(0))
    with pytest.raises(UserError, match="flat.zip has none .*lies in no folder of a class"):
        open_images(tmp_path / "flat.zip")
    (tmp_path / "no.zip").write_text("text")
    with pytest.raises(UserError, match="is not a zip file"):
        open_images(tmp_path / "no.zip")


def test_webdataset_shards_and_a_damaged_member(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard:04d}.tar", "w") as archive:
            for index in range(3 * shard, 3 * shard + 3):
                content = picture(index) if index != 4 else picture(4)[:60]
                for name, data in ((f"{index:06d}.png", content), (f"{index:06d}.cls", str(index % 2).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    images = open_images(tmp_path / "shards")
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1] and images.read_encoded(5) == picture(5)
    with pytest.raises(UserError, match="000004.png in .*0001.tar"):
        ArchiveDataset(tmp_path / "shards", 12, verify=True)
    shards = ShardFolder(images, ShardSettings(12, encode="raw"), tmp_path / "out")
    list(write_shards(shards, shards.start(), 2))
    assert [entry["name"].rpartition("/")[2] for entry in shards.left_out()] == ["0001.tar"]
    finish_shards(shards)
    assert len(PreparedDataset(tmp_path / "out")) == 5


def test_hidden_archives_are_no_archives(folder: Path, tmp_path: Path) -> None:
    """What macOS writes beside files is neither read, nor refused for its compression, nor a part of the fingerprint."""
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "photos.tar", "w") as archive:
        archive.add(folder, "photos")
    before = open_images(tmp_path / "tars").fingerprint
    for name in ("._photos.tgz", "._photos.tar", ".DS_Store"):
        (tmp_path / "tars" / name).write_bytes(b"Mac OS X")
    images = open_images(tmp_path / "tars")
    assert len(images) == 6 and images.fingerprint == before


def test_folders_with_files_called_as_batches_are_class_folders(folder: Path) -> None:
    (folder / "val_data.txt").write_text("notes")
    (folder / "val_data").write_text("a list of files")
    (folder / "train_data_batch_1").mkdir()
    (folder / "train_data_batch_1" / "0.png").write_bytes(picture(0))
    images = open_images(folder)
    assert type(images) is ImageFolderDataset and images.class_names == ["a", "b", "train_data_batch_1"]


def test_small_files_that_unpack_to_gigabytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.ones(4000, int)
    np.savez_compressed(tmp_path / "val_data", data=np.zeros((4000, 768), np.uint8), labels=labels)
    assert len(open_images(tmp_path, "test")) == 4000
    monkeypatch.setattr("metrics.files.arrays._FREE_BYTES", 1 << 20)
    with pytest.raises(
        UserError, match=r"val_data.npz holds an array of 0.0 GiB in 0.0 MiB, more than .*by numpy.savez, if it is"
    ):
        open_images(tmp_path, "test")
    np.savez(tmp_path / "val_data", data=np.zeros((4000, 768), np.uint8), labels=labels)
    assert len(open_images(tmp_path, "test")) == 4000


def test_zip_files_are_read_by_several_processes_at_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for index in range(150):
            archive.writestr(f"{'ab'[index % 2]}/{index:03d}.png", picture(index))
    images = open_images(tmp_path / "photos.zip")
    shards = ShardFolder(images, ShardSettings(12, encode="raw"), tmp_path / "out")
    list(write_shards(shards, shards.start(), 2))
    assert shards.left_out() == []
    finish_shards(shards)
    prepared = PreparedDataset(tmp_path / "out").images_uint8()
    whole = ArchiveDataset(tmp_path / "photos.zip", 12)
    assert torch.equal(prepared, whole.images_uint8())


def test_validation_images_take_the_kits_classes(devkit: Path, tmp_path: Path) -> None:
    kit = read_devkit(devkit)
    assert kit.wnids == WNIDS and kit.label_of.tolist() == [-1, 3, 2, 1, 0] and kit.validation.tolist() == [3, 2, 0, 0, 1]
    root = tmp_path / "val"
    root.mkdir()
    for number in (3, 1, 2, 5, 4):
        (root / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(picture(number))
    images = ImageNetValidationDataset(root, devkit / "data", 12)
    assert images.labels.tolist() == [3, 2, 0, 0, 1] and images.source_name(2).endswith("00000003.JPEG")
    assert np.array_equal(images.image(4)[:, 0, 0].numpy(), np.asarray(Image.open(io.BytesIO(picture(5))))[0, 0])
    name_classes(images, None)
    assert images.class_names == ["tench", "goldfish", "crane (2)", "crane (3)"]
    assert "4 of ImageNet's 1,000 classes are there, without n01484850" in images.notices[0]
    with pytest.raises(UserError, match="belongs|leave it out"):
        open_images(tmp_path / "val" / "..", "test", devkit)
    (root / "copy_val_00000003.png").write_bytes(picture(9))
    with pytest.raises(UserError, match="holds validation image 3 twice, .*keep one of them"):
        open_images(root, devkit=devkit)
    (root / "copy_val_00000003.png").unlink()
    (root / "ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(UserError, match="holds 4 of the 5 validation images; the first that is missing is .*00000003.JPEG"):
        open_images(root, devkit=devkit)
    (root / "cat.jpg").write_bytes(picture(0))
    with pytest.raises(UserError, match="cat.jpg' is no validation image"):
        open_images(root, devkit=devkit)
    with pytest.raises(UserError, match="is no development kit of ImageNet; expected data/meta.mat"):
        open_images(root, devkit=tmp_path)
    (devkit / "data" / "meta.mat").write_text("no matrix")
    with pytest.raises(UserError, match="kit .* cannot be read"):
        read_devkit(devkit)


def test_words_for_imagenets_classes() -> None:
    words = class_words(imagenet_wnids())
    assert len(set(words)) == 1000 and words[0] == "tench" and words[134] == "crane (134)" and words[517] == "crane (517)"
    assert not any("," in word or "_" in word for word in words)


def test_names_may_be_given(folder: Path, tmp_path: Path) -> None:
    images = open_images(folder)
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    name_classes(images, str(tmp_path / "names.txt"))
    assert images.class_names == ["ant", "bee"]
    name_classes(images, "source")
    assert images.class_names == ["ant", "bee"]
    with pytest.raises(UserError, match="have 2 classes, and there are 1000 names"):
        name_classes(images, "imagenet")
    with pytest.raises(UserError, match="must be imagenet, source or a text file"):
        name_classes(images, "nowhere.txt")


@pytest.mark.parametrize("kind", ["npz", "compressed", "pickle"])
def test_downsampled_imagenet(devkit: Path, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "small"
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    labels = np.array([1, 2, 3, 4, 4, 1])
    for part in range(2):
        rows = slice(3 * part, 3 * part + 3)
        content = {"data": pixels[rows].reshape(3, -1), "labels": labels[rows], "mean": np.zeros(192)}
        path = root / f"train_data_batch_{part + 1}"
        if kind == "pickle":
            path.write_bytes(pickle.dumps({**content, "labels": labels[rows].tolist()}, protocol=2))
        else:
            (np.savez if kind == "npz" else np.savez_compressed)(path, **content)
    images = DownsampledImageNetDataset(root, devkit=devkit)
    assert np.array_equal(images.images_uint8().numpy(), pixels)
    assert images.labels.tolist() == [3, 2, 1, 0, 0, 3] and images.class_names == WNIDS
    assert "row 1" in images.source_name(4) and DownsampledImageNetDataset(root, image_size=4).image(0).shape == (3, 4, 4)
    assert isinstance(images._planes[0], np.memmap) == (kind == "npz")
    plain = open_images(root)
    assert plain.labels.tolist() == [0, 1, 2, 3, 3, 0] and plain.num_classes == 1000 and "development kit" in plain.notices[0]
    shards = ShardFolder(images, ShardSettings(8, encode="raw"), tmp_path / "out")
    list(write_shards(shards, shards.start(), 0))
    finish_shards(shards)
    assert torch.equal(PreparedDataset(tmp_path / "out").images_uint8(), images.images_uint8())
    with pytest.raises(UserError, match="no test split of downsampled ImageNet .* expected val_data"):
        open_images(root, "test")
    suffix = "" if kind == "pickle" else ".npz"
    (root / f"train_data_batch_1{suffix}").unlink()
    with pytest.raises(UserError, match="lacks train_data_batch_1; unpack it again"):
        open_images(root)


def test_batches_that_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "val_data", images=np.zeros(3))
    with pytest.raises(UserError, match="expected data and labels"):
        open_images(tmp_path, "test")
    np.savez(tmp_path / "val_data", data=np.zeros((2, 10), np.uint8), labels=np.ones(2, int))
    with pytest.raises(UserError, match=r"no 'data' of shape \(N, 3 S\^2\)"):
        open_images(tmp_path, "test")
    np.savez(tmp_path / "val_data", data=np.zeros((2, 12), np.uint8), labels=np.array([0, 1]))
    with pytest.raises(UserError, match="class numbers of downsampled ImageNet are 1 to 1000, got 0 to 1"):
        open_images(tmp_path, "test")
    np.savez_compressed(tmp_path / "val_data", data=np.zeros((0, 12), np.uint8), labels=np.zeros(0, int))
    with pytest.raises(UserError, match="holds no images"):
        open_images(tmp_path, "test")
    (tmp_path / "val_data.npz").unlink()
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": np.zeros((1, 12), np.uint8), "labels": [2**70]}))
    with pytest.raises(UserError, match="class number beyond any"):
        open_images(tmp_path, "test")


def test_class_numbers_of_strangers(tmp_path: Path) -> None:
    def write(label: str) -> ArchiveDataset:
        with tarfile.open(tmp_path / "one.tar", "w") as archive:
            for name, content in (("0.png", picture(0)), ("0.cls", label.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return ArchiveDataset(tmp_path / "one.tar", 12)

    assert write("\u00b2").class_names == ["\u00b2"]  # a digit that is no number
    for label in ("1000000000000", "9" * 40):
        with pytest.raises(UserError, match="states the class number .*below 1,048,576"):
            write(label)


def test_archives_can_be_handed_to_a_process_that_starts_afresh(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    images = ArchiveDataset(tmp_path / "photos.zip", 12)
    again = pickle.loads(pickle.dumps(images))
    assert again.source_name(2) == images.source_name(2) and torch.equal(again.image(2), images.image(2))


def test_cifar100(tmp_path: Path) -> None:
    root = tmp_path / "cifar-100-python"
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    batch = {b"data": pixels, b"fine_labels": [2, 0, 1, 2], b"coarse_labels": [0, 0, 0, 0]}
    for name in ("train", "test"):
        (root / name).write_bytes(pickle.dumps(batch, protocol=2))
    (root / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"apple", b"bear", b"can"]}, protocol=2))
    images = CIFAR100Dataset(tmp_path, "test")
    assert np.array_equal(images.images_uint8().numpy(), pixels.reshape(4, 3, 32, 32))
    assert images.labels.tolist() == [2, 0, 1, 2] and images.class_names == ["apple", "bear", "can"]
    assert open_images(root, "test").fingerprint == images.fingerprint
    with pytest.raises(UserError, match="--devkit numbers the classes .* is CIFAR-100"):
        open_images(root, "test", tmp_path)
    (root / "meta").write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match="holds no 'fine_label_names'"):
        CIFAR100Dataset(root)
    (root / "train").unlink()
    with pytest.raises(UserError, match="no CIFAR-100 in"):
        CIFAR100Dataset(root)


def test_large_parquet_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from generative.data import ParquetDataset, arrow_files, parquet

    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(arrow_files, "BATCH_ROWS", 2)
    content = [{"bytes": picture(index), "path": None} for index in range(5)]
    table = pa.table({"image": content, "label": [0, 1, 0, 1, 1]})
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(table, tmp_path / name, row_group_size=3)
    held = ParquetDataset(str(tmp_path / "*.parquet"), 12)
    monkeypatch.setattr(parquet, "MAX_MEMORY_BYTES", 0)
    mapped = ParquetDataset(str(tmp_path / "*.parquet"), 12)
    assert (mapped._encoded.is_mapped, held._encoded.is_mapped) == (True, False)
    again = pickle.loads(pickle.dumps(mapped))
    for images in (mapped, again, ParquetDataset(str(tmp_path / "*.parquet"), 12)):
        assert torch.equal(images.images_uint8(), held.images_uint8()) and images.fingerprint == held.fingerprint
        assert images.source_name(7) == held.source_name(7) and images.read_encoded(7) == picture(2)
    assert len(pickle.dumps(mapped._encoded)) < 2000
    files = sorted((tmp_path / "cache" / "parquet").glob("*.arrow"))
    assert 1 <= len(files) <= 2
    before = pa.total_allocated_bytes()
    assert ParquetDataset(tmp_path / "a.parquet", 12, verify=False).read_encoded(4) == picture(4)
    assert pa.total_allocated_bytes() - before < 100_000
    pq.write_table(pa.table({"image": [None, content[0]], "label": [0, 1]}), tmp_path / "null.parquet")
    with pytest.raises(UserError, match="column 'image' of .* is empty in row 0"):
        ParquetDataset(tmp_path / "null.parquet", 12)
    for file in files:
        file.write_bytes(b"no arrow")
    with pytest.raises(UserError, match="cannot be unpacked to"):
        ParquetDataset(tmp_path / "a.parquet", 12)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match="set TRIPTYCH_CACHE to a folder that can be written"):
        ParquetDataset(tmp_path / "a.parquet", 12)
