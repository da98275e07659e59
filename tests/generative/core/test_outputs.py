"""Sample folders that can be gone on with, and npz files."""

from __future__ import annotations

import errno
import json
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.outputs import ImageFolderWriter, write_npz

SETTINGS: dict[str, Any] = {"pipeline": "abc", "seed": 0, "options": {"guidance_interval": (0.1, 0.9)}}
REQUESTS = [SampleRequest(label, index) for label in (0, 12) for index in range(3)]
IMAGES = torch.randint(256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def write_all(folder: Path) -> None:
    writer = ImageFolderWriter(folder, SETTINGS)
    writer.start(REQUESTS)
    writer.write(REQUESTS, IMAGES)


def test_files_in_class_order_with_a_manifest(tmp_path: Path) -> None:
    write_all(tmp_path / "out")
    files = sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    assert files[0] == "class-0000_image-000000.png" and files[-1] == "class-0012_image-000002.png"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["file"] for entry in manifest["images"]] == files
    assert [entry["class_label"] for entry in manifest["images"]] == [0, 0, 0, 12, 12, 12]
    assert manifest["settings"]["seed"] == 0
    for name, image in zip(files, IMAGES, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), image.permute(1, 2, 0).numpy())


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    writer = ImageFolderWriter(tmp_path, SETTINGS)
    assert writer.missing(REQUESTS) == REQUESTS
    writer.start(REQUESTS)
    writer.write(REQUESTS[:2], IMAGES[:2])
    (tmp_path / ".class-0000_image-000002.png.partial").write_bytes(b"half")

    again = ImageFolderWriter(tmp_path, SETTINGS)
    assert again.missing(REQUESTS) == REQUESTS[2:]
    again.start(REQUESTS)
    again.write(REQUESTS[2:], IMAGES[2:])
    assert ImageFolderWriter(tmp_path, SETTINGS).missing(REQUESTS) == []
    assert not list(tmp_path.glob(".*"))


def test_more_classes_of_the_same_settings_join_the_manifest(tmp_path: Path) -> None:
    write_all(tmp_path)
    more = [SampleRequest(5, 0)]
    writer = ImageFolderWriter(tmp_path, SETTINGS)
    writer.start(more)
    writer.write(more, IMAGES[:1])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["class_label"] for entry in manifest["images"]] == [0, 0, 0, 5, 12, 12, 12]


def test_a_kill_before_the_first_manifest_does_not_lock_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.partial").write_text("{")
    write_all(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_made_no_image_does_not_lock_the_folder(tmp_path: Path) -> None:
    ImageFolderWriter(tmp_path, {**SETTINGS, "seed": 1}).start(REQUESTS)
    write_all(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"]["seed"] == 0


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write_all(tmp_path)
    with pytest.raises(UserError, match="holds samples of other settings"):
        ImageFolderWriter(tmp_path, {**SETTINGS, "seed": 1})


def test_foreign_folders_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no samples of ours"):
        ImageFolderWriter(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="is a file"):
        ImageFolderWriter(tmp_path / "thesis.tex", SETTINGS)
    for content in ("[]", "{}", "null", "{"):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UserError, match="holds no samples of ours"):
            ImageFolderWriter(tmp_path, SETTINGS)


def test_a_full_disk_leaves_no_half_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ImageFolderWriter(tmp_path, SETTINGS)
    writer.start(REQUESTS)

    def save(self: Image.Image, path: Path, format: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space left"):
        writer.write(REQUESTS, IMAGES)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


BATCHES = [([1, 0], IMAGES[[1, 0]]), ([4], IMAGES[4:5]), ([], IMAGES[:0]), ([5, 2, 3], IMAGES[[5, 2, 3]])]


@pytest.mark.parametrize("names", [None, ["cat", "\u732b"]])
def test_npz_is_what_numpy_writes(tmp_path: Path, names: list[str] | None) -> None:
    """As the ADM evaluator reads it: arr_0 NHWC uint8, arr_1 labels; in whichever order the images come."""
    write_npz(tmp_path / "deep" / "samples.npz", iter(BATCHES), REQUESTS, names)
    texts = {} if names is None else {"class_names": np.asarray(names)}
    labels = np.array([0, 0, 0, 12, 12, 12])
    np.savez(tmp_path / "numpy.npz", arr_0=IMAGES.permute(0, 2, 3, 1).numpy(), arr_1=labels, **texts)
    assert (tmp_path / "deep" / "samples.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["samples.npz"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), UserError("NaN"), KeyboardInterrupt()])
def test_an_npz_is_written_whole_or_not_at_all(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "samples.npz").write_bytes(b"old")

    def batches() -> Iterator[tuple[list[int], torch.Tensor]]:
        yield BATCHES[0]
        raise error

    with pytest.raises(type(error)):
        write_npz(tmp_path / "samples.npz", batches(), REQUESTS)
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]
    assert (tmp_path / "samples.npz").read_bytes() == b"old"


@pytest.mark.parametrize("num_batches", [4, 40])
def test_an_npz_holds_a_batch_or_two_in_memory(tmp_path: Path, num_batches: int) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def batches() -> Iterator[tuple[list[int], torch.Tensor]]:
        nonlocal most
        for number in range(num_batches):
            images = torch.full((5, 3, 64, 64), number, dtype=torch.uint8)
            alive.add(images)
            most = max(most, len(alive))
            yield list(range(5 * number, 5 * number + 5)), images

    tracemalloc.start()
    write_npz(tmp_path / "samples.npz", batches(), [SampleRequest(0, index) for index in range(5 * num_batches)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most <= 2 and peak < 500_000  # one batch is 61,440 bytes, all of them 2.5 million
    with np.load(tmp_path / "samples.npz") as content:
        assert content["arr_0"][:, 0, 0, 0].tolist() == [number for number in range(num_batches) for _ in range(5)]


def test_the_step_is_noted_and_older_folders_go_on(tmp_path: Path) -> None:
    write_all(tmp_path)
    writer = ImageFolderWriter(tmp_path, {**SETTINGS, "step": 7})
    writer.start(REQUESTS)
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"]["step"] == 7
    assert writer.missing(REQUESTS) == []


def test_class_names_are_beside_the_samples(tmp_path: Path) -> None:
    names = ["cat", "Katze", "\u732b"]
    ImageFolderWriter(tmp_path / "folder", SETTINGS, names).start(REQUESTS)
    assert json.loads((tmp_path / "folder" / "manifest.json").read_text())["class_names"] == names
    write_npz(tmp_path / "samples.npz", BATCHES, REQUESTS, names)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as content:
        assert content["class_names"].tolist() == names and content["class_names"].dtype.kind == "U"
        assert content.files[0] == "arr_0"
