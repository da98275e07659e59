"""Parity files: what the official implementations compute, with their weights, inputs and options."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # modules that several adapters share, such as biggan_outputs
DEFAULT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ParityFile:
    """One parity file.

    Attributes:
        model: Name of the source in ``generative.convert``.
        config: Official constructor arguments.
        sampling: Options of the recorded sampling that the config does not hold; empty where the file names none.
        tolerance: Largest difference allowed, relative to the output's largest value.
        gradient_tolerance: The same for outputs named ``grad/...``.
        weights: Official state, ``<key>`` or ``<module>/<key>``.
        inputs: Inputs by name.
        outputs: Expected outputs by name.
    """

    path: Path
    model: str
    config: dict[str, Any]
    sampling: dict[str, Any]
    tolerance: float
    gradient_tolerance: float
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def read_number(text: str) -> float:
    """First number of a text such as ``1e-3 (outputs/grad/*)``."""
    match = re.search(r"\d+(\.\d*)?([eE][-+]?\d+)?", text)
    if match is None:
        raise ValueError(f"tolerance {text!r} holds no number")
    return float(match[0])


def read_parity_file(path: Path) -> ParityFile:
    """Read a parity file, every tensor of which must be a weight, an input or an output."""
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "inputs": {}, "outputs": {}}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118 - not a dictionary
            group, _, name = key.partition("/")
            groups[group][name] = file.get_tensor(key)
    tolerance = read_number(metadata.get("tolerance", str(DEFAULT_TOLERANCE)))
    gradient_tolerance = read_number(metadata["tolerance_grad"]) if "tolerance_grad" in metadata else tolerance
    config, sampling = json.loads(metadata["config"]), json.loads(metadata.get("sampling", "{}"))
    return ParityFile(path, metadata["model"], config, sampling, tolerance, gradient_tolerance, **groups)


def parity_paths() -> list[Path]:
    """Files beside the tests and in the folder that the environment variable PARITY_VECTORS names."""
    folders = [HERE / "vectors"]
    if os.environ.get("PARITY_VECTORS"):
        folders.append(Path(os.environ["PARITY_VECTORS"]))
        if not folders[-1].is_dir():
            raise pytest.UsageError(f"PARITY_VECTORS names '{folders[-1]}', which is not a folder")
    return [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]


def load_adapter(model: str) -> ModuleType:
    """Import the adapter of a model by its file name; a model without one fails the test."""
    path = HERE / "adapters" / f"{model.replace('-', '_')}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.py")))
        pytest.fail(f"there is no parity adapter for model '{model}' (tests/parity/adapters has {known})", pytrace=False)
    spec = importlib.util.spec_from_file_location(f"parity_adapter_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``parity_path`` once for each parity file."""
    if "parity_path" in metafunc.fixturenames:
        paths = parity_paths()
        metafunc.parametrize("parity_path", paths, ids=[f"{path.parent.name}/{path.stem}" for path in paths])


@pytest.fixture
def parity_file(parity_path: Path) -> ParityFile:
    """The parity file of this test."""
    return read_parity_file(parity_path)


@pytest.fixture
def find_adapter() -> Callable[[str], ModuleType]:
    """Function from a model's name to its adapter; called in the test, so that an unknown model is a failure of it."""
    return load_adapter
