"""Classes are compared by name: whichever kind of source says them, and numbers where another side knows the order."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metrics.cli import main
from metrics.scores.classification_accuracy import classification_accuracy_score
from metrics.sources import open_source
from metrics.sources.class_names import name_classes
from metrics.sources.npz import NpzSource

_NAMES = ["cat", "ant", "bird"]  # The order of the numbers; sorted, they are in another.
_PER_CLASS = 6


def _images(seed: int) -> list[tuple[Tensor, int]]:
    """Images (3, 9, 9) and their class, each class of its own brightness."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(60 * label, 60 * label + 90, (3, 9, 9), generator=generator, dtype=torch.uint8), label)
        for label in [0, 1, 2] * _PER_CLASS
    ]


def _png(image: Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()


def _folders(root: Path, seed: int, names: list[str] = _NAMES) -> Path:
    for index, (image, label) in enumerate(_images(seed)):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        (root / names[label] / f"{index:03d}.png").write_bytes(_png(image))
    return root


def _npz(path: Path, seed: int, names: list[str] | None = _NAMES, order: list[int] | None = None) -> Path:
    pairs = _images(seed)
    images = np.stack([image.permute(1, 2, 0).numpy() for image, _ in pairs])
    labels = np.array([label if order is None else order[label] for _, label in pairs])
    extra = {} if names is None else {"class_names": np.array(names)}
    np.savez(path, arr_0=images, arr_1=labels, **extra)
    return path


def _samples(root: Path, seed: int, names: list[str] | None = _NAMES) -> Path:
    """A folder as ``generative sample`` writes it."""
    root.mkdir()
    entries = []
    for index, (image, label) in enumerate(_images(seed)):
        entries.append({"file": f"class-{label:04d}_image-{index:06d}.png", "class_label": label, "index": index})
        (root / entries[-1]["file"]).write_bytes(_png(image))
    manifest = {"settings": {}, "images": entries}
    (root / "manifest.json").write_text(json.dumps(manifest if names is None else {**manifest, "class_names": names}))
    return root


def _zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


def _parquet(path: Path, seed: int, names: list[str] | None = _NAMES) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pairs = _images(seed)
    table = pyarrow.table({"image": [{"bytes": _png(image), "path": None} for image, _ in pairs], "label": [k for _, k in pairs]})
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, path)
    return path


