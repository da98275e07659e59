"""``fid-score`` beyond one pair of folders: every flag, other tools' lines, several sample sets, files, analyses."""

from __future__ import annotations

import csv
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import own_extractors
import pytest
import torch
from PIL import Image
from torch import Tensor

from metrics.cli import build_parser, main, parse_arguments
from metrics.files.statistics import FeatureEntry, save_statistics
from metrics.options import ScoreOptions
from metrics.scoring import score
from metrics.scoring.report import Report, Result, write_plot
from metrics.scoring.steps import step_of
from metrics.sources import ImageBatch, ImageSource
from metrics.sources.base import check_range

Printed = Callable[..., dict[str, Any]]


@pytest.fixture
def sets(tmp_path: Path, smooth_images: Any, write_folder: Any) -> tuple[str, str]:
    real = write_folder(tmp_path / "real", smooth_images(30, 10, 14, seed=0))
    fake = write_folder(tmp_path / "fake", smooth_images(25, 9, 9, seed=1, contrast=90.0))
    return str(real), str(fake)


@pytest.fixture
def labelled(tmp_path: Path, smooth_images: Any, write_folder: Any) -> tuple[str, str]:
    """Folders of three classes, of which the second set has other shares."""
    for name, seed, counts in (("real", 0, (12, 12, 12)), ("fake", 1, (20, 10, 6))):
        for label, count in zip(("bird", "cat", "dog"), counts, strict=True):
            images = smooth_images(count, 12, 12, seed=seed + 10 * len(label) + ord(label[0]), contrast=30.0)
            write_folder(tmp_path / "labelled" / name / label, (images // 2 + 40 * ("bird", "cat", "dog").index(label)).byte())
    return str(tmp_path / "labelled" / "real"), str(tmp_path / "labelled" / "fake")


@pytest.fixture
def printed(tiny_options: list[str], capsys: pytest.CaptureFixture[str]) -> Printed:
    """The function (arguments) -> what ``fid-score ... --json`` prints with the tiny network."""

    def run(*arguments: str) -> dict[str, Any]:
        code = main([*arguments, *tiny_options, "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)

    return run


@pytest.fixture
def refused(tiny_options: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The function (arguments) -> the one sentence that ``fid-score`` refuses them with."""

    def run(*arguments: str) -> str:
        assert main([*arguments, *tiny_options]) == 2
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert captured.out == "" and len(lines) == 1 and lines[0].startswith("error: "), captured.err
        return lines[0]

    return run


# Every flag, by each of its names. {real}, {fake}: folders; {labelled} likewise, by class; {tmp}: a folder to write to.
_TWO = ["{real}", "{fake}"]
_CLASSES = ["{labelled}/real", "{labelled}/fake"]
_CAS = ["--cas", "resnet18", "--cas-size", "16", "--cas-epochs", "1"]
_TRAINED = ["{tmp}/judge.safetensors", "--extractor", "resnet9", "--input-size", "16", "--train-epochs", "1"]
_NAMED = ["--extractor", "inception-v3", "--weights", "{inception}", "--dataset", "cifar10", "--dataset-root", "{tmp}"]
_FLAGS: dict[str, list[str]] = {
    "--metrics": [*_TWO, "--metrics", "kid,fid"],
    "--protocol": [*_TWO, "--protocol", "tensorflow"],
    "--extractor": [*_TWO, "--extractor", "tiny"],
    "--feature-extractor": [*_TWO, "--feature-extractor", "{tmp}/own.py:Own"],
    "--input-size": [*_TWO, "--input-size", "8"],
    "--dims": ["{few}", "{few}", "--extractor", "inception-v3", "--weights", "{inception}", "--dims", "192"],
    "--weights": [*_TWO, "--weights", "{tmp}/w.pth"],
    "--feature-extractor-weights-path": [*_TWO, "--feature-extractor-weights-path", "tiny={tmp}/w.pth"],
    "--save-stats": ["--save-stats", "{real}", "{tmp}/out.npz"],
    "--train-extractor": ["--train-extractor", *_CLASSES, *_TRAINED],
    "--train-epochs": ["--train-extractor", "{labelled}/real", *_TRAINED],
    "--num-samples": ["{real}", "{pipeline}", "--num-samples", "7"],
    "--num": ["{real}", "{pipeline}", "--num", "7"],
    "--seed": ["{real}", "{pipeline}", "--seed", "3"],
    "--sample-precision": ["{real}", "{pipeline}", "--sample-precision", "bfloat16"],
    "--dataset": ["{few}", *_NAMED],
    "--dataset-split": ["{few}", *_NAMED, "--dataset-split", "train"],
    "--dataset-res": ["{few}", *_NAMED, "--dataset-res", "32"],
    "--dataset-root": ["{few}", *_NAMED],
    "--mode": [*_TWO, "--mode", "legacy_tensorflow"],
    "--isc-splits": ["{fake}", "--metrics", "is", "--isc-splits", "3"],
    "--no-samples-shuffle": ["{fake}", "--metrics", "is", "--no-samples-shuffle"],
    "--kid-subsets": [*_TWO, "--kid", "--kid-subsets", "4", "--kid-subset-size", "10"],
    "--kid-subset-size": [*_TWO, "--kid", "--kid-subset-size", "12"],
    "--prc-neighborhood": [*_TWO, "--prc", "--prc-neighborhood", "2"],
    "--nearest-k": [*_TWO, "--prc", "--nearest-k", "4"],
    "--rng-seed": [*_TWO, "--kid", "--kid-subset-size", "12", "--rng-seed", "1"],
    "--match-classes": [*_TWO, "--match-classes", "top1"],
    "--match-num": [*_TWO, "--match-classes", "top1", "--match-num", "9"],
    "--sensitivity-map": [
        *("{few}", "{few}", "--extractor", "inception-v3", "--weights", "{inception}", "--sensitivity-map", "{tmp}/map.png")
    ],
    "--cas": [*_CLASSES, *_CAS],
    "--cas-size": [*_CLASSES, *_CAS],
    "--cas-epochs": [*_CLASSES, *_CAS],
    "--json": [*_TWO, "--json"],
    "-j": ["-j", *_TWO],
    "--csv": [*_TWO, "--csv", "{tmp}/out.csv"],
    "--plot": [*_TWO, "--plot", "{tmp}/out.png"],
    "--quiet": [*_TWO, "--quiet"],
    "--silent": [*_TWO, "--silent"],
    "--batch-size": [*_TWO, "--batch-size", "4"],
    "-b": [*_TWO, "-b", "4"],
    "--device": [*_TWO, "--device", "cpu"],
    "--num-workers": [*_TWO, "--num-workers", "0"],
    "--precision": [*_TWO, "--precision", "bfloat16"],
    "--skip-corrupt": ["{real}", "{damaged}", "--skip-corrupt"],
    "--no-cache": [*_TWO, "--no-cache"],
    "--cache-root": [*_TWO, "--cache-root", "{tmp}/kept"],
    "--input1": ["--input1", "{fake}", "--input2", "{real}", "--fid"],
    "--input2": ["--input1", "{fake}", "--input2", "{real}", "--fid"],
    "--images": ["--images", "{fake}", "--ref", "{real}"],
    "--ref": ["--images", "{fake}", "--ref", "{real}"],
    "--isc": ["{fake}", "--isc"],
    "-i": ["{fake}", "-i"],
    "--fid": [*_TWO, "--fid"],
    "-f": [*_TWO, "-f"],
    "--kid": [*_TWO, "--kid"],
    "-k": [*_TWO, "-k"],
    "--prc": [*_TWO, "--prc"],
    "-r": [*_TWO, "-r"],
    "--mind": [*_TWO, "--mind"],
    "-m": [*_TWO, "-m"],
    "--gpu": [*_TWO, "--gpu", "0"],
    "-g": [*_TWO, "-g", "0"],
    "--cpu": [*_TWO, "--cpu"],
    "-c": [*_TWO, "-c"],
    "--save-cpu-ram": ["{real}", "{fake}", "--save-cpu-ram"],
    "--prc-batch-size": ["{real}", "{fake}", "--prc-batch-size", "10"],
    "--samples-find-deep": ["--input1", "{fake}", "--input2", "{real}", "-f", "--samples-find-deep"],
    "--help": ["--help"],
    "-h": ["-h"],
}
_CLEAN = {"resizer": "clean", "precision": "float32", "input_size": 299}


def test_the_table_of_flags_is_complete() -> None:
    names = {name for action in build_parser()._actions for name in action.option_strings}
    assert names == set(_FLAGS)


@pytest.fixture
def places(sets, labelled, pipeline: str, smooth_images, write_folder, inception_file: Path, tmp_path: Path) -> dict[str, object]:
    (tmp_path / "own.py").write_text(own_extractors.MEANS)
    (tmp_path / "w.pth").write_bytes(b"the tiny network does not look")
    damaged = write_folder(tmp_path / "damaged", smooth_images(5, 8, 8, seed=4))
    (damaged / "0002.png").write_bytes(b"")
    np.savez(tmp_path / "cifar10_clean_train_32.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    few = write_folder(tmp_path / "few", smooth_images(3, 16, 16, seed=5))
    return {
        "real": sets[0],
        "fake": sets[1],
        "labelled": tmp_path / "labelled",
        "pipeline": pipeline,
        "damaged": damaged,
        "few": few,
        "inception": inception_file,
        "tmp": tmp_path,
    }


@pytest.mark.parametrize("flag", _FLAGS)
def test_every_flag(flag: str, places: dict[str, object], tiny_options: list[str], capsys) -> None:
    given = [word.format(**places) for word in _FLAGS[flag]]
    chosen = list(tiny_options)
    if {"--extractor", "--feature-extractor"} & set(given):
        chosen = chosen[2:]
    if {"--device", "--gpu", "-g", "--cpu", "-c"} & set(given):
        chosen = [word for word in chosen if word not in ("--device", "cpu")]
    if flag in ("--gpu", "-g") and not torch.cuda.is_available():
        assert main([*given, *chosen]) == 2
        assert "device 'cuda:0' is not available" in capsys.readouterr().err
        return
    assert main([*given, *chosen]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "nan" not in out.lower().split()
    for word in given:  # What a flag names to be written is there.
        if word.startswith(str(places["tmp"])) and Path(word).suffix in (".npz", ".csv", ".png", ".safetensors"):
            assert Path(word).stat().st_size > 0


class _Pipeline(ImageSource):
    """Stands for a saved pipeline: its images depend on the seed and their place alone."""

    kind = "test pipeline"
    is_costly = True
    drawn: list[int] = []

    def __init__(self, path: Path, num_samples: int | None, seed: int | None) -> None:
        super().__init__(path)
        self.count, self.seed = num_samples or 20, seed or 0

    def __len__(self) -> int:
        return self.count

    def identity(self) -> str:
        return f"pipeline {self.seed}"

    def batches(self, batch_size: int, num_workers: int = 1, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        end = check_range(self.count, batch_size, num_workers, start, stop)
        for first in range(start, end, batch_size):
            places = list(range(first, min(first + batch_size, end)))
            self.drawn += places
            yield ImageBatch(places, [self._image(place) for place in places])

    def _image(self, place: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + place)
        return torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that opens as a pipeline."""

    class EntryPoint:
        def load(self) -> Callable[..., ImageSource]:
            return lambda path, num_samples, seed, batch_size, device, precision="float32": _Pipeline(path, num_samples, seed)

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [EntryPoint()])
    monkeypatch.setattr(_Pipeline, "drawn", [])
    folder = tmp_path / "pipeline"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return str(folder)


def test_a_saved_pipeline_is_sampled_while_it_is_scored(sets, pipeline: str, printed: Printed) -> None:
    first = printed(sets[0], pipeline, "--num-samples", "9", "--seed", "1")
    assert first["samples"].endswith("(test pipeline, 9 images)") and _Pipeline.drawn == list(range(9))
    _Pipeline.drawn.clear()
    assert printed(sets[0], pipeline, "--num-samples", "9", "--seed", "1")["scores"] == first["scores"]
    assert _Pipeline.drawn == [], "its features are cached, so nothing is sampled again"
    other = printed(sets[0], pipeline, "--num-samples", "9", "--seed", "2")
    assert other["scores"] != first["scores"] and _Pipeline.drawn == list(range(9))
    plain = printed(sets[0], pipeline, "--no-cache")
    assert plain["protocols"][0]["num_fake"] == 20
    # The draw's options are for the pipeline alone: a folder beside it is read as it is.
    assert first["protocols"][0]["num_real"] == 30


# Other tools' lines


def test_torch_fidelitys_line(sets, printed: Printed) -> None:
    real, fake = sets
    plain = printed(real, fake, "--protocol", "tensorflow", "--metrics", "fid,is,kid,prc")
    theirs = printed("--input1", fake, "--input2", real, "--isc", "--fid", "--kid", "--prc", "--samples-find-deep")
    assert theirs["scores"] == plain["scores"]
    assert (theirs["reference"], theirs["samples"], theirs["protocol"]) == tuple(
        plain[k] for k in ("reference", "samples", "protocol")
    )
    swapped = printed(fake, real, "--protocol", "tensorflow", "--metrics", "prc")
    assert swapped["scores"]["precision"] == pytest.approx(plain["scores"]["recall"]), (
        "sides matter, so the line above shows which"
    )
    assert swapped["scores"]["coverage"] != plain["scores"]["coverage"]


def test_torch_fidelitys_line_with_one_input(sets, printed: Printed, refused) -> None:
    scores = printed("--input1", sets[1], "--isc")["scores"]
    assert scores == printed(sets[1], "--metrics", "is", "--protocol", "tensorflow")["scores"]
    assert "reference" in refused("--input1", sets[1], "--fid")
    assert "--input2 is the reference" in refused("--input2", sets[0], "--fid")
    assert "replace the two paths" in refused("--input1", sets[1], sets[0], "--fid")


def test_pytorch_fids_line(sets, tiny_options, capsys) -> None:
    options = parse_arguments([*sets, "--dims", "64", "--batch-size", "50", "--device", "cpu", "--num-workers", "2"])
    assert (options.paths, options.dims, options.batch_size, options.num_workers) == (tuple(sets), 64, 50, 2)
    assert main([*sets, "--batch-size", "50", "--num-workers", "2", "--protocol", "pytorch-fid", *tiny_options]) == 0
    assert "resize pytorch-fid to 8 px" in capsys.readouterr().out


def test_flags_stand_anywhere(sets, tiny_options, capsys, tmp_path: Path) -> None:
    assert main(["--json", *sets, *tiny_options]) == 0
    inner = json.loads(capsys.readouterr().out)
    assert main([sets[0], *tiny_options, "-j", sets[1]]) == 0
    assert json.loads(capsys.readouterr().out) == inner
    target = tmp_path / "x.json"
    assert main(["--json", str(target), *sets, *tiny_options]) == 0
    assert "frechet_distance" in capsys.readouterr().out, "the table is printed beside the file"
    assert json.loads(target.read_text()) == inner


# Several sample sets


@pytest.fixture
def checkpoints(tmp_path: Path, smooth_images: Any, write_folder: Any) -> list[str]:
    """Three sets that come closer to the reference."""
    contrasts = {100: 120.0, 200: 90.0, 1000: 65.0}
    return [
        str(write_folder(tmp_path / f"step-{step}", smooth_images(20 + step // 100, 9, 9, seed=2, contrast=contrast)))
        for step, contrast in contrasts.items()
    ]


def test_a_curve_over_checkpoints(sets, checkpoints, printed: Printed, tmp_path: Path, images_run: list[int]) -> None:
    table, figure = tmp_path / "s.csv", tmp_path / "s.png"
    record = printed(sets[0], *checkpoints, "--metrics", "fid,kid,is", "--csv", str(table), "--plot", str(figure))
    assert sum(images_run) == 30 + 21 + 22 + 30, "the reference goes through the network once"
    assert [result["step"] for result in record["results"]] == [100, 200, 1000]
    for path, result in zip(checkpoints, record["results"], strict=True):
        alone = printed(sets[0], path, "--metrics", "fid,kid,is", "--no-cache")
        assert result["scores"] == pytest.approx(alone["scores"], rel=1e-9)
        assert result["protocols"][0]["num_fake"] == alone["protocols"][0]["num_fake"]
    distances = [result["scores"]["frechet_distance"] for result in record["results"]]
    assert distances == sorted(distances, reverse=True)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["samples"], row["step"], row["num_fake"]) for row in rows] == [
        (checkpoints[0], "100", "21"),
        (checkpoints[1], "200", "22"),
        (checkpoints[2], "1000", "30"),
    ]
    assert [float(row["frechet_distance"]) for row in rows] == distances, "every digit"
    with Image.open(figure) as image:
        assert image.format == "PNG" and image.width > image.height > 300 and np.asarray(image.convert("L")).std() > 5


def test_the_table_of_several_sets(sets, checkpoints, tiny_options, capsys) -> None:
    assert main([sets[0], *checkpoints, *tiny_options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4].startswith("---") and "frechet_distance" in lines[-5]
    assert [line.split()[0] for line in lines[-3:]] == checkpoints
    assert all(float(line.split()[1]) > 0 for line in lines[-3:])
    notes = [line for line in lines if line.startswith("note")]
    assert len(set(notes)) == len(notes) and not any(checkpoints[0] in note for note in notes), "what holds for all is said once"


def test_sets_without_steps_are_plotted_in_order(sets, tiny_options, capsys, tmp_path: Path) -> None:
    figure = tmp_path / "sets.png"
    assert main([sets[0], sets[1], sets[1], "--plot", str(figure), *tiny_options]) == 0
    with Image.open(figure) as image:
        assert image.format == "PNG" and min(image.size) > 300


def test_numbers_that_are_no_step_are_none(sets, printed: Printed, smooth_images, write_folder, tmp_path: Path) -> None:
    paths = [str(write_folder(tmp_path / f"cfg-{x}", smooth_images(9, 9, 9, seed=2))) for x in ("1.25", "1.5", "1.75")]
    table = tmp_path / "s.csv"
    record = printed(sets[0], *paths, "--csv", str(table), "--plot", str(tmp_path / "s.png"))
    assert [result["step"] for result in record["results"]] == [None, None, None]
    with table.open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["", "", ""]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-00001000", 1000),
        ("step-00001000", 1000),
        ("step_1000", 1000),
        ("network-snapshot-001000.npz", 1000),
        ("global_step1000", 1000),
        ("epoch=3-step=1000.npz", 1000),
        ("dit-step-1000-cfg-1.5", 1000),
        ("runs/x/checkpoint-00001000/samples", 1000),
        ("step-5/checkpoint-1000", 1000),
        ("cfg-1.75", None),
        ("samples_10000x32x32x3.npz", None),
        ("step-1.5", None),
        ("ddim-steps-50", None),
        ("footstep-3", None),
        ("my_step_0/cfg-1.5", None),
        ("step-1-step-2", None),
        ("run-3/v2", None),
        ("checkpoint-last", None),
    ],
)
def test_a_step_is_what_a_name_says_unmistakably(name: str, step: int | None) -> None:
    assert step_of(Path(name)) == step


def test_a_step_is_what_a_run_recorded(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"step": 40}))
    assert step_of(tmp_path) == 40
    (tmp_path / "state.json").unlink()
    for settings, step in (({"step": 50}, 50), ({"seed": 0}, None), ({"step": True}, None), ({"step": -1}, None), ([3], None)):
        (tmp_path / "manifest.json").write_text(json.dumps({"settings": settings, "images": []}))
        assert step_of(tmp_path) == step
    for text in ("[" * 100_000, "no JSON", "[]"):
        (tmp_path / "manifest.json").write_text(text)
        assert step_of(tmp_path) is None


def test_the_axis_is_named_for_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[str, list[int]]] = []
    plot, label = Axes.plot, Axes.set_xlabel
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **style: drawn.append(("", list(x))) or plot(self, x, y, **style))
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, text: drawn.append((text, drawn.pop()[1])) or label(self, text))
    for names in (("step-200", "step-100"), ("cfg-1.5", "cfg-1.25"), ("a/step-100", "b/step-100"), ("step-100", "other")):
        results = [Result(Path(name), name, {"fid": 1.0}) for name in names]
        write_plot(Report("none", "clean", results), tmp_path / "x.png")
    assert drawn == [("step", [100, 200]), *[("sample set", [0, 1])] * 3]


