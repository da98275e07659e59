"""The pickle reader: every protocol's arrays come through, and nothing that runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metrics.files import safe_pickle

_ARRAYS = [
    np.arange(6, dtype=np.float64).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    np.arange(4, dtype=">f8"),
    np.zeros((0, 3), np.float16),
    np.array(2.5),
    np.array([True, False]),
    np.arange(3, dtype=np.uint8),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_come_through_every_protocol(protocol: int) -> None:
    shared = [1, -(2**70), 2.5, "text", None, True]
    content = {"arrays": _ARRAYS, "nested": {"tuple": (1, (2, "ü")), "bytes": b"\x00\xff"}, "a": shared, "b": shared}
    read = safe_pickle.loads(pickle.dumps(content, protocol), "x")
    assert read["nested"] == content["nested"] and read["a"] == read["b"] == shared
    for ours, expected in zip(read["arrays"], _ARRAYS, strict=True):
        assert ours.dtype == expected.dtype and ours.shape == expected.shape and np.array_equal(ours, expected)
    assert safe_pickle.loads(pickle.dumps({"n": np.float64(1.5), "i": np.int32(-3)}, protocol), "x") == {"n": 1.5, "i": -3}


def test_names_of_old_numpy_are_known() -> None:
    content = pickle.dumps(np.arange(3.0), 2)
    assert b"numpy._core.multiarray" in content
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert np.array_equal(safe_pickle.loads(old, "x"), np.arange(3.0))


class _Runs:
    """Its pickle creates a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "ran"
    content = pickle.dumps({"fid": {"mu": np.zeros(2), "sigma": _Runs(target)}}, protocol)
    with pytest.raises(ValueError, match=r"pickle x is refused or damaged: it asks for (posix|nt)\.mkdir, and only"):
        safe_pickle.loads(content, "x")
    assert not target.exists()
    pickle.loads(content)
    assert target.exists(), "the pickle is a working attack"


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x13testing.runstring\x93.",  # dotted STACK_GLOBAL
        b"\x80\x02cnumpy\nndarray\nK\x05\x85\x81.",  # NEWOBJ of an allowed name
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",  # object arrays
        b"\x80\x02cnumpy\ndtype\nU\x02V8\x85R.",  # raw memory
        b"Ptest\n.",  # persistent id
        b"\x82\x01.",  # extension registry
        b"cnumpy\nndarray\n.",  # a name where data belong
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR.",  # 1 TB, then nothing in it
        b"\x80\x02cnumpy\nndarray\n}U\x08__code__K\x01sb.",  # BUILD on a function
        b"]r\xff\xff\xff\x7f.",  # a memo of 16 GB
        b"}]K\x01s.",  # a list as a key
        b"\x80\x04]\x94h\x00a.",  # a list in itself
    ],
)
def test_other_ways_to_do_harm_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^pickle x is (refused|truncated) or damaged.*use an unmodified copy\.$"):
        safe_pickle.loads(content, "x")


def test_nothing_set_on_a_stand_in_outlasts_its_file() -> None:
    before = dict(vars(safe_pickle._Array))
    with pytest.raises(ValueError):
        safe_pickle.loads(b"\x80\x02cnumpy\nndarray\n}U\x0c__setstate__K\x01sb.", "x")
    assert dict(vars(safe_pickle._Array)) == before
    assert np.array_equal(safe_pickle.loads(pickle.dumps(np.ones(2)), "x"), np.ones(2))


def test_many_references_to_one_list_do_not_multiply() -> None:
    content: list[Any] = [0]
    for _ in range(12):
        content = [content] * 40
    with_limits = pickle.dumps(content)
    read = safe_pickle.loads(with_limits, "x")
    assert read[0] is read[39]


def test_objects_arrays_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"):
        safe_pickle.loads(pickle.dumps(np.array([{}, []], dtype=object)), "x")
    short = pickle.dumps(np.arange(4.0), 4).replace(b"K\x04\x85", b"K\x05\x85")
    with pytest.raises(ValueError, match=r"an array of shape \(5,\) has 32 bytes"):
        safe_pickle.loads(short, "x")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        safe_pickle.load(tmp_path / "absent.pkl")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": 1}))
    assert safe_pickle.load(tmp_path / "x.pkl") == {"a": 1}


def test_too_large_a_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(b"x" * 200))
    monkeypatch.setattr(safe_pickle, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"x\.pkl has \d+ bytes: statistics have less than 100"):
        safe_pickle.load(tmp_path / "x.pkl")
