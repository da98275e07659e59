"""The pickle reader: official-looking files are read, and nothing a stranger wrote is executed."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generative.core.errors import UserError
from generative.data.batch_files import read_batch


def python2_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes Python 2 and NumPy 1 wrote into the official files: byte strings, ``cnumpy.core.multiarray``, protocol 2."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    raw = pixels.tobytes()
    shape = b"K" + bytes([len(pixels)]) + b"M" + struct.pack("<H", 3072) + b"\x86"
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = reconstruct + b"(K\x01" + shape + dtype + b"\x89" + b"T" + struct.pack("<I", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text("batch_label") + text("x") + text("labels") + numbers + text("data") + array + b"u."


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)


def test_python2_files_are_read(tmp_path: Path, pixels: np.ndarray) -> None:
    content = python2_batch(pixels, [3, 0, 9])
    official = pickle.loads(content, encoding="bytes")  # the oracle: our opcodes mean what we think
    assert np.array_equal(official[b"data"], pixels)
    (tmp_path / "batch").write_bytes(content)
    read_pixels, labels = read_batch(tmp_path / "batch")
    assert read_pixels.dtype == np.uint8 and np.array_equal(read_pixels, pixels)
    assert labels.dtype == np.int64 and labels.tolist() == [3, 0, 9]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("array_labels", [False, True])
def test_files_rewritten_by_python3_are_read(
    tmp_path: Path, pixels: np.ndarray, protocol: int, fortran: bool, array_labels: bool
) -> None:
    data = np.asfortranarray(pixels) if fortran else pixels
    labels: Any = np.array([1, 2, 3]) if array_labels else [1, 2, 3]
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": data, "labels": labels, "filenames": [b"a.png"]}, protocol))
    read_pixels, read_labels = read_batch(tmp_path / "batch")
    assert np.array_equal(read_pixels, pixels)
    assert read_labels.tolist() == [1, 2, 3]


class RunsCommand:
    """Its pickle creates a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, pixels: np.ndarray, protocol: int) -> None:
    target = tmp_path / "executed"
    content = pickle.dumps({"data": pixels, "labels": [1, 2, RunsCommand(target)]}, protocol)
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UserError, match="batch is refused"):
        read_batch(tmp_path / "batch")
    assert not target.exists()
    pickle.loads(content)
    assert target.exists()  # the pickle is a working attack


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"(S'true'\nios\nsystem\n.",  # INST
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x13testing.runstring\x93.",  # dotted STACK_GLOBAL
        b"\x80\x02cnumpy\nndarray\nK\x05\x85\x81.",  # NEWOBJ of an allowed name
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",  # object arrays
        b"Ptest\n.",  # persistent id
    ],
)
def test_other_ways_to_call_something_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UserError, match="batch is (refused|truncated)"):
        read_batch(tmp_path / "batch")


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": np.array([{}, []], dtype=object), "labels": [0, 1]}))
    with pytest.raises(UserError, match="refused"):
        read_batch(tmp_path / "batch")


def test_damaged_files_and_wrong_contents_are_named(tmp_path: Path, pixels: np.ndarray) -> None:
    batch = tmp_path / "batch"
    good = pickle.dumps({"data": pixels, "labels": [1, 2, 3]})
    for content, message in [
        (good[:-500], "damaged"),
        (b"", "truncated"),
        (b"not a pickle", "damaged"),
        (pickle.dumps([1, 2]), "list instead of a dict"),
        (pickle.dumps({"labels": [1]}), "no 'data'"),
        (pickle.dumps({"data": pixels[:, :10], "labels": [1, 2, 3]}), "no 'data'"),
        (pickle.dumps({"data": pixels, "labels": [1, 2]}), "labels"),
        (pickle.dumps({"data": pixels, "labels": ["a", "b", "c"]}), "labels"),
    ]:
        batch.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_batch(batch)
    with pytest.raises(UserError, match="cannot be read"):
        read_batch(tmp_path / "missing")