def _tar(path: Path, seed: int) -> Path:
    with tarfile.open(path, "w") as tar:
        for index, (image, label) in enumerate(_images(seed)):
            for name, content in ((f"{index:03d}.png", _png(image)), (f"{index:03d}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def class_fid(tiny_options: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[float, list[str]]]:
    """The function (reference, samples) -> the class-wise distance and the notes."""

    def run(*paths: Path) -> tuple[float, list[str]]:
        code = main([*map(str, paths), *tiny_options, "--metrics", "class-fid", "--json", "--no-cache"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        record = json.loads(captured.out)
        return record["scores"]["class_frechet_distance"], record["notes"]

    return run


@pytest.fixture
def refused(tiny_options: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        assert main([*map(str, arguments), *tiny_options]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        return captured.err

    return run


def test_every_source_that_names_its_classes_matches_folders(class_fid, tmp_path: Path) -> None:
    reference = _folders(tmp_path / "real", 0)
    expected, notes = class_fid(reference, _folders(tmp_path / "fake", 1))
    assert not any("class numbers" in note for note in notes)
    shuffled = [_NAMES[number] for number in (2, 0, 1)]
    samples = [
        _npz(tmp_path / "fake.npz", 1),
        _npz(tmp_path / "shuffled.npz", 1, shuffled, order=[1, 2, 0]),
        folder := _samples(tmp_path / "samples", 1),
        _zipped(tmp_path / "samples.zip", folder),
        _parquet(tmp_path / "fake.parquet", 1),
    ]
    for path in samples:
        found, notes = class_fid(reference, path)
        assert found == pytest.approx(expected, rel=1e-6), path
        assert not any("class numbers" in note for note in notes)
    assert class_fid(samples[0], samples[2])[0] == pytest.approx(0.0, abs=1e-5)


def test_numbers_are_places_in_the_order_that_the_other_side_states(class_fid, tmp_path: Path) -> None:
    reference = _folders(tmp_path / "real", 0)
    expected, _ = class_fid(reference, _folders(tmp_path / "fake", 1))
    stated = _parquet(tmp_path / "real.parquet", 0)
    for path in (
        _npz(tmp_path / "fake.npz", 1, None),
        _samples(tmp_path / "samples", 1, None),
        _tar(tmp_path / "fake.tar", 1),
        _folders(tmp_path / "numbered", 1, ["0", "001", "2"]),
    ):
        found, notes = class_fid(stated, path)
        assert found == pytest.approx(expected, rel=1e-6), path
        assert any(f"class numbers of {path} are taken as places" in note and "0 cat, 1 ant, 2 bird" in note for note in notes)


def test_numbers_are_places_among_folders_in_sorted_order(class_fid, refused, tmp_path: Path) -> None:
    reference = _folders(tmp_path / "real", 0)
    expected, _ = class_fid(reference, _folders(tmp_path / "fake", 1))
    places = [sorted(_NAMES).index(name) for name in _NAMES]
    found, notes = class_fid(reference, _npz(tmp_path / "fake.npz", 1, None, order=places))
    assert found == pytest.approx(expected, rel=1e-6)
    assert any("sorted (0 ant, 1 bird, 2 cat)" in note for note in notes)
    found, _ = class_fid(tmp_path / "fake.npz", reference)
    assert found == pytest.approx(expected, rel=1e-6), "either way round"
    _npz(tmp_path / "fewer.npz", 1, None, order=[0, 1, 1])
    error = refused(reference, tmp_path / "fewer.npz", "--metrics", "class-fid")
    assert "2 classes by number (0 to 1)" in error and "3 by name (ant, bird, cat)" in error


def test_classes_that_differ_are_told_before_any_image_is_read(refused, images_run, tmp_path: Path) -> None:
    reference = _folders(tmp_path / "real", 0)
    other = _npz(tmp_path / "fake.npz", 1, ["cat", "ant", "dog"])
    error = refused(reference, other, "--metrics", "class-fid")
    assert f"{reference} has 3 classes and {other} 3, bird only in {reference} and dog only in {other}" in error
    error = refused(reference, other, "--metrics", "fid", "--cas", "resnet18", "--cas-size", "8", "--cas-epochs", "1")
    assert "bird only in" in error
    few = _folders(tmp_path / "few", 2)
    for path in sorted((few / "bird").iterdir())[1:]:
        path.unlink()
    assert "at least 2 images of every class" in (error := refused(reference, few, "--metrics", "class-fid"))
    assert "bird" in error and images_run == []


def test_classification_accuracy_matches_by_name(tmp_path: Path) -> None:
    samples, reference = open_source(_npz(tmp_path / "fake.npz", 1)), open_source(_folders(tmp_path / "real", 0))
    scores = classification_accuracy_score(samples, reference, "resnet18", image_size=16, epochs=20, batch_size=6, lr=0.2)
    assert scores["cas_top1"] > 0.8


def test_names_are_read_safely(tmp_path: Path) -> None:
    source = NpzSource(_npz(tmp_path / "a.npz", 0))
    assert source.class_names == _NAMES and source.named(["2", "0"]) == ["bird", "cat"]
    assert source.identity() == NpzSource(_npz(tmp_path / "b.npz", 0, None)).identity(), "names are no features"
    with pytest.raises(ValueError, match="class label 2 and 2 class names"):
        NpzSource(_npz(tmp_path / "short.npz", 0, ["cat", "ant"]))
    arrays = dict(np.load(tmp_path / "a.npz"))
    np.savez(tmp_path / "pickle.npz", **{**arrays, "class_names": np.array([object()] * 3, dtype=object)})
    with pytest.raises(ValueError, match="only unpickling would read"):
        NpzSource(tmp_path / "pickle.npz")
    np.savez(tmp_path / "numbers.npz", **{**arrays, "class_names": np.arange(3)})
    with pytest.raises(ValueError, match="no list of texts"):
        NpzSource(tmp_path / "numbers.npz")
    assert NpzSource(_npz(tmp_path / "twice.npz", 0, ["crane", "ant", "crane"])).class_names == ["crane (0)", "ant", "crane (2)"]


def test_labels_of_huggingface_that_are_not_published_are_none(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = _parquet(tmp_path / "test.parquet", 0)
    table = parquet.read_table(path)
    table = table.set_column(1, "label", pyarrow.array([-1] * len(table)))
    parquet.write_table(table, path)
    assert not open_source(path).has_labels


def test_digits_in_folders_are_names(tmp_path: Path) -> None:
    """Training sorts folders as texts ("1", "10", "2"): a run's names say which is which, the digits themselves do not."""
    names = ["1", "10", "2"]
    folder, samples = open_source(_folders(tmp_path / "real", 0, names)), NpzSource(_npz(tmp_path / "fake.npz", 1, names))
    assert name_classes([folder, samples]) == []
    assert set(folder.named(folder.labels or [])) == set(samples.named(samples.labels or [])) == set(names)
    assert samples.named(["1"]) == ["10"]
