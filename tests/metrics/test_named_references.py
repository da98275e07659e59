"""References by name, against clean-fid: the same seeded weights, statistics that its own code made here."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from metrics.cli import main
from metrics.extractors import FeatureExtractor, build_extractor
from metrics.files import weights
from metrics.files.named_datasets import DATASETS, NamedReference, resolve_reference
from metrics.scoring import named, plan, score

_COUNT = 4
_NAME = "cifar10_clean_train_32"
cleanfid = pytest.importorskip("cleanfid")
pytestmark = pytest.mark.filterwarnings("ignore::metrics.metric.SmallSampleWarning")


@pytest.fixture(scope="module")
def rivals(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    pytest.importorskip("pytorch_fid")
    return benchmark_module("rivals")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, smooth_images: Any, write_folder: Any) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("images")
    return tuple(  # type: ignore[return-value]
        write_folder(root / name, smooth_images(_COUNT, 40, 40, seed=seed, contrast=contrast))
        for name, seed, contrast in (("real", 0, 60.0), ("fake", 1, 90.0))
    )


@pytest.fixture(scope="module")
def made(rivals: ModuleType, folders: tuple[Path, Path], inception_file: Path, tmp_path_factory) -> Path:
    """A folder of clean-fid's statistics, made by its ``make_custom_stats`` and named as its published ones, too."""
    from cleanfid import fid

    root = tmp_path_factory.mktemp("cleanfid")
    with (
        mock.patch.object(cleanfid, "__file__", str(root / "__init__.py")),
        rivals.clean_fid_weights(inception_file, traced=False),
        rivals.quiet(),
    ):
        device = torch.device("cpu")
        with mock.patch("torch.nn.DataParallel", lambda network: network):
            fid.make_custom_stats("Mine", str(folders[0]), device=device, batch_size=1, verbose=False)
    stats = root / "stats"
    for suffix in ("", "_kid"):
        (stats / f"{_NAME}{suffix}.npz").write_bytes((stats / f"mine_clean_custom_na{suffix}.npz").read_bytes())
    return stats


@pytest.fixture(scope="module")
def network(inception_file: Path) -> FeatureExtractor:
    return build_extractor("inception-v3", weights=inception_file)


@pytest.fixture
def printed(network: FeatureExtractor, inception_file: Path, capsys) -> Callable[..., dict[str, Any]]:
    def run(paths: Sequence[Path | str], *arguments: str) -> dict[str, Any]:
        options = ["--weights", str(inception_file), "--device", "cpu", "--quiet", "--json"]
        with mock.patch.object(plan, "build_extractor", lambda *_, **__: network):
            code = main([*map(str, paths), *arguments, *options])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)

    return run


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        assert main([*map(str, arguments), "--device", "cpu", "--quiet"]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let no test reach a server; the addresses that were asked for."""
    asked: list[str] = []

    def refuse(url: str, timeout: float = 0.0) -> Any:
        asked.append(url)
        raise OSError("no network here")

    monkeypatch.setattr(weights.urllib.request, "urlopen", refuse)
    return asked


@pytest.fixture
def own_cache(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let clean-fid's own folder be the one made here."""
    monkeypatch.setattr(cleanfid, "__file__", str(made.parent / "__init__.py"))
    return made


def _theirs(rivals: ModuleType, folder: Path, weights: Path, kid: bool = False, **named: Any) -> float:
    from cleanfid import fid

    def distance(mu1, sigma1, mu2, sigma2) -> float:
        # Tr (S1 S2)^(1/2) of clean-fid's own moments: the product has the rank of the few images, so eigenvalues do.
        values, vectors = np.linalg.eigh(sigma1)
        root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
        trace = np.sqrt(np.linalg.eigvalsh(root @ sigma2 @ root).clip(0.0)).sum()
        return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * trace)

    options = {"device": torch.device("cpu"), "num_workers": 0, "batch_size": 1, "use_dataparallel": False, "verbose": False}
    compute = fid.compute_kid if kid else fid.compute_fid
    with rivals.clean_fid_weights(weights, traced=False), rivals.quiet(), mock.patch.object(fid, "frechet_distance", distance):
        return float(compute(str(folder), **named, **options))


