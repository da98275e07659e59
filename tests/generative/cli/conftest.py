"""Fixtures of the command line's tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module of tiny objectives, importable as ``toy``."""
    if "toy" not in sys.modules:
        spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "core" / "toy.py")
        assert spec is not None and spec.loader is not None
        sys.modules["toy"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["toy"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Toys are too small for two threads: handing the work over takes longer than doing it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of a command lead into the test's folder."""
    monkeypatch.chdir(tmp_path)
