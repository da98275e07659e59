"""Our networks, built from official options and loaded with official weights, against the official implementations' outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from outputs import Given, compute, find
from torch import Tensor

from generative.convert import get_source, load_official
from generative.core.errors import UserError

FindAdapter = Callable[[str], ModuleType]


def relative_difference(ours: Tensor, expected: Tensor) -> float:
    """Largest difference over the expected output's largest value; infinite for NaN or another shape."""
    if ours.shape != expected.shape:
        return math.inf
    difference = (ours.double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    relative = difference / scale if scale > 0 else difference
    return math.inf if math.isnan(relative) else relative


def mismatch(name: str, ours: Tensor, expected: Tensor, tolerance: float) -> str | None:
    """One line on an output that differs, None if it is equal to the tolerance (integers: equal)."""
    if not expected.is_floating_point():
        same = ours.shape == expected.shape and torch.equal(ours.to(expected.dtype), expected)
        return None if same else f"{name}: integers differ"
    difference = relative_difference(ours, expected)
    if difference <= tolerance:
        return None
    shapes = f"shape {tuple(ours.shape)}, expected {tuple(expected.shape)}"
    return f"{name}: relative difference {difference:.2e} > {tolerance:.0e}, {shapes}"


def options(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The dictionaries in which options stand: the config itself, or one for each module."""
    nested = [value for value in config.values() if isinstance(value, dict)]
    return nested if nested and len(nested) == len(config) else [config]


def test_outputs_equal_the_official_ones(parity_file: Any, find_adapter: FindAdapter) -> None:
    adapter = find_adapter(parity_file.model)
    source = get_source(adapter.SOURCE)
    networks = source.build(copy.deepcopy(parity_file.config))
    load_official(source, networks, parity_file.weights)
    given = Given(networks, parity_file.inputs, parity_file.config, parity_file.sampling, parity_file.outputs)
    outputs = compute(adapter, given, sorted(parity_file.outputs))
    assert sorted(outputs) == sorted(parity_file.outputs)
    problems = []
    for name, expected in parity_file.outputs.items():
        tolerance = parity_file.gradient_tolerance if "grad/" in name else parity_file.tolerance
        problems.append(mismatch(name, outputs[name].detach(), expected, tolerance))
    found = [problem for problem in problems if problem]
    assert not found, "\n".join(found)


def test_unknown_option_is_refused(parity_file: Any, find_adapter: FindAdapter) -> None:
    adapter = find_adapter(parity_file.model)
    source = get_source(adapter.SOURCE)
    for index in range(len(options(parity_file.config))):
        config = copy.deepcopy(parity_file.config)
        options(config)[index]["no_such_option"] = 1
        with pytest.raises(UserError, match="no_such_option"):
            source.build(config)


def test_missing_and_left_over_weights_are_refused(parity_file: Any, find_adapter: FindAdapter) -> None:
    adapter = find_adapter(parity_file.model)
    source = get_source(adapter.SOURCE)
    networks = source.build(copy.deepcopy(parity_file.config))
    if not networks:  # a process or a transform: its file may hold no weights at all
        with pytest.raises(UserError, match="no_such.weight"):
            load_official(source, networks, parity_file.weights | {"no_such.weight": torch.zeros(1)})
        return
    weights = [key for key in parity_file.weights if key.endswith((".weight", ".weight_orig"))]
    some_key = weights[0] if weights else next(iter(parity_file.weights))
    without = {key: value for key, value in parity_file.weights.items() if key != some_key}
    with pytest.raises(UserError, match="lacks"):
        load_official(source, networks, without)
    prefix = some_key.partition("/")[0] + "/" if "/" in some_key else ""
    with pytest.raises(UserError, match="no_such.weight"):
        load_official(source, networks, parity_file.weights | {f"{prefix}no_such.weight": torch.zeros(1)})


def test_unknown_output_is_refused(parity_file: Any, find_adapter: FindAdapter) -> None:
    adapter = find_adapter(parity_file.model)
    networks = get_source(adapter.SOURCE).build(copy.deepcopy(parity_file.config))
    with pytest.raises(KeyError, match="no_such_output"):
        compute(adapter, Given(networks, parity_file.inputs, parity_file.config), ["no_such_output"])


def test_unknown_model_fails_and_is_not_skipped(find_adapter: FindAdapter) -> None:
    with pytest.raises(UserError, match="no-such-model"):
        get_source("no-such-model")
    with pytest.raises(pytest.fail.Exception, match="no parity adapter for model 'no-such-model'"):
        find_adapter("no-such-model")


def test_there_are_parity_files() -> None:
    assert len(list((Path(__file__).parent / "vectors").glob("*.safetensors"))) >= 2


def test_a_difference_is_found() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert mismatch("x", expected + torch.tensor([0.0, 5e-4]), expected, 1e-4) is not None
    assert mismatch("x", expected + torch.tensor([0.0, 3e-4]), expected, 1e-4) is None
    assert mismatch("x", torch.tensor([math.nan, -4.0]), expected, 1e-4) is not None
    assert mismatch("x", expected[:1], expected, 1e-4) is not None
    assert mismatch("n", torch.tensor([3]), torch.tensor([4]), 1e-4) is not None


def test_a_table_is_read_by_name_or_expression() -> None:
    one = torch.ones(1)
    table = {"loss": one, r"step(\d+)(_last)?": lambda steps, last: one * int(steps) * (2 if last else 1), ".+/a": {"x/a": one}}
    assert find(table, "loss") is one and find(table, "step3") == 3 and find(table, "step3_last") == 6
    adapter = SimpleNamespace(outputs=lambda given: table)
    assert compute(adapter, Given({}, {}, {}), ["x/a", "step2"]) == {"x/a": one, "step2": 2 * one}
    for unknown in ("losses", "step", "a", "y/a"):
        with pytest.raises(KeyError, match=unknown):
            compute(adapter, Given({}, {}, {}), [unknown])