def test_equals_clean_fid(rivals, folders, inception_file, own_cache, printed, offline) -> None:
    published = {"dataset_name": "cifar10", "dataset_res": 32, "dataset_split": "train"}
    record = printed([folders[1]], "--dataset", "cifar10", "--dataset-split", "train", "--metrics", "fid,kid")
    assert record["scores"]["fid"] == pytest.approx(_theirs(rivals, folders[1], inception_file, **published), rel=1e-5)
    # With fewer than 1,000 images each of clean-fid's subsets is the whole set.
    expected = _theirs(rivals, folders[1], inception_file, kid=True, **published)
    assert record["scores"]["kernel_distance"] == pytest.approx(expected, rel=1e-5)
    assert any("cifar10, split train at 32 px, mode clean" in note for note in record["notes"])
    assert record["protocols"][0]["num_real"] == _COUNT and offline == []
    custom = printed([folders[1]], "--dataset", "Mine")
    assert custom["scores"]["fid"] == pytest.approx(record["scores"]["fid"], rel=1e-9)
    same = printed([folders[0]], "--dataset", "mine", "--dataset-split", "custom")
    assert abs(same["scores"]["fid"]) < 1e-3 * record["scores"]["fid"]


def test_python_and_several_sets(folders, own_cache, network, inception_file) -> None:
    with mock.patch.object(plan, "build_extractor", lambda *_, **__: network):
        record = score([*folders], dataset="cifar10", device="cpu", weights=[str(inception_file)])
        assert [result["path"] for result in record["results"]] == [str(folder) for folder in folders]
        with pytest.raises(ValueError, match="give one of them"):
            score(folders[0], folders[1], dataset="cifar10")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_a_folder_or_archive_is_enough(kind: str, folders, made: Path, printed, tmp_path: Path, offline) -> None:
    root = tmp_path / f"stats.{kind}"
    names = [f"{_NAME}.npz", f"{_NAME}_kid.npz"]
    if kind == "folder":
        root = made
    elif kind == "zip":
        with zipfile.ZipFile(root, "w") as archive:
            for name in names:
                archive.write(made / name, f"deep/er/{name}")
    else:
        with tarfile.open(root, "w:gz" if kind == "tar.gz" else "w") as tar:
            for name in names:
                tar.add(made / name, f"./{name}")
    record = printed([folders[1]], "--dataset", "CIFAR10", "--dataset-root", str(root), "--metrics", "fid,kid")
    assert record["scores"]["fid"] > 0.0 and "stats" in record["reference"] and _NAME in record["reference"]
    assert offline == []


def test_modes_are_protocols(folders, made: Path, printed, refused, tmp_path: Path) -> None:
    for mode in ("legacy_pytorch", "legacy_tensorflow"):
        (tmp_path / f"cifar10_{mode}_train_32.npz").write_bytes((made / f"{_NAME}.npz").read_bytes())
    found = [folders[1]], "--dataset", "cifar10", "--dataset-root", str(tmp_path)
    for arguments, resizer in (
        (["--mode", "legacy_pytorch"], "pytorch-fid"),
        (["--protocol", "pytorch-fid"], "pytorch-fid"),
        (["--mode", "legacy_tensorflow"], "tensorflow"),
    ):
        record = printed(*found, *arguments)
        assert record["protocols"][0]["resizer"] == resizer and record["protocol"].startswith(resizer)
    assert "cifar10_clean_train_32.npz" in refused(*found[0], *found[1:])
    assert "give one of them" in refused(*found[0], *found[1:], "--mode", "clean", "--protocol", "tensorflow")
    assert "clean, pytorch-fid, tensorflow" in refused(*found[0], *found[1:], "--protocol", "adm")


def test_an_absent_file_is_told_with_its_address(folders, refused, tmp_path: Path, monkeypatch, offline) -> None:
    monkeypatch.setattr(cleanfid, "__file__", str(tmp_path / "__init__.py"))
    error = refused(folders[1], "--dataset", "cifar10")
    url = "https://www.cs.cmu.edu/~clean-fid/stats/cifar10_clean_train_32.npz"
    assert url in error and str(tmp_path / "stats" / f"{_NAME}.npz") in error and "--dataset-root" in error
    assert offline == [url]
    assert not list((tmp_path / "stats").glob("*"))
    error = refused(folders[1], "--dataset", "cifar11")
    assert "cifar10, ffhq" in error and "make_custom_stats" in error and len(offline) == 1


