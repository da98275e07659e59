"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_pipelines import tiny_gan


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of a command lead into the test's folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the pipeline of a tiny GAN of 3 classes."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    tiny_gan().save_pretrained(folder / "pipeline")
    return folder
