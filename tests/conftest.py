"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.append(str(Path(__file__).parent / "helpers"))  # modules that tests of several folders share


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module of tiny objectives, networks and pipelines, importable as ``toy``."""
    if "toy" not in sys.modules:
        spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "generative" / "core" / "toy.py")
        assert spec is not None and spec.loader is not None
        sys.modules["toy"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["toy"]