def test_a_download_is_whole_or_not_at_all(folders, made: Path, printed, refused, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cleanfid, "__file__", str(tmp_path / "__init__.py"))
    content, promised = (made / f"{_NAME}.npz").read_bytes(), 0

    class Answer(io.BytesIO):
        @property
        def headers(self) -> dict[str, str]:
            return {"Content-Length": str(promised)}

    answer = content[:1000]
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda url, timeout: Answer(answer))
    promised = len(content)
    assert "broke after 1000" in refused(folders[1], "--dataset", "cifar10")
    answer, promised = b"<html>404</html>", 16
    assert "npz" in refused(folders[1], "--dataset", "cifar10")
    assert not list((tmp_path / "stats").glob("*"))
    answer, promised = content, len(content)
    assert printed([folders[1]], "--dataset", "cifar10")["scores"]["fid"] > 0.0
    assert [path.name for path in (tmp_path / "stats").iterdir()] == [f"{_NAME}.npz"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "ffhq"], "trainval and trainval70k"),
        (["--dataset", "ffhq", "--dataset-split", "trainval"], "1024 and 256"),
        (["--dataset", "x", "--dataset-split", "train"], "--dataset-res"),
        (["--dataset", "../x"], "letters"),
        (["--dataset", "cifar10", "--dataset-split", "a/b"], "letters"),
        (["--dataset", "cifar10", "--dataset-split", "custom", "--dataset-res", "32"], "no resolution"),
        (["--dataset", "cifar10", "--dataset-split", "val"], "train or test"),
        (["--dataset", "cifar10", "--metrics", "sfid"], "sfid"),
        (["--dataset", "cifar10", "--metrics", "is"], "needs none"),
        (["--dataset", "cifar10", "--metrics", "class-fid"], "class-fid"),
        (["--dataset", "cifar10", "--dims", "64"], "fid needs more"),
        (["--dataset", "cifar10", "--extractor", "efficientnet-lite0"], "fid needs more"),
        (["--dataset", "cifar10", "--dataset-root", "{tmp}/none"], "does not exist"),
        (["--dataset", "cifar10", "--dataset-root", "{tmp}"], "no .npz file"),
        (["--dataset", "cifar10", "--dataset-root", "{tmp}/bad.tar"], "can't be read"),
        (["--dataset", "cifar10", "--save-stats", "out.npz"], "--save-stats"),
        (["--dataset-split", "train"], "name a data set"),
    ],
)
def test_wrong_names_get_one_sentence(arguments: list[str], said: str, folders, refused, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cleanfid, "__file__", str(tmp_path / "package" / "__init__.py"))
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    assert said in refused(folders[1], *(text.format(tmp=tmp_path) for text in arguments))


def test_a_pickle_is_not_run(folders, refused, tmp_path: Path) -> None:
    np.savez(tmp_path / f"{_NAME}.npz", mu=np.array([object()], dtype=object), sigma=np.array([object()], dtype=object))
    error = refused(folders[1], "--dataset", "cifar10", "--dataset-root", tmp_path)
    assert _NAME in error and "object" in error


def test_files_are_those_that_clean_fid_asks_for() -> None:
    file = named._ask_clean_fid(NamedReference("ffhq", "trainval70k", 256), "clean", "clip_vit_b_32", "FID")
    assert file.name == "ffhq_clean_clip_vit_b_32_trainval70k_256.npz"
    assert file.folder == Path(cleanfid.__file__).parent / "stats"
    assert resolve_reference("Own", None, None) == NamedReference("own", "custom", "na")
    for name, known in DATASETS.items():
        for split in known.splits:
            for resolution in known.resolutions:
                assert resolve_reference(name, split, resolution).is_published


def test_help_needs_no_clean_fid() -> None:
    code = "import sys\nfrom metrics.cli import main\nmain(['--help'])\nassert not {'cleanfid', 'torch'} & set(sys.modules)"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in text for name in DATASETS) and "--dataset-root" in text
