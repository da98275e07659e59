"""The toy tokenizer, for the tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy_tokenizer() -> ModuleType:
    """The module of a tiny tokenizer and its objective, importable as ``toy_tokenizer``."""
    if "toy_tokenizer" not in sys.modules:
        spec = importlib.util.spec_from_file_location("toy_tokenizer", Path(__file__).parent / "toy_tokenizer.py")
        assert spec is not None and spec.loader is not None
        sys.modules["toy_tokenizer"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["toy_tokenizer"]
