"""Makes the contract of pipelines importable by the tests of families."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for ``contract``
pytest.register_assert_rewrite("contract")
