"""ImageNet as it is published: a tar of tars, a tar of validation images, and the development kit's archive."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from generative.cli.main import main
from generative.core.errors import UserError
from generative.data import ImageFolderDataset, PreparedDataset
from generative.data.imagenet import read_devkit
from generative.data.imagenet_tars import ImageNetTrainTarDataset, ImageNetValidationTarDataset
from generative.data.open_images import open_images
from metrics.files.shards import read_description

WNIDS = ["n01440764", "n01443537", "n03126707"]


def picture(index: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(index).integers(0, 256, (14, 18, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def tar_of(files: Sequence[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def class_tar(label: int) -> tuple[str, bytes]:
    files = [(f"{WNIDS[label]}_{number}.JPEG", picture(10 * label + number)) for number in (7, 3, 5)]
    return f"{WNIDS[label]}.tar", tar_of([*files, ("._x.JPEG", b"hidden"), ("notes.gif", b"no")])


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Classes in another order than that of their ids, each with three images."""
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar_of([class_tar(label) for label in (2, 0, 1)]))
    return path


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    path = tmp_path / "ILSVRC2012_img_val.tar"
    path.write_bytes(tar_of([(f"ILSVRC2012_val_{number:08d}.JPEG", picture(number)) for number in (2, 4, 1, 3)]))
    return path


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """The kit as it is published, a .tar.gz: its own numbers run against the sorted ids."""
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("num_children", "i4")]
    rows = [(number + 1, wnid, 0) for number, wnid in enumerate(reversed(WNIDS))] + [(4, "n00001740", 3)]
    savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n3\n")
    path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(data.parent, data.parent.name)
    return path


def test_a_tar_of_tars_is_its_folder(train: Path, tmp_path: Path) -> None:
    for label, wnid in enumerate(WNIDS):
        (tmp_path / "folder" / wnid).mkdir(parents=True)
        for number in (7, 3, 5):
            (tmp_path / "folder" / wnid / f"{wnid}_{number}.JPEG").write_bytes(picture(10 * label + number))
    expected, images = ImageFolderDataset(tmp_path / "folder", 12), ImageNetTrainTarDataset(train, 12, num_classes=3)
    assert torch.equal(images.images_uint8(), expected.images_uint8()) and torch.equal(images.labels, expected.labels)
    assert images.class_names == WNIDS and images.left_out == {".gif": 3} and images.num_turned == 0
    assert images.source_name(0) == f"n01440764_3.JPEG in {train}" and images.read_encoded(0) == picture(3)
    assert type(open_images(train)) is ImageNetTrainTarDataset
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(again.image(7), images.image(7)) and again.fingerprint == images.fingerprint
    with pytest.raises(UserError, match="has 3 classes, and num_classes of the data is 1000"):
        ImageNetTrainTarDataset(train, 12, num_classes=1000)
    with pytest.raises(UserError, match="--devkit numbers the classes .* is ImageNet's training archive; leave it out"):
        open_images(train, devkit=tmp_path)


def test_damage_of_a_tar_of_tars_is_named(train: Path, tmp_path: Path) -> None:
    whole = train.read_bytes()
    train.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train.tar' is not a tar file, or is truncated .*; fetch it again"):
        open_images(train)
    name, content = class_tar(1)
    train.write_bytes(tar_of([class_tar(0), (name, content[:2000])]))
    with pytest.raises(UserError, match=r"'n01443537.tar' in '.*ILSVRC2012_img_train.tar' is not a tar file, or is truncated"):
        open_images(train)
    train.write_bytes(tar_of([class_tar(0), class_tar(1), class_tar(0)]))
    with pytest.raises(UserError, match="holds class n01440764 twice"):
        open_images(train)
    train.write_bytes(tar_of([class_tar(0), (name, tar_of([("a.gif", b"no")]))]))
    with pytest.raises(UserError, match=r"'n01443537.tar' in .* has no images \(it has 1 file of formats .*1 .gif"):
        open_images(train)
    train.write_bytes(tar_of([class_tar(0), (name, tar_of([("a.JPEG", b"")]))]))
    with pytest.raises(UserError, match="image 'a.JPEG' of 'n01443537.tar' .* is empty"):
        open_images(train)
    train.write_bytes(tar_of([class_tar(0), (name, tar_of([("a.JPEG", picture(1)[:200])]))]))
    with pytest.raises(UserError, match="a.JPEG in .*ILSVRC2012_img_train.tar' is truncated or corrupt"):
        ImageNetTrainTarDataset(train, 12)
    train.write_bytes(tar_of([class_tar(0)]))
    images = open_images(train)
    train.write_bytes(train.read_bytes()[:1500])
    with pytest.raises(UserError, match="was cut short; fetch it again"):
        images.load_picture(2)


def test_a_tar_of_validation_images_takes_the_kits_classes(validation: Path, kit: Path) -> None:
    images = ImageNetValidationTarDataset(validation, kit, 12)
    assert images.labels.tolist() == [2, 1, 0, 0] and images.class_names == WNIDS
    assert [images.read_encoded(index) for index in range(4)] == [picture(number) for number in (1, 2, 3, 4)]
    folder = read_devkit(kit.with_name("ILSVRC2012_devkit_t12"))
    assert folder.validation.tolist() == read_devkit(kit).validation.tolist()
    assert type(open_images(validation, devkit=kit)) is ImageNetValidationTarDataset
    with pytest.raises(UserError, match="holds ImageNet's validation images, whose classes .*; add --devkit"):
        open_images(validation)
    validation.write_bytes(tar_of([(f"ILSVRC2012_val_{number:08d}.JPEG", picture(number)) for number in (2, 4, 1)]))
    with pytest.raises(UserError, match="holds 3 of the 4 validation images; the first that is missing is .*00000003.JPEG"):
        open_images(validation, devkit=kit)
    kit.write_bytes(kit.read_bytes()[:300])
    with pytest.raises(UserError, match="the development kit .* cannot be read|is no development kit"):
        open_images(validation, devkit=kit)
    with pytest.raises(UserError, match="is no development kit of ImageNet; expected data/meta.mat"):
        open_images(validation, devkit=validation)


def test_prepared_from_the_archives_and_prepared_again(
    train: Path, validation: Path, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes get their words, and their WordNet ids stay in the index however often the images are prepared."""
    monkeypatch.chdir(tmp_path)
    options = ["--resolution", "12", "--encode", "raw", "--workers", "0"]
    assert main(["data", "prepare", str(train), "train", *options]) == 0
    assert main(["data", "prepare", str(validation), "val", *options, "--devkit", str(kit)]) == 0
    assert main(["data", "prepare", "train", "again", "--resolution", "8", "--workers", "0"]) == 0
    assert main(["data", "prepare", "again", "third", "--resolution", "8", "--class-names", "source", "--workers", "0"]) == 0
    for name, count in (("train", 9), ("val", 4), ("again", 9), ("third", 9)):
        images = PreparedDataset(name)
        assert (len(images), images.class_names[:2], images.class_ids) == (count, ["tench", "goldfish"], WNIDS)
        description = read_description(Path(name))
        assert description is not None and description["source"]["class_ids"] == WNIDS
    assert torch.equal(PreparedDataset("train").images_uint8(), ImageNetTrainTarDataset(train, 12).images_uint8())
