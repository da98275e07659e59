"""Figures that others published, scored again with published weights: gigabytes to download, hours on a CPU.

    TRIPTYCH_GOLDEN=~/golden pytest -m network tests/metrics/test_published_figures.py

Files are kept in the folder that TRIPTYCH_GOLDEN names (else in a temporary one); put them there by hand where nothing can
be downloaded.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metrics import score

pytestmark = pytest.mark.network
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("TRIPTYCH_GOLDEN")
    path = Path(folder).expanduser() if folder else tmp_path_factory.mktemp("golden")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def fetched(golden: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The function url -> local file; weights go to the same folder."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(golden))

    def fetch(url: str) -> Path:
        path = golden / url.rsplit("/", 1)[1]
        if not path.is_file():
            partial = path.with_suffix(".part")
            urllib.request.urlretrieve(url, partial)
            partial.replace(path)
        return path

    return fetch


def test_adm_evaluator(fetched: Callable[[str], Path]) -> None:
    """guided-diffusion, evaluations/README.md: what its TensorFlow evaluator prints for ADM-G upsampled."""
    reference = fetched(f"{_ADM}/VIRTUAL_imagenet256_labeled.npz")
    samples = fetched(f"{_ADM}/admnet_guided_upsampled_imagenet256.npz")
    scores: dict[str, Any] = score(samples, reference, protocol="adm")["scores"]
    assert scores["inception_score_mean"] == pytest.approx(215.8370, rel=2e-3)
    assert scores["fid"] == pytest.approx(3.942557, rel=2e-3)
    assert scores["sfid"] == pytest.approx(6.140434, rel=2e-3)
    # Its distances are float16: a PyTorch port of it (issue 159 there) got 0.8259 and 0.5282.
    assert scores["precision"] == pytest.approx(0.8265, abs=5e-3)
    assert scores["recall"] == pytest.approx(0.5309, abs=5e-3)


def test_inception_score_of_cifar10(golden: Path, fetched: Callable[[str], Path], tmp_path: Path) -> None:
    """torch-fidelity's README: Inception Score 11.23678 +- 0.09514 of CIFAR-10's training images."""
    from torchvision.datasets import CIFAR10

    images = CIFAR10(golden, train=True, download=True).data  # (50000, 32, 32, 3) uint8
    np.savez(tmp_path / "cifar10.npz", images)
    scores = score(tmp_path / "cifar10.npz", metrics="is", protocol="tensorflow")["scores"]
    assert scores["inception_score_mean"] == pytest.approx(11.23678, abs=1e-3)
    assert scores["inception_score_std"] == pytest.approx(0.09514, abs=1e-3)