def test_outputs_are_checked_before_any_work(sets, refused, images_run: list[int], tmp_path: Path) -> None:
    assert "folder that does not exist" in refused(*sets, "--csv", str(tmp_path / "absent" / "s.csv"))
    assert "file name with an extension" in refused(*sets, "--plot", str(tmp_path))
    assert images_run == []


# Scores that need one side, or stored statistics


def test_a_score_without_reference(sets, printed: Printed, refused) -> None:
    record = printed(sets[1], "--metrics", "is")
    assert record["reference"] == "none" and set(record["scores"]) == {"classifier_score_mean", "classifier_score_std"}
    assert record["scores"] == printed(*sets, "--metrics", "is")["scores"], "a reference is not looked at"
    assert "reference" in refused(sets[1])
    assert "reference" in refused(sets[1], "--metrics", "is,fid")


def test_moments_of_an_unknown_count_beside_images(
    sets, printed: Printed, tiny_options, capsys, smooth_images, tmp_path: Path
) -> None:
    """ADM's layout: moments of a whole data set, of which the file does not say how large it is, and some images."""
    paths = []
    for seed, count in ((0, 17), (1, 15)):
        features = np.random.default_rng(seed).normal(size=(40, 12))
        images = smooth_images(count, 8, 8, seed=seed).permute(0, 2, 3, 1).numpy()
        paths.append(str(tmp_path / f"{count}.npz"))
        np.savez(paths[-1], arr_0=images, mu=features.mean(0), sigma=np.cov(features.T))
    record = printed(*paths, "--metrics", "fid,prc", "--csv", str(tmp_path / "s.csv"))
    told = "(moments of an unknown number of images; {} images stored for precision and recall)"
    assert record["reference"] == f"{paths[0]} {told.format(17)}"
    assert record["samples"] == f"{paths[1]} {told.format(15)}"
    (protocol,) = record["protocols"]
    counts = {"num_real": None, "num_fake": None, "num_real_images": 17, "num_fake_images": 15}
    assert {key: protocol[key] for key in counts} == counts
    with (tmp_path / "s.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["num_real"] == row["num_fake"] == "" and "None" not in row.values()
    (protocol,) = printed(sets[0], paths[1], "--metrics", "fid,prc")["protocols"]
    assert (protocol["num_real"], protocol["num_fake"], protocol["num_fake_images"]) == (30, None, 15)
    assert "num_real_images" not in protocol
    (protocol,) = printed(*paths, "--metrics", "prc")["protocols"]
    assert (protocol["num_real"], protocol["num_fake"]) == (17, 15), "the moments serve nothing"


def test_files_that_say_nothing_print_no_none(capsys, tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.savez(tmp_path / name, mu=np.zeros(12), sigma=np.eye(12))
    assert main([str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--csv", str(tmp_path / "s.csv")]) == 0
    assert "None" not in capsys.readouterr().out + (tmp_path / "s.csv").read_text()


def test_saved_statistics_serve_every_metric(sets, printed: Printed, tiny_options, capsys, tmp_path: Path, images_run) -> None:
    options = ["--metrics", "fid,kid,prc,am,mind", "--kid-subset-size", "10"]
    expected = printed(*sets, *options)["scores"]
    assert "am_score" in expected
    reference, samples = str(tmp_path / "real.npz"), str(tmp_path / "fake.npz")
    for source, target in zip(sets, (reference, samples), strict=True):
        assert main(["--save-stats", source, target, *options, *tiny_options]) == 0
    capsys.readouterr()
    images_run.clear()
    for pair in ((reference, sets[1]), (sets[0], samples), (reference, samples)):
        record = printed(*pair, *options, "--no-cache")
        assert record["scores"] == pytest.approx(expected, rel=1e-6), pair
        protocol = record["protocols"][0]
        assert (protocol["extractor"], protocol["num_real"], protocol["num_fake"]) == ("tiny", 30, 25)
    assert sum(images_run) == 25 + 30, "what is stored is not run again"


def test_statistics_of_another_protocol_are_refused(sets, refused, tiny_options, capsys, tmp_path: Path) -> None:
    for name, options in {"clean": [], "tf": ["--protocol", "tensorflow"], "bf16": ["--precision", "bfloat16"]}.items():
        assert main(["--save-stats", sets[0], str(tmp_path / f"{name}.npz"), *options, *tiny_options]) == 0
    capsys.readouterr()
    clean, tensorflow, bfloat16 = (str(tmp_path / f"{name}.npz") for name in ("clean", "tf", "bf16"))
    assert "resizer 'clean', but this run has 'tensorflow'" in refused(clean, sets[1], "--protocol", "tensorflow")
    assert "resizer" in refused(tensorflow, clean)
    assert "precision 'bfloat16', but this run has 'float32'" in refused(bfloat16, sets[1])
    assert "resizer" in refused(sets[1], tensorflow), "on the samples' side, too"


def test_two_statistics_files_of_another_protocol_than_the_runs_are_refused(
    sets, printed: Printed, refused, tiny_options, capsys, tmp_path: Path
) -> None:
    pair = [str(tmp_path / "real.npz"), str(tmp_path / "fake.npz")]
    for source, target in zip(sets, pair, strict=True):
        assert main(["--save-stats", source, target, "--protocol", "tensorflow", *tiny_options]) == 0
    capsys.readouterr()
    assert "resizer 'tensorflow', but this run has 'pytorch-fid'" in refused(*pair, "--protocol", "pytorch-fid")
    assert "resizer 'tensorflow', but this run has" in refused(*pair), "what is not named is clean-fid's"
    assert "precision 'float32', but this run has 'bfloat16'" in refused(
        *pair, "--protocol", "tensorflow", "--precision", "bfloat16"
    )
    assert printed(*pair, "--protocol", "tensorflow")["scores"] == pytest.approx(
        printed(*sets, "--protocol", "tensorflow")["scores"], rel=1e-9
    )


def test_few_images_in_two_statistics_files_are_a_note(sets, printed: Printed, tmp_path: Path) -> None:
    few = str(tmp_path / "few.npz")
    np.savez(few, feats=np.random.default_rng(0).normal(size=(4, 6)))
    record = printed(few, few)
    assert any("4 real images are fewer than the 6 feature dimensions" in note for note in record["notes"])


def test_files_that_name_no_network_are_called_so_beside_one_that_does(
    sets, inception_file: Path, capsys, tmp_path: Path
) -> None:
    foreign, ours = str(tmp_path / "foreign.npz"), str(tmp_path / "ours.npz")
    np.savez(foreign, mu=np.zeros(2048), sigma=np.zeros((2048, 2048)))
    save_statistics(
        Path(ours),
        [FeatureEntry("inception-v3", "pool3", torch.ones(2048), torch.zeros(2048, 2048), provenance=_CLEAN)],
        num_images=9,
    )
    assert main([foreign, foreign, ours, "--json"]) == 0
    unknown, known = json.loads(capsys.readouterr().out)["results"]
    assert set(unknown["scores"]) == {"frechet_distance"} and set(known["scores"]) == {"fid"}


def test_save_stats_under_a_protocol_leaves_out_what_needs_no_reference(
    inception_file: Path, tmp_path: Path, write_folder, smooth_images
) -> None:
    few = write_folder(tmp_path / "few", smooth_images(3, 16, 16, seed=5))
    target = tmp_path / "adm.npz"
    assert main(["--save-stats", str(few), str(target), "--protocol", "adm", "--weights", str(inception_file), "--cpu"]) == 0
    assert {"mu", "sigma", "mu_s", "sigma_s", "features_0"} <= set(np.load(target))


def test_statistics_of_ones_own_network(sets, capsys, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(own_extractors.MEANS)
    own = ["--extractor", f"{tmp_path / 'own.py'}:Own", "--cpu", "--no-cache"]
    pair = [str(tmp_path / "real.npz"), str(tmp_path / "fake.npz")]
    for source, target in zip(sets, pair, strict=True):
        assert main(["--save-stats", source, target, *own]) == 0
    capsys.readouterr()
    found = []
    for paths in (sets, pair):
        assert main([*paths, *own, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["scores"]["frechet_distance"])
    assert found[1] == pytest.approx(found[0], rel=1e-9)


def test_features_of_ones_own_network_are_not_taken_from_before_an_edit(sets, tiny_options, capsys, tmp_path: Path) -> None:
    def distance() -> float:
        assert main([*sets, "--extractor", f"{file}:Own", "--cpu", "--json"]) == 0
        found: float = json.loads(capsys.readouterr().out)["scores"]["frechet_distance"]
        return found

    file = tmp_path / "own.py"
    file.write_text(own_extractors.MEANS)
    before = distance()
    file.write_text(own_extractors.MEANS.replace("* self.scale", "* 2.0 * self.scale"))
    assert distance() == pytest.approx(4.0 * before, rel=1e-5)


def test_what_statistics_cannot_hold_is_refused(sets, labelled, refused, tmp_path: Path) -> None:
    target = str(tmp_path / "x.npz")
    assert "looks at samples only" in refused("--save-stats", sets[0], target, "--metrics", "fid,is")
    assert "by class" in refused("--save-stats", labelled[0], target, "--metrics", "class-fid")
    assert "takes two paths" in refused("--save-stats", sets[0])
    assert "saved pipelines only" in refused("--save-stats", sets[0], target, "--num-samples", "3")
    assert not Path(target).exists()


# Damaged images, labels, analyses


def test_skip_corrupt_counts_and_names(sets, printed: Printed, refused, tmp_path: Path, write_folder, smooth_images) -> None:
    folder = write_folder(tmp_path / "some", smooth_images(25, 9, 9, seed=1, contrast=90.0))
    for index in (3, 17):
        path = folder / f"{index:04d}.png"
        path.write_bytes(path.read_bytes()[:50])
    message = refused(sets[0], str(folder))
    assert "0003.png" in message and "0017.png" in message
    record = printed(sets[0], str(folder), "--skip-corrupt")
    (note,) = [note for note in record["notes"] if "skipped" in note]
    assert note.startswith(f"2 images of {folder}") and "0003.png" in note and "0017.png" in note
    assert record["samples"].endswith("(image folder, 23 images)") and record["protocols"][0]["num_fake"] == 23
    for index in (3, 17):
        (folder / f"{index:04d}.png").unlink()
    assert record["scores"] == pytest.approx(printed(sets[0], str(folder))["scores"], rel=1e-12)


def test_skipped_images_are_counted_from_the_cache_as_well(
    sets, printed: Printed, tmp_path: Path, write_folder, smooth_images
) -> None:
    folder = write_folder(tmp_path / "some", smooth_images(9, 9, 9, seed=1))
    (folder / "0003.png").write_bytes(b"no image")
    first, second = (printed(sets[0], str(folder), "--skip-corrupt") for _ in range(2))
    assert second["scores"] == first["scores"] and second["samples"] == first["samples"]
    assert any("1 images" in note and "skipped" in note for note in second["notes"])


def test_class_fid_of_folders(labelled, sets, printed: Printed, refused, tiny_extractor) -> None:
    from metrics.scores.frechet import frechet_distance_from_features

    scores = printed(*labelled, "--metrics", "class-fid,fid")["scores"]
    per_class = []
    for label in ("bird", "cat", "dog"):
        pair = [printed_features(Path(root) / label, tiny_extractor) for root in labelled]
        per_class.append(frechet_distance_from_features(*pair))
    assert scores["class_frechet_distance"] == pytest.approx(np.mean(per_class), rel=1e-5)
    assert scores["class_frechet_distance"] != pytest.approx(scores["frechet_distance"], rel=0.05)
    assert "needs class labels" in refused(*sets, "--metrics", "class-fid")


def printed_features(folder: Path, extractor: Any) -> Tensor:
    """The tiny network's embedding of a folder, by hand."""
    from metrics.extraction import Extraction
    from metrics.sources import open_source

    images = [image for batch in open_source(folder).batches(64) for image in batch.images]
    return Extraction(extractor)(images, ["projection"])["projection"]


def test_class_matching(labelled, sets, printed: Printed, refused, tmp_path: Path) -> None:
    record = printed(*labelled, "--metrics", "fid", "--match-classes", "top1", "--match-num", "30", "--rng-seed", "1")
    scores = record["scores"]
    assert {"frechet_distance", "frechet_distance_drawn", "frechet_distance_matched"} == set(scores)
    assert scores["frechet_distance"] == printed(*labelled)["scores"]["frechet_distance"], "the plain score is untouched"
    assert any("class matching: 30 samples drawn of 36" in note for note in record["notes"])
    again = printed(*labelled, "--match-classes", "top1", "--match-num", "30", "--rng-seed", "1", "--no-cache")
    assert again["scores"] == scores
    assert "needs a reference and one sample set" in refused(*labelled, labelled[1], "--match-classes", "top1")


def test_classification_accuracy(labelled, sets, printed: Printed, refused) -> None:
    record = printed(*labelled, *_CAS, "--rng-seed", "1")
    assert 0.0 <= record["scores"]["cas_top1"] <= record["scores"]["cas_top5"] == 1.0
    assert any("resnet18 at 16 px trained 1 epochs" in note for note in record["notes"])
    assert printed(*labelled, *_CAS, "--rng-seed", "1")["scores"] == record["scores"]
    assert "--cas needs class labels" in refused(*sets, *_CAS)


def test_sensitivity_map(inception_file: Path, tmp_path: Path, write_folder, smooth_images, capsys) -> None:
    folders = [str(write_folder(tmp_path / str(seed), smooth_images(2, 20, 20, seed=seed))) for seed in (0, 1)]
    figure = tmp_path / "map.png"
    options = ["--weights", str(inception_file), "--device", "cpu", "--quiet", "--sensitivity-map", str(figure)]
    assert main([*folders, *options]) == 0
    assert f"{figure} shows what FID looks at in the first 2 samples" in capsys.readouterr().out
    with Image.open(figure) as image:
        assert image.format == "PNG" and min(image.size) >= 299


def test_sensitivity_map_needs_fid(sets, refused, tmp_path: Path) -> None:
    assert "needs FID and sample images" in refused(*sets, "--sensitivity-map", str(tmp_path / "map.png"))


def test_lower_precision_tells_what_it_costs(sets, printed: Printed) -> None:
    record = printed(*sets, "--precision", "bfloat16")
    exact = printed(*sets)["scores"]["frechet_distance"]
    (effect,) = [note for note in record["notes"] if "moved frechet_distance by" in note]
    told = float(effect.split("by ")[1].split(" %")[0])
    assert told == pytest.approx(100 * (record["scores"]["frechet_distance"] / exact - 1), abs=0.01)
    assert f"({exact:.4f} in float32)" in effect and "30 + 25 images" in effect
    assert any("compare only with scores at the same precision" in note for note in record["notes"])
    assert record["protocols"][0]["precision"] == "bfloat16"
    same = printed(sets[0], sets[0], "--precision", "bfloat16")
    assert any("moved frechet_distance by" in note for note in same["notes"]), "a float32 distance of 0 divides nothing"


def test_rules_of_metrics_reach_them(sets, printed: Printed) -> None:
    def parameters(*options: str) -> dict[str, Any]:
        return printed(*sets, *options)["protocols"][0]["metrics"]

    found = parameters(
        "--metrics", "is,kid,prc", "--isc-splits", "3", "--kid-subsets", "5", "--kid-subset-size", "9", "--nearest-k", "4"
    )
    assert found["inception_score"]["splits"] == 3 and found["precision_recall"]["k"] == 4
    assert (found["kid"]["subsets"], found["kid"]["subset_size"], found["kid"]["seed"]) == (5, 9, 2020)
    seeded = parameters("--metrics", "is,kid", "--rng-seed", "7")
    assert (seeded["inception_score"]["shuffle_seed"], seeded["kid"]["seed"]) == (7, 7)
    assert parameters("--metrics", "is", "--isc-splits", "20")["inception_score"]["splits"] == 1, "25 images: as it was taken"
    unshuffled = parameters("--metrics", "is", "--no-samples-shuffle", "--rng-seed", "7")
    assert unshuffled["inception_score"]["shuffle_seed"] is None
    default, seeded_kid = (
        printed(*sets, "--kid", "--kid-subset-size", "9", *more)["scores"] for more in ([], ["--rng-seed", "1"])
    )
    assert default != seeded_kid


def test_two_metrics_of_one_distance_keep_their_names(sets, printed: Printed) -> None:
    record = printed(*sets, "--metrics", "fid,fd,frechet")
    assert set(record["scores"]) == {"frechet_distance"}, "one score, under three names"


def test_from_python(sets, tiny_options, capsys, printed: Printed) -> None:
    record = score(sets[1], sets[0], extractor="tiny", device="cpu", metrics="fid,kid")
    assert capsys.readouterr().out == "", "a function prints nothing"
    assert record == printed(*sets, "--metrics", "fid,kid")
    many = score([sets[1], sets[0]], sets[0], extractor="tiny", device="cpu")
    assert len(many["results"]) == 2 and many["results"][1]["scores"]["frechet_distance"] == pytest.approx(0.0, abs=1e-6)
    assert set(score(sets[1], extractor="tiny", device="cpu", metrics="is")["scores"]) == {
        "classifier_score_mean",
        "classifier_score_std",
    }
    alone = score([sets[0], sets[1]], extractor="tiny", device="cpu", metrics="is")
    assert alone["reference"] == "none" and [result["path"] for result in alone["results"]] == list(sets)
    with pytest.raises(ValueError, match="writes no statistics"):
        score(sets[1], sets[0], extractor="tiny", save_stats=True)
    with pytest.raises(TypeError, match="no option 'batchsize'"):
        score(sets[1], sets[0], extractor="tiny", batchsize=3)
    with pytest.raises(ValueError, match="reference"):
        score(sets[1], extractor="tiny", device="cpu")


def test_a_path_may_look_like_a_flag(sets, tiny_options, printed: Printed, monkeypatch, tmp_path: Path) -> None:
    Path(sets[1]).rename(tmp_path / "-cfg3")
    monkeypatch.chdir(tmp_path)
    scores = score("-cfg3", sets[0], extractor="tiny", device="cpu")["scores"]
    assert scores == printed(sets[0], "./-cfg3")["scores"]
    assert main([*tiny_options, sets[0], "--", "-cfg3"]) == 0
    with pytest.raises(FileNotFoundError, match="--quiet does not exist"):
        score("--quiet", "-cfg3", extractor="tiny", device="cpu")


@pytest.mark.parametrize("options", [{"metrics": ["fid", "kid"]}, {"weights": "tiny=w.pth"}, {"weights": Path("w.pth")}])
def test_python_takes_what_python_has(sets, tiny_options, options: dict[str, Any]) -> None:
    assert score(sets[1], sets[0], extractor="tiny", device="cpu", **options)["scores"]


@pytest.mark.parametrize(("name", "value"), [("protocol", "bogus"), ("kid_subsets", 0)])
def test_python_refuses_what_the_command_line_does(sets, tiny_options, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name.replace("_", ".")):
        score(sets[1], sets[0], device="cpu", **{"extractor": "tiny", name: value})


def test_python_writes_the_files_it_is_asked_for(sets, tiny_options, capsys, tmp_path: Path) -> None:
    score(sets[1], sets[0], extractor="tiny", device="cpu", csv=tmp_path / "s.csv", json=tmp_path / "s.json")
    assert (tmp_path / "s.csv").read_text().count("\n") == 2 and json.loads((tmp_path / "s.json").read_text())["scores"]
    assert capsys.readouterr().out == ""


def test_flags_of_analyses_are_checked_before_any_work(sets, labelled, refused, images_run: list[int]) -> None:
    assert "--match-classes top1" in refused(*sets, "--match-num", "3")
    assert "no torchvision classifier" in refused(*labelled, "--cas", "resnet5O")
    assert images_run == []


def test_a_figure_of_no_known_format_is_refused_at_once(sets, refused, images_run: list[int], tmp_path: Path) -> None:
    refused(*sets, "--plot", str(tmp_path / "scores.foo"))
    assert images_run == []


def test_interrupted_while_torch_is_imported(sets, tiny_options, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("metrics.allocator.keep_freed_memory", stop)
    assert main([*sets, *tiny_options]) == 130
    assert capsys.readouterr().err.startswith("interrupted")


def test_interrupted(sets, tiny_options, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(options: ScoreOptions) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("metrics.scoring.run", stop)
    assert main([*sets, *tiny_options]) == 130
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("interrupted: run the same command again")


def test_other_tools_lines_say_where_the_number_differs() -> None:
    from metrics.cli import parse_arguments
    from metrics.scoring.plan import score_names, spelling_notes

    def notes(*words: str) -> list[str]:
        options = parse_arguments(words)
        return spelling_notes(score_names(options), options)

    assert "--protocol pytorch-fid" in notes("a", "b", "--dims", "2048", "--batch-size", "50")[0]
    assert "--extractor vgg16" in notes("--input1", "b", "--input2", "a", "--prc")[0]
    assert notes("a", "b", "--dims", "64", "--protocol", "pytorch-fid") == notes("--input1", "b", "--input2", "a", "--fid") == []
